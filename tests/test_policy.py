"""The fallback policy: every answer to a single element, on each op and backend, in both modes; how loudly to step down."""

import asyncio
import copy
import pickle
import threading
import tracemalloc

import hypothesis
import ml_dtypes
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import normkit as nk
from normkit import answers

F32 = np.float32
ANSWERS = ["raise", "bias", "identity", "layer_norm", "running"]


def single(op, batch=4, dtype=F32):
    """An x whose statistics hold one element each, and a weight and bias for it."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (batch, 5, 1, 1) if op == "instance_norm" else (batch, 5, 1)).astype(dtype)
    shape = 5 if op == "instance_norm" else 1
    return x, {"weight": rng.uniform(1, 2, shape).astype(dtype), "bias": rng.uniform(-1, 1, shape).astype(dtype)}


def running(dtype=F32):
    rng = np.random.default_rng(1)
    return {"running_mean": rng.normal(3, 1, 5).astype(dtype), "running_var": rng.uniform(1, 2, 5).astype(dtype)}


def affine_shape(op, x):
    return (1, -1, *[1] * (x.ndim - 2)) if op == "instance_norm" else (-1,)


# each answer


@pytest.mark.parametrize("batch", [0, 1, 4])
@pytest.mark.parametrize("op", ["instance_norm", "layer_norm"])
def test_raise(run, op, batch):
    x, affine = single(op, batch)
    with pytest.raises(nk.DegenerateShapeError, match="silently erased") as error:
        run(op, x, policy=nk.FallbackPolicy(single_element="raise"), **affine)
    assert str(x.shape) in str(error.value)
    assert 'single_element="identity"' in str(error.value)


@pytest.mark.parametrize("batch", [0, 1, 4])
@pytest.mark.parametrize("op", ["instance_norm", "layer_norm"])
def test_bias(run, op, batch, dtype):
    x, affine = single(op, batch, dtype)
    policy = nk.FallbackPolicy(single_element="bias")
    y, mean, rstd = run(op, x, policy=policy, return_stats=True, **affine)
    assert_array_equal(y, np.broadcast_to(affine["bias"].reshape(affine_shape(op, x)), x.shape))
    assert_array_equal(mean, x)
    np.testing.assert_allclose(rstd, np.full(x.shape, 1e-5**-0.5))
    assert_array_equal(run(op, x, policy=policy), np.zeros_like(x))
    assert_array_equal(run(op, x, policy=policy, eps=0), np.zeros_like(x))


@pytest.mark.parametrize("batch", [0, 1, 4])
@pytest.mark.parametrize("op", ["instance_norm", "layer_norm"])
def test_identity(run, assert_close, op, batch, dtype):
    x, affine = single(op, batch, dtype)
    policy = nk.FallbackPolicy(single_element="identity")
    weight, bias = (p.reshape(affine_shape(op, x)).astype(np.float64) for p in affine.values())
    y, mean, rstd = run(op, x, policy=policy, return_stats=True, **affine)
    assert_close(y, x.astype(np.float64) * weight + bias)
    assert_array_equal(mean, np.zeros(x.shape))
    assert_array_equal(rstd, np.ones(x.shape))
    y = run(op, x, policy=policy)
    assert_array_equal(y, x)
    assert not np.may_share_memory(y, x)


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_layer_norm_over_the_channels(run, assert_close, batch, dtype):
    x, affine = single("instance_norm", batch, dtype)
    policy = nk.FallbackPolicy(single_element="layer_norm")
    expected, mean, rstd = oracle.normalize(x, (1, 2, 3), (1,), **affine)
    y, *stats = run("instance_norm", x, policy=policy, return_stats=True, **affine)
    assert_close(y, expected)
    for actual, wanted in zip(stats, (mean, rstd), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-13)


def test_layer_norm_over_one_channel_cannot_help(run):
    with pytest.raises(nk.DegenerateShapeError, match=r"'layer_norm' cannot help.*there is one channel"):
        run("instance_norm", np.ones((4, 1, 1), F32), policy=nk.FallbackPolicy(single_element="layer_norm"))


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_running(run, assert_close, batch, dtype):
    x, affine = single("instance_norm", batch, dtype)
    stats = running(dtype)
    before = {name: s.copy() for name, s in stats.items()}
    y = run("instance_norm", x, policy=nk.FallbackPolicy(single_element="running"), **stats, **affine)
    assert_close(y, oracle.instance_norm(x, **affine, running=tuple(before.values()))[0])
    for name, s in stats.items():
        assert_array_equal(s, before[name])


def test_running_without_running_statistics_cannot_help(run):
    x, _ = single("instance_norm")
    with pytest.raises(nk.DegenerateShapeError, match=r"'running' cannot help.*none were given"):
        run("instance_norm", x, policy=nk.FallbackPolicy(single_element="running"))


@pytest.mark.parametrize("answer", ["layer_norm", "running"])
def test_answers_that_mean_nothing_to_layer_norm(run, answer):
    x, _ = single("layer_norm")
    with pytest.raises(nk.DegenerateShapeError, match=f"'{answer}' cannot help.*no meaning for layer_norm"):
        run("layer_norm", x, policy=nk.FallbackPolicy(single_element=answer))


@pytest.mark.parametrize("op", ["instance_norm", "layer_norm"])
def test_callable(backend, op):
    x, affine = single(op)
    seen = []

    def answer(problem):
        seen.append(problem)
        return problem.x * 2

    y = getattr(nk, op)(x, backend=backend, policy=nk.FallbackPolicy(single_element=answer), **affine)
    assert_array_equal(y, x * 2)
    (problem,) = seen
    assert (problem.op, problem.shape, problem.count) == (op, x.shape, 1)
    assert_array_equal(problem.operands.weight, affine["weight"])


def test_callable_with_out():
    x, _ = single("instance_norm")
    expected, out = x + 1, np.empty_like(x)
    policy = nk.FallbackPolicy(single_element=lambda problem: problem.x + 1)
    assert nk.instance_norm(x, policy=policy, out=out) is out
    assert_array_equal(out, expected)
    assert nk.instance_norm(x, policy=policy, out=x) is x
    assert_array_equal(x, expected)


def test_callable_that_gives_x_itself_gives_no_alias():
    x, _ = single("instance_norm")
    y = nk.instance_norm(x, policy=nk.FallbackPolicy(single_element=lambda problem: problem.x))
    assert_array_equal(y, x)
    assert not np.may_share_memory(y, x)


def test_callable_of_a_wider_dtype_is_rounded():
    x, _ = single("instance_norm")
    y = nk.instance_norm(x, policy=nk.FallbackPolicy(single_element=lambda p: p.x.astype(np.float64) / 3))
    assert y.dtype == F32


@pytest.mark.parametrize(
    "answer",
    [
        lambda p: p.x[:1],
        lambda p: 3.0,
        lambda p: None,
        lambda p: p.x.astype(complex),
        lambda p: p.x.astype(object),
        lambda p: "abc",
    ],
)
def test_callable_that_gives_something_else(answer):
    x, _ = single("instance_norm")
    out = np.full_like(x, 9)
    with pytest.raises(nk.PolicyError, match=r"instance_norm: the policy's callable gave .*expected \(4, 5, 1, 1\) of float32"):
        nk.instance_norm(x, policy=nk.FallbackPolicy(single_element=answer), out=out)
    assert (out == 9).all()


def test_callable_has_no_statistics_to_return():
    x, _ = single("instance_norm")
    with pytest.raises(nk.PolicyError, match="return_stats"):
        nk.instance_norm(x, return_stats=True, policy=nk.FallbackPolicy(single_element=lambda p: p.x))


def test_an_error_of_the_callable_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        nk.instance_norm(single("instance_norm")[0], policy=nk.FallbackPolicy(single_element=lambda p: 1 / 0))


def test_mapping(run):
    policy = nk.FallbackPolicy(single_element={"layer_norm": "identity", "instance_norm": "bias"})
    x, _ = single("layer_norm")
    assert_array_equal(run("layer_norm", x, policy=policy), x)
    x, _ = single("instance_norm")
    assert_array_equal(run("instance_norm", x, policy=policy), np.zeros_like(x))


def test_an_op_that_a_mapping_leaves_out_raises(run):
    for op, other in (("layer_norm", "instance_norm"), ("instance_norm", "layer_norm")):
        with pytest.raises(nk.DegenerateShapeError):
            run(op, single(op)[0], policy=nk.FallbackPolicy(single_element={other: "bias"}))


# when it is asked


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("op", ["instance_norm", "layer_norm"])
def test_two_elements_never_ask(run, same_bits, op, answer):
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(F32)
    same_bits(run(op, x, policy=nk.FallbackPolicy(single_element=answer)), run(op, x))


@pytest.mark.parametrize("answer", ANSWERS)
def test_given_statistics_never_ask(run, same_bits, answer):
    x, affine = single("instance_norm")
    call = {"use_input_stats": False, **running(), **affine}
    same_bits(run("instance_norm", x, policy=nk.FallbackPolicy(single_element=answer), **call), run("instance_norm", x, **call))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_answer_is_the_same_in_both_modes(backend, answer, training):
    x, _ = single("instance_norm")
    layer = nk.InstanceNorm2d(5, affine=True).train(training)
    policy = nk.FallbackPolicy(single_element=answer)
    if answer in ("raise", "running"):
        with pytest.raises(nk.DegenerateShapeError):
            layer(x, policy=policy, backend=backend)
        return
    plain = nk.instance_norm(x, weight=layer.weight, bias=layer.bias, policy=policy, backend=backend)
    assert_array_equal(layer(x, policy=policy, backend=backend), plain)


@pytest.mark.parametrize("answer", ANSWERS)
def test_running_statistics_learn_nothing_from_single_elements(backend, answer):
    x, _ = single("instance_norm")
    layer = nk.InstanceNorm2d(5, track_running_stats=True)
    policy = nk.FallbackPolicy(single_element=answer)
    if answer == "raise":
        with pytest.raises(nk.DegenerateShapeError):
            layer(x, policy=policy, backend=backend)
    else:
        layer(x, policy=policy, backend=backend)
    assert_array_equal(layer.running_mean, np.zeros(5))
    assert_array_equal(layer.running_var, np.ones(5))
    evaluated = layer.eval()(x, policy=policy, backend=backend)  # on running statistics, so nobody is asked
    np.testing.assert_allclose(evaluated, x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_instance_norm_without_spatial_axes_is_a_single_element_too(run):
    x = np.ones((2, 3), F32)
    with pytest.raises(nk.DegenerateShapeError, match=r"\(2, 3, 2\) works"):
        run("instance_norm", x)
    assert_array_equal(run("instance_norm", x, policy=nk.FallbackPolicy(single_element="identity")), x)


@pytest.mark.parametrize("answer", ["bias", "identity"])
def test_poison_in_single_elements(run, answer):
    x, _ = single("instance_norm")
    x[1, 2], x[2, 3] = np.nan, np.inf
    y = run("instance_norm", x, policy=nk.FallbackPolicy(single_element=answer))
    poisoned = np.zeros(x.shape, bool)
    poisoned[1, 2] = poisoned[2, 3] = True
    assert_array_equal(np.isfinite(y), ~poisoned)


# what needs no statistics needs no kernel, and nothing of x's size but the output

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_of_anything_is_itself(run, same_bits, dtype):
    x = np.array([0.0, -0.0, 1.5, -1e-7, 6e4, np.inf, -np.inf, np.nan, -np.nan]).astype(dtype).reshape(3, 3, 1)
    policy = nk.FallbackPolicy(single_element="identity")
    for there in (x, x.transpose(1, 0, 2), x[::-1], x[:, ::-1]):
        for _ in range(3):  # the second time by a plan
            same_bits(run("instance_norm", there, policy=policy), there.copy())
            same_bits(run("layer_norm", there, policy=policy), there.copy())


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=100)
def test_identity_and_bias_are_what_numpy_gives(same_bits, data):
    """To the bit, on every backend and wherever x, out and the parameters lie; of halves rounded once."""
    shape = data.draw(st.tuples(st.integers(0, 5), st.integers(1, 6)))
    dtype, of_parameters = (np.dtype(data.draw(st.sampled_from(DTYPES))) for _ in range(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = rng.normal(3, 100, shape).astype(dtype)
    x[rng.random(shape) < 0.1] = data.draw(st.sampled_from([0, -0.0, np.nan, np.inf]))
    parameters = {
        name: rng.normal(size=shape[1]).astype(of_parameters)
        for name in data.draw(st.sets(st.sampled_from(["weight", "bias"])))
    }
    if "weight" in parameters and data.draw(st.integers(0, 5)) == 0:
        parameters["weight"][0] = np.inf
    answer = data.draw(st.sampled_from(["identity", "bias"]))
    plain = dtype.itemsize > 2 and (not parameters or of_parameters == dtype)
    wide = x if plain else x.astype(np.float64)
    weight, bias = (parameters[name].astype(wide.dtype) if name in parameters else None for name in ("weight", "bias"))
    with np.errstate(all="ignore"):
        y = wide if answer == "identity" else wide - wide
        y = y if weight is None else y * weight
        y = (y if bias is None else y + bias).astype(dtype)
    there = data.draw(
        st.sampled_from([np.asfortranarray, lambda a: np.repeat(a, 2, 0)[::2], lambda a: a[:, ::-1].copy()[:, ::-1]])
    )(x)
    if data.draw(st.booleans()) and dtype.name != "bfloat16":
        there = there.astype(dtype.newbyteorder())
    over = data.draw(st.sampled_from([None, "x", "weight"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "BLOCK", data.draw(st.sampled_from([1, 24, 1 << 18])))
        for backend in ("numba", "numpy"):
            given, x_given = {name: p.copy() for name, p in parameters.items()}, there.copy(order="K")
            out = x_given if over == "x" else None
            if over == "weight" and "weight" in given and given["weight"].dtype == dtype and shape[0]:
                memory = np.empty(shape, dtype)
                memory[-1] = given["weight"]
                given["weight"], out = memory[-1], memory
            policy = nk.FallbackPolicy(single_element=answer)
            got = nk.instance_norm(x_given, out=out, policy=policy, backend=backend, **given)
            if answer == "identity":
                same_bits(got.astype(dtype), y)
            assert_array_equal(got.astype(np.float64), y.astype(np.float64))  # of 0 for -0, which a weight below 0 makes of 0


@pytest.mark.parametrize("op", ["instance_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("answer", ["identity", "bias"])
def test_answers_allocate_little_but_the_output(backend, op, dtype, answer):
    x, affine = np.ones((2, 400_000, 1), dtype), {}
    if op == "instance_norm":
        affine = {name: np.ones(400_000, dtype) for name in ("weight", "bias")}
    policy = nk.FallbackPolicy(single_element=answer)
    call = lambda: getattr(nk, op)(x, policy=policy, backend=backend, **affine)  # noqa: E731
    call()
    nk.empty_cache()
    tracemalloc.start()
    y = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.05 * y.nbytes + answers.BLOCK + 200_000  # NumPy's own buffers


@pytest.mark.parametrize("answer", ["identity", "bias", "layer_norm", "running"])
@pytest.mark.parametrize("stats", [False, True])
def test_answers_are_planned(backend, answer, stats, monkeypatch):
    x, affine = single("instance_norm")
    affine |= running() if answer == "running" else {}
    call = {"policy": nk.FallbackPolicy(single_element=answer), "return_stats": stats, "backend": backend, **affine}
    expected = [nk.instance_norm(a, **call) for a in (x, x + 1)]
    monkeypatch.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
    for a, right in zip((x, x + 1), expected, strict=True):
        got = nk.instance_norm(a, **call)
        for part, wanted in zip(got, right, strict=True) if stats else [(got, right)]:
            assert_array_equal(part, wanted)


def test_the_statistics_of_a_channel_serve_any_number_of_instances(run, same_bits, dtype):
    x, affine = single("instance_norm", 40, dtype)
    call = {"use_input_stats": False, **running(dtype), **affine}
    y, mean, rstd = run("instance_norm", x, return_stats=True, **call)
    assert mean.shape == rstd.shape == x.shape
    for i in (0, 17, 39):
        same_bits(run("instance_norm", x[i : i + 1], **call), y[i : i + 1].copy())
    last = run("instance_norm", x.transpose(0, 2, 3, 1).copy(), channel_axis=-1, **call)
    same_bits(np.ascontiguousarray(last.transpose(0, 3, 1, 2)), y)


# the named policies


def test_torch_is_the_default(run):
    assert nk.FallbackPolicy() == nk.FallbackPolicy.torch()
    for policy in (None, nk.FallbackPolicy.torch()):
        with pytest.raises(nk.DegenerateShapeError):
            run("instance_norm", single("instance_norm")[0], policy=policy)
        x, affine = single("layer_norm")
        assert_array_equal(run("layer_norm", x, policy=policy, **affine), np.broadcast_to(affine["bias"], x.shape))


def test_onnx_never_raises(run):
    for op in ("instance_norm", "layer_norm"):
        x, affine = single(op)
        y = run(op, x, policy=nk.FallbackPolicy.onnx(), **affine)
        assert_array_equal(y, np.broadcast_to(affine["bias"].reshape(affine_shape(op, x)), x.shape))


def test_strict_always_raises(run):
    for op in ("instance_norm", "layer_norm"):
        with pytest.raises(nk.DegenerateShapeError):
            run(op, single(op)[0], policy=nk.FallbackPolicy.strict())
    assert nk.FallbackPolicy.strict().on_fallback == "raise"


# the object


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"single_element": "zeros"}, "single_element is 'zeros', expected one of 'raise', 'bias'"),
        ({"single_element": None}, "single_element is None"),
        ({"single_element": 0}, "single_element is 0"),
        ({"single_element": ["bias"]}, "single_element is"),
        ({"single_element": {"layer_norm": "zeros"}}, "single_element is 'zeros'"),
        ({"single_element": {"batch_norm": "bias"}}, "names 'batch_norm', expected ops among"),
        ({"single_element": {3: "bias"}}, "names 3, expected"),
        ({"order": "numpy"}, "order is 'numpy', expected backend names"),
        ({"order": ()}, "order is"),
        ({"order": (1, 2)}, "order is"),
        ({"order": 5}, "order is 5"),
        ({"order": None}, "order is None"),
        ({"on_fallback": "shout"}, "on_fallback is 'shout', expected 'ignore', 'warn' or 'raise'"),
        ({"on_fallback": None}, "on_fallback is None"),
        ({"on_fallback": ["warn"]}, "on_fallback is"),
    ],
)
def test_policies_that_make_no_sense(arguments, message):
    with pytest.raises(nk.PolicyError, match=message):
        nk.FallbackPolicy(**arguments)


def test_a_policy_is_a_frozen_value():
    policy = nk.FallbackPolicy(single_element={"layer_norm": "bias"}, order=["numpy"])
    assert policy.order == ("numpy",)
    assert hash(policy) == hash(nk.FallbackPolicy(single_element={"layer_norm": "bias"}, order=("numpy",)))
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy
    with pytest.raises(AttributeError):
        policy.order = ("numba",)


def test_a_policy_does_not_follow_the_mapping_it_was_made_from():
    mapping = {"instance_norm": "bias"}
    policy = nk.FallbackPolicy(single_element=mapping)
    mapping["instance_norm"] = "raise"
    assert policy.answer("instance_norm") == "bias"


# using


def test_using_sets_and_restores():
    x, _ = single("instance_norm")
    with nk.using(policy=nk.FallbackPolicy.onnx()):
        assert not nk.instance_norm(x).any()
        with nk.using(policy=nk.FallbackPolicy(single_element="identity")):
            assert_array_equal(nk.instance_norm(x), x)
        assert not nk.instance_norm(x).any()
    with pytest.raises(nk.DegenerateShapeError):
        nk.instance_norm(x)


def test_using_restores_after_an_error():
    with pytest.raises(KeyError), nk.using(policy=nk.FallbackPolicy.onnx(), backend="numpy"):
        raise KeyError
    with pytest.raises(nk.DegenerateShapeError):
        nk.instance_norm(single("instance_norm")[0])


def test_an_argument_wins_over_using():
    x, _ = single("instance_norm")
    with nk.using(policy=nk.FallbackPolicy.onnx(), backend="cupy"):
        y = nk.instance_norm(x, policy=nk.FallbackPolicy(single_element="identity"), backend="numpy")
        assert_array_equal(y, x)
        with pytest.raises(nk.NoBackendError, match="asked for: backend='cupy'"):
            nk.instance_norm(x)


def test_using_leaves_the_other_half_as_it_was():
    x, _ = single("instance_norm")
    with nk.using(policy=nk.FallbackPolicy.onnx()), nk.using(backend="cupy"):
        with pytest.raises(nk.NoBackendError):
            nk.instance_norm(x)
        with nk.using(backend="numpy"):
            assert not nk.instance_norm(x).any()


def test_using_reaches_layers_and_explain(backend):
    x, _ = single("instance_norm")
    with nk.using(policy=nk.FallbackPolicy.onnx(), backend=backend):
        assert not nk.InstanceNorm2d(5)(x).any()
        assert "single_element='bias'" in str(nk.explain("instance_norm", x))
        assert f"{backend}, as asked for" in str(nk.explain("instance_norm", x))


def test_using_checks_its_policy_at_once():
    with pytest.raises(nk.PolicyError, match="policy is 'onnx'"), nk.using(policy="onnx"):
        pass


def raises_here(x):
    try:
        nk.instance_norm(x)
    except nk.DegenerateShapeError:
        return True
    return False


def test_using_stays_in_its_thread():
    x, _ = single("instance_norm")
    inside, done, seen = threading.Event(), threading.Event(), []

    def other():
        inside.wait(10)
        seen.append(raises_here(x))
        with nk.using(policy=nk.FallbackPolicy(single_element="identity")):
            seen.append(bool(nk.instance_norm(x).any()))
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with nk.using(policy=nk.FallbackPolicy.onnx()):
        inside.set()
        done.wait(10)
        assert not nk.instance_norm(x).any()
    thread.join(10)
    assert seen == [True, True]


def test_using_stays_in_its_asyncio_task():
    x, _ = single("instance_norm")

    async def task(policy, mine, theirs):
        with nk.using(policy=policy):
            mine.set()
            await theirs.wait()  # both tasks are inside their blocks now
            return nk.instance_norm(x)

    async def main():
        a, b = asyncio.Event(), asyncio.Event()
        both = await asyncio.gather(
            task(nk.FallbackPolicy.onnx(), a, b), task(nk.FallbackPolicy(single_element="identity"), b, a)
        )
        return [*both, raises_here(x)]

    zeros, same, outside = asyncio.run(main())
    assert not zeros.any()
    assert_array_equal(same, x)
    assert outside


@pytest.mark.parametrize("answer", ["bias", "identity"])
@pytest.mark.parametrize("mask", [None, np.zeros((2, 3), bool)])
def test_what_has_only_the_looks_of_an_array_finds_no_backend(answer, mask):
    class Looks:
        shape, dtype, ndim, strides, size = (2, 3), np.dtype("float32"), 2, (12, 4), 6

    with pytest.raises(nk.NormkitError):
        nk.instance_norm(Looks(), mask=mask, policy=nk.FallbackPolicy(single_element=answer))

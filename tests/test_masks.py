"""Masks: what is False does not count, whatever is there; where one element is left of a set, or none, the policy answers."""

import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import normkit as nk
from normkit import masks, validation

SHAPE = (3, 4, 5, 6)
MASKS = [(3, 4, 5, 6), (3, 1, 5, 6), (3, 1, 1, 6), (3, 1, 5, 1), (1, 4, 5, 6), (5, 6), (6,), (1, 1, 5, 1), ()]
OPS = [
    ("layer_norm", {}),
    ("layer_norm", {"axis": 1}),
    ("layer_norm", {"axis": (0, 2)}),
    ("instance_norm", {}),
    ("instance_norm", {"channel_axis": -1}),
]


def policy(answer):
    return nk.FallbackPolicy(single_element=answer)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(3, 1, SHAPE).astype(np.float32)


@pytest.fixture
def hole(x):
    """(x with NaN under the mask, a mask that leaves nothing of channel 1 of instance 0)"""
    mask = np.ones(SHAPE, bool)
    mask[0, 1] = mask[2, 2, 1] = False
    x[~mask] = np.nan
    return x, mask


@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_only_what_is_true_counts(run, op, x, shape):
    mask = np.random.default_rng(1).random(shape) > 0.3
    mask.flat[0] = True
    y, mean, rstd = run(op, x, mask=mask, return_stats=True, policy=policy("bias"))
    axes = (3,) if op == "layer_norm" else (2, 3)
    chosen = np.where(np.broadcast_to(mask, SHAPE), x.astype(np.float64), np.nan)
    there = np.broadcast_to(np.broadcast_to(mask, SHAPE).sum(axis=axes, keepdims=True) > 1, SHAPE)
    with warnings.catch_warnings(action="ignore"):  # of nothing
        expected_mean, var = np.nanmean(chosen, axis=axes, keepdims=True), np.nanvar(chosen, axis=axes, keepdims=True)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(var + 1e-5), rtol=1e-10)
    expected = (x - expected_mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y[there], expected[there], rtol=2e-6, atol=2e-6)
    assert (y[~there] == 0).all()


def test_nan_under_the_mask_does_not_leak(run, hole):
    x, mask = hole
    y, mean, _ = run("instance_norm", x, mask=mask, return_stats=True, policy=policy("bias"))
    np.testing.assert_array_equal(np.isnan(y), ~mask & (np.arange(3) != 0)[:, None, None, None])
    assert np.isnan(mean).sum() == 1


def test_sequences_of_different_lengths(run):
    lengths = np.array([5, 2, 7])
    mask = (np.arange(7) < lengths[:, None])[:, np.newaxis, :]  # (N, 1, L)
    x = np.random.default_rng(2).normal(size=(3, 4, 7)).astype(np.float32)
    y = run("instance_norm", x, mask=mask)
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(y[i, :, :n], run("instance_norm", x[i : i + 1, :, :n])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@hypothesis.given(data=st.data())
def test_all_true_is_no_mask_to_the_bit(same_bits, dtype, data):
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3, st.integers(2, 40)))
    op, options = data.draw(st.sampled_from(OPS))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(3, 1, shape).astype(dtype)
    mask = np.ones([data.draw(st.sampled_from([1, n])) for n in shape], bool)
    onnx = nk.FallbackPolicy.onnx()
    for backend in ("numba", "numpy"):
        plain = getattr(nk, op)(x, policy=onnx, backend=backend, return_stats=True, **options)
        masked = getattr(nk, op)(x, mask=mask, policy=onnx, backend=backend, return_stats=True, **options)
        for a, b in zip(plain, masked, strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("layout", [(1, 3, 260, 70), (40, 3, 20, 11)], ids=["few large sets", "many"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_and_layout_do_not_show_in_the_bits(same_bits, threads, layout, channels_last):
    rng = np.random.default_rng(3)
    x = rng.normal(3, 1, layout).astype(np.float32)
    mask = rng.random((layout[0], 1, *layout[2:])) > 0.5
    mask[..., :200, :3] = False
    expected = nk.instance_norm(x, mask=mask, backend="numba")
    if channels_last:
        x, mask = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, mask))
        expected = np.ascontiguousarray(np.moveaxis(expected, 1, -1))
    for n in (1, 2):
        threads(n)
        same_bits(nk.instance_norm(x, mask=mask, channel_axis=-1 if channels_last else 1, backend="numba"), expected)


# what is left of a set is one element, or nothing


@pytest.fixture
def sequences():
    """(x, a mask that leaves 5, 1, 0 and 2 of the 7 steps of a sequence): NaN, Inf and large numbers are padding."""
    lengths = np.array([5, 1, 0, 2])
    x = np.random.default_rng(4).normal(3, 2, (4, 3, 7)).astype(np.float32)
    mask = np.arange(7) < lengths[:, np.newaxis, np.newaxis]
    x[..., 5:] = [np.nan, 1e30]
    return x, mask


def test_too_small_a_set_raises_and_says_which(run, hole, sequences):
    x, mask = hole
    with pytest.raises(nk.DegenerateShapeError, match=r"fewer than 2 elements of 1 of the 12 sets") as caught:
        run("instance_norm", x, mask=mask)
    assert "left: none of x[0, 1, :, :]." in str(caught.value)
    with pytest.raises(nk.DegenerateShapeError, match="12 of the 12"):
        run("instance_norm", x, mask=False & mask)
    x, mask = sequences
    with pytest.raises(nk.DegenerateShapeError, match="6 of the 12 sets") as caught:
        run("instance_norm", x, mask=mask)
    said = " ".join(str(caught.value).split())
    assert "none of x[2, 0, :], x[2, 1, :], x[2, 2, :]; one of x[1, 0, :], x[1, 1, :], x[1, 2, :]." in said
    assert "scaled by 1 / sqrt(eps) = 316.2" in said
    with pytest.raises(nk.DegenerateShapeError, match=r"one of x\[0, :\], x\[1, :\], x\[2, :\], x\[3, :\] and 5 more\."):
        run("layer_norm", np.ones((9, 4)), mask=np.arange(4) == 2, policy=nk.FallbackPolicy.strict())


@pytest.mark.parametrize(("op", "options"), OPS)
def test_the_code_that_the_error_gives_does_what_it_says(op, options):
    x = np.random.default_rng(5).normal(3, 2, SHAPE).astype(np.float32)
    call = getattr(validation, op)(x, **options).problem
    mask = np.ones(SHAPE, bool)
    which = tuple(slice(None) if a in call.axes else 1 for a in range(4))
    mask[which] = False
    with pytest.raises(nk.DegenerateShapeError) as caught:
        getattr(nk, op)(x, mask=mask, policy=nk.FallbackPolicy.strict(), backend="numpy", **options)
    channels = [x.shape[a] for a in call.affine_axes]
    names = {"nk": nk, "x": x, "mask": mask, "running_mean": np.zeros(channels), "running_var": np.ones(channels)}
    codes = [line.strip() for line in str(caught.value).splitlines() if line.strip().startswith("nk.")]
    assert len(codes) == (4 if op == "instance_norm" else 2)
    expected = getattr(nk, op)(x, mask=mask, policy=policy("bias"), backend="numpy", **options)
    others = np.ones(SHAPE, bool)
    others[which] = False
    for code in codes:
        with nk.using(backend="numpy"):
            y = eval(code, names)
        np.testing.assert_array_equal(y[others], expected[others])
        assert np.isfinite(y).all()


@pytest.mark.parametrize("out", [None, "new", "x"])
@pytest.mark.parametrize("how", ["as it is", "channels last", "every second", "byte-swapped", "one mask for all channels"])
def test_an_element_left_alone_is_asked_about_however_it_lies(run, sequences, how, out):
    x, mask = sequences
    x, mask = x[[0, 1]].copy(), np.broadcast_to(mask, x.shape)[[0, 1]].copy()
    options = {}
    if how == "channels last":
        x, mask, options = x.transpose(0, 2, 1).copy(), mask.transpose(0, 2, 1).copy(), {"channel_axis": -1}
    elif how == "every second":
        x, mask = np.repeat(x, 2, -1)[..., ::2], np.repeat(mask, 2, 0)[::2]
    elif how == "byte-swapped":
        x = x.astype(x.dtype.newbyteorder())
    elif how == "one mask for all channels":
        mask = mask[:, :1]
    first, held = mask.copy(), x.copy()
    first[1] = first[0]
    for m in (first, first, mask, mask):  # the second time, a plan may take the call
        into = {"new": np.full_like(x, 9), "x": x, None: None}[out]
        options["out"] = into
        if m is mask:
            for p in (None, nk.FallbackPolicy.strict()):
                with pytest.raises(nk.DegenerateShapeError, match="3 of the 6 sets"):
                    run("instance_norm", x, mask=m, policy=p, **options)
            assert into is None or (into == (x if out == "x" else 9))[~np.isnan(into)].all()
        else:
            run("instance_norm", x, mask=m, **options)
            x[...] = held


@pytest.mark.parametrize("answer", ["bias", "identity", "layer_norm", "running", lambda problem: problem.x / 2])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_sequence_is_answered_in_a_batch_as_it_is_alone(run, same_bits, sequences, answer, dtype):
    x, mask = (a[[0, 1, 3]] for a in sequences)
    x = np.where(np.isnan(x), 0, x % 10).astype(dtype)
    weight, bias = np.array([1.5, 2, 3], dtype), np.array([0.1, 20, -30], dtype)
    running = {"running_mean": np.array([1.0, 2, 3]), "running_var": np.array([1.0, 4, 9])} if answer == "running" else {}
    stats = not callable(answer)

    def normalized(x, **options):
        before = {name: statistic.copy() for name, statistic in running.items()}  # it is updated by the other sequences
        call = {"weight": weight, "bias": bias, "policy": policy(answer), "return_stats": stats, **before, **options}
        return run("instance_norm", x, **call) if stats else (run("instance_norm", x, **call),)

    y, *of_batch = normalized(x, mask=mask)
    for i, n in enumerate((5, 1, 2)):
        alone, *of_one = normalized(x[i : i + 1, :, :n].copy())
        if answer == "layer_norm":  # plain NumPy adds what it has made 0, so in another order
            np.testing.assert_allclose(y[i : i + 1, :, :n], alone, rtol=2e-3 if dtype == "float16" else 1e-6)
        else:
            same_bits(y[i : i + 1, :, :n].copy(), alone)
        for a, b in zip(of_batch, of_one, strict=True):
            np.testing.assert_allclose(a[i], np.broadcast_to(b[0], a[i].shape), rtol=1e-12)


def test_a_callable_has_no_statistics_of_the_sets_it_answers(run, sequences):
    x, mask = sequences
    with pytest.raises(nk.PolicyError, match="return_stats"):
        run("instance_norm", x, mask=mask, return_stats=True, policy=policy(lambda problem: problem.x))


@pytest.mark.parametrize("eps", [0, 1e-5])
def test_one_element_left_and_whatever_is_under_the_mask(run, eps):
    x = np.array([[2, np.nan, np.nan, 5], [np.inf, 1, 2, 3], [np.nan, 1, 2, 3], [1, 1, 1e30, 7]], np.float32)
    mask = np.array([[True, False, False, False]] * 3 + [[True, True, False, False]])
    y = run("layer_norm", x, mask=mask, eps=eps, bias=np.float32([1, 2, 3, 4]))
    np.testing.assert_array_equal(y[0], [1, 2, 3, 4])
    for row in (1, 2):  # what is not a number stays none, where it is
        np.testing.assert_array_equal(y[row], [np.nan, 2, 3, 4])
    np.testing.assert_array_equal(y[3, :2], [1, 2])  # two of a kind are a set like any other
    assert (y[3, 2:] == [3, 4]).all() == (eps == 0)


def test_no_variance_and_no_eps_is_no_reason_to_lose_a_nan(run):
    x = np.array([[2, 2, np.nan, np.inf, 7]], np.float32)
    np.testing.assert_array_equal(
        run("layer_norm", x, mask=np.array([True, True, False, False, False]), eps=0), [[0, 0, np.nan, np.nan, 0]]
    )


def test_a_repeated_element_is_two(run):
    """Where one of a mask stands for several of x, one True is enough."""
    x = np.random.default_rng(6).normal(size=(2, 3, 4, 20)).astype(np.float32)
    mask = np.arange(20) == 3
    y = run("instance_norm", x, mask=mask)
    expected = (x - x[..., 3:4].mean(2, keepdims=True)) / np.sqrt(x[..., 3:4].var(2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150)
def test_the_sets_with_too_little_are_found(data):
    """By the look at the first elements, or by counting; of whatever mask, whose True may be any byte."""
    shape = (*data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)), data.draw(st.sampled_from([1, 5, 8, 20, 40])))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    mask = np.zeros([data.draw(st.sampled_from([n, n, 1])) for n in shape], np.uint8)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        mask[rng.random(mask.shape) < data.draw(st.sampled_from([0.05, 0.3, 0.9]))] = data.draw(st.sampled_from([1, 2, 255]))
    else:
        mask[..., : data.draw(st.integers(0, 3))] = 1
    mask = mask.view(bool)
    if data.draw(st.booleans()):
        mask = np.asfortranarray(mask)
    problem = validation.layer_norm(np.zeros(shape, np.float32), axis=axes, mask=mask).problem
    counts = (np.broadcast_to(mask, shape).view(np.uint8) != 0).sum(axis=axes, keepdims=True)
    found = masks.degenerate_sets(problem, mask)
    if (counts > 1).all():
        assert found is None
    else:
        for where, n in ((found.empty, 0), (found.single, 1)):
            np.testing.assert_array_equal(np.broadcast_to(where, counts.shape), counts == n)


def test_in_layer_norm_padding_gets_the_bias(run, x):
    mask = np.arange(5)[:, np.newaxis] < 3  # of whole tokens
    y = run("layer_norm", x, bias=np.arange(6, dtype=np.float32), mask=mask)
    np.testing.assert_array_equal(y[:, :, 3:], np.broadcast_to(np.arange(6), (3, 4, 2, 6)))
    np.testing.assert_array_equal(y[:, :, :3], run("layer_norm", x[:, :, :3], bias=np.arange(6, dtype=np.float32)))


@pytest.mark.parametrize("in_place", [False, True])
def test_what_the_policy_puts_there(run, hole, in_place):
    x, mask = hole
    x = np.nan_to_num(x, nan=7)
    weight, bias = np.float32([1, 2, 3, 4]), np.float32([10, 20, 30, 40])
    layer = nk.layer_norm(x[:1], axis=(1, 2, 3), mask=mask[:1], backend="numpy")[0, 1] * 2 + 20
    running = np.zeros(4), np.ones(4)
    for answer, expected, more in (
        ("bias", 20, {}),
        ("identity", 7 * 2 + 20, {}),
        ("layer_norm", layer, {}),
        ("running", 7 / np.sqrt(1 + 1e-5) * 2 + 20, dict(zip(("running_mean", "running_var"), running, strict=True))),
        (lambda problem: problem.x / 2, 3.5, {}),
    ):
        given = x.copy()
        out = {"out": given} if in_place else {}
        y = run("instance_norm", given, weight=weight, bias=bias, mask=mask, policy=policy(answer), **more, **out)
        np.testing.assert_allclose(y[0, 1], np.broadcast_to(expected, (5, 6)), rtol=1e-5)
        plain = run("instance_norm", x, weight=weight, bias=bias, mask=mask, policy=policy("bias"))
        mine = np.ones(SHAPE, bool)
        mine[0, 1] = False
        np.testing.assert_array_equal(y[mine], plain[mine])


def test_an_answer_that_finds_nothing_either(run, x):
    with pytest.raises(nk.DegenerateShapeError, match="finds fewer than two elements there as well"):
        run("instance_norm", x, mask=np.zeros(SHAPE, bool), policy=policy("layer_norm"))
    with pytest.raises(nk.DegenerateShapeError, match="none were given"):
        run("instance_norm", x, mask=np.zeros(SHAPE, bool), policy=policy("running"))


def test_running_statistics_learn_from_what_is_there(run, hole):
    x, mask = hole
    mean, var = np.zeros(4), np.ones(4)
    run("instance_norm", x, mean, var, mask=mask, momentum=1.0, policy=policy("bias"))
    of_channel = [x[i, 1][mask[i, 1]].astype(np.float64) for i in (1, 2)]
    np.testing.assert_allclose(mean[1], np.mean([v.mean() for v in of_channel]), rtol=1e-6)
    np.testing.assert_allclose(var[1], np.mean([v.var(ddof=1) for v in of_channel]), rtol=1e-6)


def test_an_empty_batch_with_a_mask(run):
    assert run("instance_norm", np.ones((0, 3, 4), np.float32), mask=np.zeros((1, 1, 4), bool)).shape == (0, 3, 4)


def test_a_bias_beyond_the_range_of_x_is_infinite_where_the_mask_leaves_nothing(backend):
    x, bias = np.ones((2, 3), np.float32), np.array([1e300, 1.0, 2.0])
    y = nk.layer_norm(x, bias=bias, mask=np.zeros((1, 1), bool), backend=backend)
    assert y.tolist() == [[np.inf, 1, 2]] * 2

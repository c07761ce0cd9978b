"""Calls as torch's users write them are planned as well as those in the plainest form, and give the same bits."""

import numpy as np
import pytest

import normkit as nk
from normkit.plans import forget

pytestmark = pytest.mark.usefixtures("fresh_plans")


@pytest.fixture
def only_plans(monkeypatch):
    """From here on, all that a plan does not answer fails."""
    return lambda: monkeypatch.setattr("normkit.functional.execute", None)


def bits(result):
    return [(part.shape, part.dtype, part.tobytes()) for part in (result if isinstance(result, tuple) else (result,))]


X = np.random.default_rng(0).normal(3, 2, (2, 5, 6, 7)).astype(np.float32)
WEIGHT, BIAS = np.linspace(1, 2, 7, dtype=np.float32), np.linspace(-1, 1, 7, dtype=np.float32)
TWO = np.linspace(1, 2, 42, dtype=np.float32).reshape(6, 7)
IDIOMS = {
    "a list": (lambda: nk.layer_norm(X, [7], WEIGHT, BIAS), lambda: nk.layer_norm(X, 7, WEIGHT, BIAS)),
    "a list of two": (lambda: nk.layer_norm(X, [6, 7], TWO), lambda: nk.layer_norm(X, (6, 7), TWO)),
    "a tuple of axes": (lambda: nk.layer_norm(X, None, WEIGHT, axis=(-1,)), lambda: nk.layer_norm(X, 7, WEIGHT)),
    "a list of axes": (lambda: nk.layer_norm(X, None, WEIGHT, axis=[3]), lambda: nk.layer_norm(X, 7, WEIGHT)),
    "two axes": (lambda: nk.layer_norm(X, None, TWO, axis=(-2, 3)), lambda: nk.layer_norm(X, (6, 7), TWO)),
    "two axes, turned": (lambda: nk.layer_norm(X, axis=(3, 2)), lambda: nk.layer_norm(X, (6, 7))),
    "eight axes": (
        lambda: nk.layer_norm(X.reshape(1, 1, 2, 1, 5, 1, 6, 7), 7, WEIGHT, BIAS).reshape(X.shape),
        lambda: nk.layer_norm(X, 7, WEIGHT, BIAS),
    ),
    "a weight of eight axes": (
        lambda: nk.layer_norm(
            X.reshape(1, 1, 2, 5, 1, 1, 1, 1, 6, 7), (1, 1, 1, 1, 1, 1, 6, 7)[2:], TWO.reshape(1, 1, 1, 1, 6, 7)
        ),
        lambda: nk.layer_norm(X, (6, 7), TWO).reshape(1, 1, 2, 5, 1, 1, 1, 1, 6, 7),
    ),
    "a layer": (lambda: LAYER(X), lambda: nk.layer_norm(X, (7,), WEIGHT, BIAS)),
}
LAYER = nk.LayerNorm(7)
LAYER.load_state_dict({"weight": WEIGHT, "bias": BIAS})


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idioms_are_planned(idiom, only_plans):
    call, plain = IDIOMS[idiom]
    expected = bits(plain())
    forget()
    assert bits(call()) == expected
    only_plans()
    assert bits(call()) == expected


def test_a_weight_whose_axes_are_turned_is_never_taken_for_one_in_order():
    for axis in ((2, 3), (3, 2), (2, 3), (3, 2)):
        weight = TWO if axis == (2, 3) else TWO.T
        for given in (weight, weight.copy()):
            assert bits(nk.layer_norm(X, None, given, axis=axis)) == bits(nk.layer_norm(X, (6, 7), TWO))
    square, weight = X[..., :6], np.linspace(1, 2, 36, dtype=np.float32).reshape(6, 6)
    nk.layer_norm(square, axis=(3, 2))
    for _ in range(2):
        turned = nk.layer_norm(square, None, weight, axis=(3, 2))
        assert bits(turned) == bits(nk.layer_norm(square, (6, 6), weight.T.copy()))


LAYOUTS = {
    "rows": lambda a: a,
    "gaps": lambda a: np.repeat(a, 2, 0)[::2],
    "Fortran": np.asfortranarray,
    "backwards": lambda a: a[..., ::-1],
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
}


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("masked", [False, True])
def test_statistics_are_planned(layout, dtype, masked, backend, only_plans):
    """Returned, and those of a masked call."""
    x = LAYOUTS[layout](X.astype(dtype))
    mask = np.random.default_rng(1).random(x.shape) < 0.8 if masked else None
    weight = np.linspace(1, 2, 5)

    def calls(out=None):
        for eps in (0.0, 0.5):
            options = {"return_stats": True, "mask": mask, "out": out, "eps": eps, "backend": backend}
            yield nk.layer_norm(x, **options)
            yield nk.instance_norm(x, weight=weight, **options)
            if mask is None:  # there are no plans of columns with a mask
                yield nk.layer_norm(x, None, weight, axis=1, **options)
                yield nk.instance_norm(x.swapaxes(1, 3), weight=weight, channel_axis=-1, **options | {"out": None})

    expected = [bits(result) for result in calls()]
    assert [bits(result) for result in calls()] == expected
    out = np.empty_like(x)
    again = [bits(result) for result in calls(out)]
    assert [part[1:] for part in again] == [part[1:] for part in expected]
    if backend == "numba" and layout in ("rows", "gaps"):
        only_plans()
        assert [bits(result) for result in calls()] == expected
        assert [bits(result) for result in calls(out)] == again


def running_of(dtype, channels=5):
    return np.linspace(-1, 1, channels).astype(dtype), np.linspace(1, 3, channels).astype(dtype)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("running_dtype", ["float32", "float64", "float16", ">f4"])
@pytest.mark.parametrize("n", [1, 2])
def test_running_statistics_are_planned(layout, running_dtype, n, backend, only_plans):
    """Given, and updated, with the bits of calls that are not."""
    x, last = (LAYOUTS[layout](a) for a in (X[:n], X[:n].transpose(0, 2, 3, 1).copy()))
    weight = np.linspace(1, 2, 5, dtype=np.float32)

    def call(mean, var, **options):
        y = nk.instance_norm(x, mean, var, weight, momentum=0.25, backend=backend, **options)
        z = nk.instance_norm(last, mean, var, weight, weight, channel_axis=-1, momentum=0.25, backend=backend, **options)
        return bits(y), bits(z), bits((mean, var))

    expected = []
    for options in ({"use_input_stats": False}, {}, {"return_stats": True}, {"use_input_stats": False, "return_stats": True}):
        forget()
        running = running_of(running_dtype)
        first = call(*running, **options)
        forget()
        expected.append((options, first, call(*running, **options)))
        assert (bits(running) == bits(running_of(running_dtype))) is ("use_input_stats" in options)
    forget()
    for options, *_ in expected:
        call(*running_of(running_dtype), **options)
    only_plans()
    for options, first, second in expected:
        running = running_of(running_dtype)
        assert call(*running, **options) == first
        assert call(*running, **options) == second


@pytest.mark.parametrize("training", [False, True])
def test_running_arrays_are_looked_at_each_time(training):
    x, options = X.copy(), {"use_input_stats": not training}

    def call(mean, var, out=None):
        return nk.instance_norm(x, mean, var, use_input_stats=training, out=out)

    mean, var = running_of(np.float32)
    expected = bits(call(mean.copy(), var.copy()))
    for _ in range(2):
        assert bits(call(mean.copy(), var.copy())) == expected
        assert bits(call(mean.copy(), var.copy(), np.empty_like(x))) == expected
    for wrong in (mean[:3], mean.reshape(1, 5), mean.tolist(), mean.astype(int), None, np.ma.masked_array(mean)):
        for pair in ((wrong, var.copy()), (mean.copy(), wrong)):
            with pytest.raises(nk.NormkitError):
                call(*pair)
    fixed = mean.copy()
    fixed.flags.writeable = False
    for pair in ((fixed, var.copy()), (mean.copy(), fixed), (mean, mean), (x[0, 0, 0, :5], x[0, 0, 0, 2:7])):
        forget()
        fresh_outcome = outcome(call, *pair)
        call(mean.copy(), var.copy())
        assert outcome(call, *pair) == fresh_outcome, options
    out = np.zeros_like(x)
    inside = out.reshape(-1)[:5]
    for _ in range(2):
        inside[...] = mean
        got = outcome(call, inside, var.copy(), out)
        assert got == expected[:1] if not training else got is nk.InputValueError


def outcome(call, mean, var, out=None):
    before = [np.copy(a) for a in (mean, var)]
    try:
        return bits(call(mean, var, out))
    except nk.NormkitError as error:
        return type(error)
    finally:
        for a, b in zip((mean, var), before, strict=True):
            if a.flags.writeable:
                a[...] = b


def test_layers_with_running_statistics_are_planned(only_plans):
    norm, other = (nk.InstanceNorm2d(5, affine=True, track_running_stats=True) for _ in range(2))
    for _ in range(3):
        expected = bits(norm(X)), bits(norm.state_dict()["running_var"]), bits(norm.eval()(X))
        norm.train()
    forget()
    other(X), other.eval()(X), other.train()
    only_plans()
    for _ in range(2):
        got = bits(other(X)), bits(other.state_dict()["running_var"]), bits(other.eval()(X))
        other.train()
    assert got == expected


def test_an_answer_to_one_element_goes_before_running_statistics():
    """Of all calls with running arrays, whichever were planned before."""
    one, running = X[:, :, :1, :1].copy(), running_of(np.float32)
    for answer in ("bias", "identity", "layer_norm", "running"):
        policy = nk.FallbackPolicy(single_element=answer)
        nk.instance_norm(X, *(a.copy() for a in running), policy=policy)
        results = [bits(nk.instance_norm(one, *running, policy=policy)) for _ in range(3)]
        assert results[0] == results[1] == results[2]
        assert bits(running) == bits(running_of(np.float32))
    with pytest.raises(nk.DegenerateShapeError):
        nk.instance_norm(one, *running)


def test_a_block_of_using_is_planned(only_plans):
    policy = nk.FallbackPolicy.onnx()
    with nk.using(policy=policy):
        expected = bits(nk.layer_norm(X))
    only_plans()
    for _ in range(2):
        with nk.using(policy=nk.FallbackPolicy.onnx()):
            assert bits(nk.layer_norm(X)) == expected
        assert bits(nk.layer_norm(X, policy=nk.FallbackPolicy.onnx())) == expected

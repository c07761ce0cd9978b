"""What nobody should pass, for every argument of every public callable: it works, or the error is one of normkit's own."""

import inspect
import re

import numpy as np
import pytest
from fuzz import DOCUMENTED, HOSTILE, MATRIX, Evil, evil, expected_of
from normkit.backends.numpy_backend import NumpyBackend

import normkit as nk
from normkit import registry
from normkit.arguments import shown

F32 = np.float32
X = np.arange(24, dtype=F32).reshape(2, 3, 4)
BIG = [v for v in HOSTILE if not (type(v) is int and 2**20 < v < 2**60)]  # of the others an array could be made, of 8 GB


def stats():
    return {"running_mean": np.zeros(3), "running_var": np.ones(3)}


# what to call, and with what where the hostile argument does not stand
CALLS = {
    "layer_norm": (nk.layer_norm, {"x": X, "backend": "numpy"}),
    "instance_norm": (nk.instance_norm, {"x": X, "backend": "numpy"}),
    "instance_norm, running": (nk.instance_norm, {"x": X, **stats(), "backend": "numpy"}),
    "LayerNorm": (nk.LayerNorm, {"normalized_shape": 4}),
    "InstanceNorm1d": (nk.InstanceNorm1d, {"num_features": 3, "affine": True, "track_running_stats": True}),
    "LayerNorm.__call__": (nk.LayerNorm(4).__call__, {"x": X, "backend": "numpy"}),
    "InstanceNorm1d.__call__": (nk.InstanceNorm1d(3, track_running_stats=True).__call__, {"x": X, "backend": "numpy"}),
    "InstanceNorm2d.__call__": (nk.InstanceNorm2d(2).__call__, {"x": X, "backend": "numpy"}),
    "train": (nk.LayerNorm(4).train, {}),
    "state_dict": (nk.LayerNorm(4).state_dict, {}),
    "load_state_dict": (nk.LayerNorm(4).load_state_dict, {"state": nk.LayerNorm(4).state_dict()}),
    "FallbackPolicy": (nk.FallbackPolicy, {}),
    "using": (nk.using, {}),
    "get_backend": (nk.get_backend, {}),
    "register_backend": (nk.register_backend, {}),
    "set_num_threads": (nk.set_num_threads, {}),
    "set_cache_limit": (nk.set_cache_limit, {}),
}
ARGUMENTS = [
    (name, argument)
    for name, (call, _) in CALLS.items()
    for argument in inspect.signature(call).parameters
    if argument not in ("args", "kwargs")
]


@pytest.fixture(autouse=True)
def as_it_was():
    limit, found, registered = nk.get_cache_limit(), dict(registry._found), dict(registry._registered)
    yield
    nk.set_num_threads(None)
    nk.set_cache_limit(limit)
    for now, before in ((registry._found, found), (registry._registered, registered)):
        now.clear()
        now.update(before)


def attempt(call, **arguments):
    try:
        return call(**arguments)
    except DOCUMENTED as error:
        expected_of(error)
        return None


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS, ids=[" ".join(a) for a in ARGUMENTS])
def test_every_argument(name, argument):
    call, arguments = CALLS[name]
    if name[0] in "lLiI":
        attempt(call, **arguments)  # what is kept of a proper call must not be asked about an improper one either
    for value in BIG:
        y = attempt(call, **arguments | {argument: value})
        if name.endswith(("norm", "__call__")) and argument != "x" and y is not None and not isinstance(y, tuple):
            assert y.shape == X.shape


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_every_argument_of_explain(op):
    arguments = {**inspect.signature(getattr(nk, op)).parameters, "dtype": None}
    del arguments["return_stats"]
    for argument in arguments:
        for value in HOSTILE:
            attempt(nk.explain, **{"op": op, "x": X, argument: value})
    for value in HOSTILE:
        attempt(nk.explain, op=value, x=X)
        attempt(nk.explain, op=op, x=(2, 3, value))


@pytest.mark.parametrize("value", range(len(HOSTILE)), ids=lambda i: f"{type(HOSTILE[i]).__name__}-{shown(HOSTILE[i]):.12}")
def test_every_value_in_every_place_within_an_argument(value):
    value = HOSTILE[value]
    for within in ((value,), [value], (3, value), (value, 4)):
        for argument in ("normalized_shape", "axis"):
            attempt(nk.layer_norm, x=X, backend="numpy", **{argument: within})
        attempt(nk.layer_norm, x=within)
        attempt(nk.FallbackPolicy, order=within)
        if not (type(value) is int and 2**20 < value < 2**60):
            attempt(nk.LayerNorm, normalized_shape=within)
    attempt(nk.FallbackPolicy, single_element={"layer_norm": value})
    layer = nk.InstanceNorm1d(3, affine=True, track_running_stats=True)
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    for name in before:
        attempt(layer.load_state_dict, state={**layer.state_dict(), name: value})
        attempt(layer.load_state_dict, state={name: value}, strict=False)
    for name, array in layer.state_dict().items():
        assert array.dtype == before[name].dtype
    try:
        named = {value: np.ones(3)}
    except (TypeError, ValueError, Evil):
        return  # it cannot be a name
    attempt(layer.load_state_dict, state=named)
    attempt(nk.FallbackPolicy, single_element={value: "bias"})


@pytest.mark.parametrize("attribute", ["weight", "bias", "running_mean", "running_var", "eps", "momentum", "normalized_shape"])
def test_attributes_that_a_user_has_set(attribute):
    for make in (lambda: nk.LayerNorm(4), lambda: nk.InstanceNorm1d(3, affine=True, track_running_stats=True)):
        for value in HOSTILE:
            layer = make()
            setattr(layer, attribute, value)
            attempt(layer, x=X, backend="numpy")
            attempt(layer.load_state_dict, state=make().state_dict())


@pytest.mark.parametrize("part", ["name", "family"])
def test_backends_with_odd_parts(part):
    for value in HOSTILE:
        backend = type("Backend", (NumpyBackend,), {part: value})()
        attempt(nk.register_backend, backend=backend)
        backend = type("Backend", (NumpyBackend,), {part: property(lambda self: evil("__len__").__len__())})()
        attempt(nk.register_backend, backend=backend)


T, V = nk.InputTypeError, nk.InputValueError


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: nk.layer_norm(X, eps=np.timedelta64(1, "s")), T, "eps is np.timedelta64(1,'s'), expected a real number"),
        (lambda: nk.layer_norm(X, np.timedelta64(4)), T, "normalized_shape holds np.timedelta64(4), expected an int"),
        (lambda: nk.layer_norm(X, eps=10**5000), V, "eps is an int of 16610 bits, expected a finite number"),
        (lambda: nk.layer_norm(X, mask=MATRIX > 1), T, "mask is a numpy.matrix, expected a boolean array"),
        (lambda: nk.layer_norm(X, mask=np.float32(1)), T, "mask is a numpy.float32, expected a boolean array"),
        (lambda: nk.layer_norm(X, return_stats=X), T, "return_stats is array("),
        (lambda: nk.layer_norm(X, return_stats="no"), T, "return_stats is 'no', expected True or False"),
        (lambda: nk.instance_norm(X, use_input_stats=np.ones(2)), T, "use_input_stats is array([1., 1.]), expected True or"),
        (lambda: nk.layer_norm(X, X[0, 0], X[0, 0]), T, "nk.layer_norm(x, None, weight, bias), or by name"),
        (
            lambda: nk.layer_norm(evil("__getattribute__")),
            T,
            "layer_norm: an argument could not be looked at, as that raised Evil",
        ),
        (lambda: nk.layer_norm(X, eps=evil("__repr__")), T, "eps is a Raises___repr__, expected a real number"),
        (lambda: nk.layer_norm(X, policy=evil("__hash__")), nk.PolicyError, "expected a FallbackPolicy"),
        (lambda: nk.LayerNorm(2**70), V, "LayerNorm: normalized_shape is (1180591620717411303424,), expected the shape of an"),
        (lambda: nk.LayerNorm((1,) * 70), V, "and NumPy says: maximum supported dimension for an ndarray is"),
        (lambda: nk.InstanceNorm1d(2**70, affine=True), V, "InstanceNorm1d: num_features is (1180591620717411303424,)"),
        (lambda: nk.LayerNorm(4, dtype="foo"), T, "LayerNorm: dtype is 'foo', expected one of float16, bfloat16, float32"),
        (lambda: nk.LayerNorm(4, bias=np.ones(4)), T, "LayerNorm: bias is array([1., 1., 1., 1.]), expected True or False"),
        (lambda: nk.LayerNorm(4).load_state_dict(None), T, "state is None, expected a mapping of names to arrays"),
        (lambda: nk.LayerNorm(4).load_state_dict([("weight", X)]), T, "state is a list, expected a mapping"),
        (
            lambda: nk.LayerNorm(2).load_state_dict({"weight": [[1], [2, 3]], "bias": X}),
            T,
            "weight is a list that cannot become",
        ),
        (lambda: nk.LayerNorm(2).load_state_dict({3: X}), T, "state holds the name 3, expected names that are strs"),
        (lambda: nk.LayerNorm(2).load_state_dict({}, prefix=3), T, "prefix is 3, expected a str"),
        (lambda: nk.LayerNorm(2).state_dict(3), T, "bias=True): prefix is 3, expected a str, as 'encoder.norm1.'"),
        (lambda: nk.set_num_threads(np.ones(2, int)), T, "set_num_threads: n is array([1, 1]), expected an int, or None"),
        (lambda: nk.set_num_threads(-(10**5000)), V, "set_num_threads: n is an int of 16610 bits, expected 1 or more"),
        (lambda: nk.set_cache_limit(np.timedelta64(1)), T, "set_cache_limit: nbytes is np.timedelta64(1), expected an int"),
        (
            lambda: nk.FallbackPolicy(on_fallback=np.ones(2)),
            nk.PolicyError,
            "on_fallback is array([1., 1.]), expected 'ignore'",
        ),
        (
            lambda: nk.explain("layer_norm", (2, np.timedelta64(3))),
            T,
            "explain: x is (2, np.timedelta64(3)), expected an array",
        ),
        (lambda: nk.explain("layer_norm", (2, 3), dtype="f4,,("), T, "explain: dtype is 'f4,,(', expected one of float16"),
    ],
)
def test_messages(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_flags_of_other_types():
    for yes, no in ((True, False), (np.True_, np.False_), (1, 0)):
        assert len(nk.layer_norm(X, return_stats=yes, backend="numpy")) == 3
        assert isinstance(nk.layer_norm(X, return_stats=no, backend="numpy"), np.ndarray)
        mean = np.full(3, 5.0)
        nk.instance_norm(X, mean, np.ones(3), use_input_stats=no, backend="numpy")
        assert (mean == 5).all()
        nk.instance_norm(X, mean, np.ones(3), use_input_stats=yes, backend="numpy")
        assert (mean != 5).all()


@pytest.mark.parametrize("call", [nk.set_num_threads, nk.set_cache_limit, nk.register_backend, nk.LayerNorm, nk.layer_norm])
def test_an_argument_too_few_is_pythons_business(call):
    with pytest.raises(TypeError, match=r"missing 1 required positional argument") as error:
        call()
    assert not isinstance(error.value, nk.NormkitError)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dim'"):
        nk.explain("layer_norm", X, dim=1)


def test_what_is_shown_of_an_argument():
    assert shown(1e-5) == "1e-05"
    assert shown("x" * 10_000) == "'" + "x" * 399 + "... (10002 characters)"
    assert shown(10**400) == repr(10**400)[:400] + "... (401 characters)"
    assert shown(-(10**5000)) == "an int of 16610 bits"
    assert shown(evil("__repr__")) == "a Raises___repr__"


def test_an_argument_s_own_error_is_the_cause():
    with pytest.raises(nk.InputTypeError) as error:
        nk.layer_norm(X, evil("__index__"))
    assert isinstance(error.value.__cause__, Evil)


# names


def test_using_an_unknown_backend_fails_at_once():
    with pytest.raises(nk.UnknownBackendError, match=r"backend is 'numbas', expected one of .*; did you mean 'numba'\?"):
        nk.using(backend="numbas")
    with pytest.raises(nk.PolicyError):
        nk.using(policy="onnx")


def test_using_as_a_decorator():
    @nk.using(policy=nk.FallbackPolicy.onnx())
    def erased():
        return nk.instance_norm(np.ones((2, 3, 1, 1), F32), backend="numpy")

    assert not erased().any()
    assert not erased().any()


def test_dir_shows_the_public_names():
    assert [name for name in dir(nk) if not name.startswith("__")] == sorted(nk.__all__)
    assert {"__version__", "__doc__", "__all__"} <= set(dir(nk))

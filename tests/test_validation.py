"""Hostile arguments: each gets an error of normkit's own that names op, got, expected and the cure, and nothing is touched."""

import dataclasses

import numpy as np
import pytest

import normkit as nk
from normkit import validation

F32 = np.float32
T, V = nk.InputTypeError, nk.InputValueError


class Subclass(np.ndarray):
    pass


class Stranger:
    """An array of a family that nobody serves."""

    shape, ndim, strides, dtype = (2, 3, 4), 3, (48, 16, 4), np.dtype(F32)


X = np.arange(24, dtype=F32).reshape(2, 3, 4)
EMPTY = np.empty(0, F32)

# argument values that no op can take as an array, and what the message must hold
NOT_ARRAYS = [
    (None, ["None", "expected a NumPy array", "np.asarray"]),
    ("abc", ["str", "expected a NumPy array"]),
    (b"abc", ["bytes"]),
    ([[1.0, 2.0]], ["list", "np.asarray"]),
    ((1.0, 2.0), ["tuple"]),
    (3.0, ["float"]),
    (True, ["bool"]),
    (np.float32(3), ["scalar", "np.array(["]),
    (object(), ["object"]),
    (np.ndarray, ["type"]),
    (range(3), ["range"]),
    (memoryview(b"1234"), ["memoryview"]),
    ({"a": 1}, ["dict"]),
]
NOT_PLAIN = [
    (np.ma.masked_array(X, X > 3), ["masked array", "mask=~np.ma.getmaskarray(x)"]),
    (X.view(Subclass), ["Subclass", "np.asarray"]),
    (np.rec.array([(1.0, 2)], dtype=[("a", "f4"), ("b", "i4")]), ["recarray", "np.asarray"]),
]
NOT_FLOATS = [
    (X.astype("i4"), ["int32", "astype(np.float32)"]),
    (X.astype("u1"), ["uint8", "astype(np.float32)"]),
    (X > 3, ["bool", "astype(np.float32)"]),
    (X.astype("c8"), ["complex64", ".real", ".imag"]),
    (X.astype("c16"), ["complex128", ".real"]),
    (X.astype(object), ["object", "astype(np.float64)"]),
    (X.astype("U8"), ["<U"]),
    (X.astype("S8"), ["S8"]),
    (X.astype("M8[s]"), ["datetime64"]),
    (np.zeros((2, 3, 4), [("a", "f4")]), ["'a'"]),
]
if np.dtype(np.longdouble).itemsize > 8:
    NOT_FLOATS += [(X.astype(np.longdouble), [str(np.dtype(np.longdouble)), "np.float64"])]
    NOT_FLOATS += [(X.astype(np.clongdouble), [".real"])]

ODD = NOT_ARRAYS + NOT_PLAIN + NOT_FLOATS
IDS = [f"{type(v).__name__}-{v.dtype if isinstance(v, np.ndarray) else v!r:.10}".replace(" ", "") for v, _ in ODD]


@pytest.fixture(scope="module")
def matrix():
    with pytest.warns(PendingDeprecationWarning):
        return np.matrix(np.ones((2, 3), F32))


def message(error, *parts):
    for part in parts:
        assert str(part) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("value", "parts"), ODD, ids=IDS)
@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_x_of_a_wrong_type(op, value, parts):
    with pytest.raises(T) as error:
        getattr(nk, op)(value)
    message(error, f"{op}: x ", *parts)


@pytest.mark.parametrize(("value", "parts"), [o for o in ODD if o[0] is not None], ids=[i for i in IDS if "None" not in i])
@pytest.mark.parametrize(
    ("op", "names"),
    [("layer_norm", ["weight", "bias", "out"]), ("instance_norm", ["weight", "bias", "out", "running_mean", "running_var"])],
)
def test_another_array_of_a_wrong_type(op, names, value, parts):
    for name in names:
        with pytest.raises(T) as error:
            getattr(nk, op)(X, **{name: value})
        message(error, f"{op}: {name} ", "expected")


def test_matrices(matrix):
    for call in (lambda: nk.layer_norm(matrix), lambda: nk.layer_norm(X[0], bias=matrix), lambda: nk.InstanceNorm1d(2)(matrix)):
        with pytest.raises(T) as error:
            call()
        message(error, "numpy.matrix", "expected a plain array", "np.asarray")


def test_arrays_of_a_family_that_nobody_serves():
    with pytest.raises(nk.NoBackendError) as error:
        nk.layer_norm(Stranger())
    message(error, "layer_norm", "(2, 3, 4) float32", "no backend takes", "nk.backends()")
    with pytest.raises(nk.NoBackendError, match="takes numpy arrays, and never moves"):
        nk.layer_norm(Stranger(), backend="numpy")
    with pytest.raises(T, match="weight is an array of test_validation, expected numpy as x"):
        nk.layer_norm(X, weight=Stranger())


BAD = [  # op, arguments beside x = X, the class, what the message must hold
    # rank and shape
    ("layer_norm", {"x": np.array(1.0)}, V, ["x is 0-d", "expected at least one axis", "x.reshape(1)"]),
    ("instance_norm", {"x": np.array(1.0)}, V, ["shape ()", "expected (N, C, *spatial)", "x[np.newaxis]"]),
    ("instance_norm", {"x": np.ones(3)}, V, ["shape (3,)", "expected (N, C, *spatial)", "x[np.newaxis]"]),
    ("layer_norm", {"normalized_shape": 5}, V, ["normalized_shape is (5,)", "x.shape[-1:] = (4,)"]),
    ("layer_norm", {"normalized_shape": -4}, V, ["normalized_shape is (-4,)", "(4,)"]),
    ("layer_norm", {"normalized_shape": (4, 3)}, V, ["normalized_shape is (4, 3)", "x.shape[-2:] = (3, 4)", "axis="]),
    ("layer_norm", {"normalized_shape": (1, 2, 3, 4)}, V, ["normalized_shape is (1, 2, 3, 4)", "(2, 3, 4)"]),
    ("layer_norm", {"normalized_shape": ()}, V, ["normalized_shape is empty", "expected the sizes"]),
    ("layer_norm", {"normalized_shape": []}, V, ["normalized_shape is empty"]),
    ("layer_norm", {"normalized_shape": 4.0}, T, ["normalized_shape holds 4.0", "expected an int"]),
    ("layer_norm", {"normalized_shape": "4"}, T, ["normalized_shape holds '4'", "expected an int"]),
    ("layer_norm", {"normalized_shape": (3, None)}, T, ["normalized_shape holds None"]),
    ("layer_norm", {"normalized_shape": np.ones(2)}, T, ["normalized_shape is an array of shape (2,)", "expected an int"]),
    # axis
    ("layer_norm", {"axis": 3}, V, ["axis holds 3", "-3 .. 2"]),
    ("layer_norm", {"axis": -4}, V, ["axis holds -4", "-3 .. 2"]),
    ("layer_norm", {"axis": (1, 1)}, V, ["axis is (1, 1)", "each once"]),
    ("layer_norm", {"axis": (2, -1)}, V, ["axis is (2, -1)", "each once"]),
    ("layer_norm", {"axis": ()}, V, ["axis is ()", "at least one"]),
    ("layer_norm", {"axis": 1.0}, T, ["axis holds 1.0", "expected an int"]),
    ("layer_norm", {"axis": "last"}, T, ["axis holds 'last'"]),
    ("layer_norm", {"axis": {1}}, T, ["axis holds {1}", "expected an int"]),
    ("layer_norm", {"axis": 1, "normalized_shape": 4}, V, ["both normalized_shape and axis"]),
    (
        "layer_norm",
        {"axis": (2, 1), "weight": np.ones((3, 4), F32)},
        V,
        ["weight has shape (3, 4)", "expected (4, 3)", "axis=(2, 1)"],
    ),
    ("instance_norm", {"channel_axis": 3}, V, ["channel_axis holds 3", "-3 .. 2"]),
    ("instance_norm", {"channel_axis": 0}, V, ["channel_axis=0", "the batch", "1 .. 2"]),
    ("instance_norm", {"channel_axis": -3}, V, ["channel_axis=-3", "the batch", "1 .. 2"]),
    ("instance_norm", {"channel_axis": (1, 2)}, V, ["channel_axis is (1, 2)", "expected one axis"]),
    ("instance_norm", {"channel_axis": None}, T, ["channel_axis holds None", "expected an int"]),
    # weight and bias
    ("layer_norm", {"weight": np.ones(5, F32)}, V, ["weight has shape (5,)", "expected (4,) = x.shape[-1:]"]),
    ("layer_norm", {"bias": np.ones(5, F32)}, V, ["bias has shape (5,)", "expected (4,) = x.shape[-1:]"]),
    ("layer_norm", {"weight": np.ones((3, 4), F32), "bias": np.ones(4, F32)}, V, ["bias has shape (4,)", "expected (3, 4)"]),
    ("layer_norm", {"weight": np.ones((2, 4), F32)}, V, ["weight.shape is (2, 4)", "(3, 4)"]),
    ("layer_norm", {"weight": np.ones((), F32)}, V, ["weight is 0-d", "(4,)"]),
    ("layer_norm", {"weight": np.ones(1, F32)}, V, ["weight has shape (1,)", "expected (4,)", "np.full((4,), weight.item())"]),
    ("layer_norm", {"weight": np.ones(3, F32)}, V, ["expected (4,)", "axis=1 has that size"]),
    ("instance_norm", {"weight": np.ones(4, F32)}, V, ["expected (3,)", "channel_axis=2 has that size"]),
    ("layer_norm", {"weight": np.ones((4, 1), F32), "axis": 2}, V, ["weight.reshape(4,) has it"]),
    ("layer_norm", {"bias": np.ones((4, 3), F32), "axis": (1, 2)}, V, ["bias.transpose(1, 0) has it"]),
    ("layer_norm", {"out": np.ones((2, 3), F32)}, V, ["out has shape (2, 3)", "np.empty_like(x) fits"]),
    ("layer_norm", {"mask": np.ones((2, 3), bool)}, V, ["mask has shape (2, 3)", "mask.reshape(2, 3, 1) does"]),
    ("layer_norm", {"weight": EMPTY}, V, ["weight has shape (0,)", "expected (4,)"]),
    ("layer_norm", {"normalized_shape": (3, 4), "weight": np.ones(12, F32)}, V, ["weight has shape (12,)", "expected (3, 4)"]),
    ("instance_norm", {"weight": np.ones(4, F32)}, V, ["weight has shape (4,)", "expected (3,)", "x.shape[1], the channels"]),
    ("instance_norm", {"bias": np.ones((3, 1), F32)}, V, ["bias has shape (3, 1)", "expected (3,)"]),
    ("instance_norm", {"bias": np.ones((), F32)}, V, ["bias has shape ()", "expected (3,)"]),
    # eps and momentum
    ("layer_norm", {"eps": -1e-5}, V, ["eps is -1e-05", "expected 0 or more", "1e-5"]),
    ("layer_norm", {"eps": np.nan}, V, ["eps is nan", "finite"]),
    ("layer_norm", {"eps": np.inf}, V, ["eps is inf", "finite"]),
    ("layer_norm", {"eps": 10**400}, V, ["eps is 1000", "finite"]),
    ("layer_norm", {"eps": None}, T, ["eps is None", "real number"]),
    ("layer_norm", {"eps": "1e-5"}, T, ["eps is '1e-5'", "real number"]),
    ("layer_norm", {"eps": 1e-5j}, T, ["eps is 1e-05j", "real number"]),
    ("layer_norm", {"eps": np.full(4, 1e-5)}, T, ["eps is array", "real number"]),
    ("instance_norm", {"eps": -1}, V, ["eps is -1", "expected 0 or more"]),
    (
        "instance_norm",
        {"running_mean": np.zeros(3), "running_var": np.ones(3), "momentum": None},
        T,
        ["momentum is None", "real"],
    ),
    (
        "instance_norm",
        {"running_mean": np.zeros(3), "running_var": np.ones(3), "momentum": np.nan},
        V,
        ["momentum is nan", "finite"],
    ),
    # running statistics
    ("instance_norm", {"running_mean": np.zeros(3)}, V, ["belong together", "both or neither"]),
    ("instance_norm", {"running_var": np.zeros(3)}, V, ["belong together", "both or neither"]),
    ("instance_norm", {"use_input_stats": False}, V, ["use_input_stats=False", "running_mean and running_var"]),
    (
        "instance_norm",
        {"running_mean": np.zeros(4), "running_var": np.ones(4)},
        V,
        ["running_mean has shape (4,)", "expected (3,)"],
    ),
    (
        "instance_norm",
        {"running_mean": np.zeros(3), "running_var": np.ones(4)},
        V,
        ["running_var has shape (4,)", "expected (3,)"],
    ),
    (
        "instance_norm",
        {"running_mean": np.zeros(3), "running_var": np.broadcast_to(1.0, 3)},
        V,
        ["running_var is read-only", "pass a copy"],
    ),
    # out
    ("layer_norm", {"out": np.zeros((2, 3, 5), F32)}, V, ["out has shape (2, 3, 5)", "expected (2, 3, 4) = x.shape"]),
    ("layer_norm", {"out": np.zeros((1, 2, 3, 4), F32)}, V, ["out has shape (1, 2, 3, 4)", "expected (2, 3, 4)"]),
    ("layer_norm", {"out": np.zeros((2, 3, 4))}, T, ["out has dtype float64", "expected float32 = x.dtype"]),
    ("layer_norm", {"out": np.broadcast_to(np.float32(0), (2, 3, 4))}, V, ["out is read-only"]),
    ("instance_norm", {"out": np.zeros((2, 3), F32)}, V, ["out has shape (2, 3)", "expected (2, 3, 4)"]),
    ("instance_norm", {"out": np.zeros((2, 3, 4), np.float16)}, T, ["out has dtype float16", "expected float32"]),
    # mask
    ("layer_norm", {"mask": np.ones((2, 3, 4))}, T, ["mask has dtype float64", "expected bool", "mask != 0"]),
    ("layer_norm", {"mask": np.ones((2, 3, 5), bool)}, V, ["mask has shape (2, 3, 5)", "broadcast to x.shape = (2, 3, 4)"]),
    ("layer_norm", {"mask": np.ones((2, 1), bool)}, V, ["mask has shape (2, 1)", "broadcast"]),
    ("layer_norm", {"mask": np.ones((1, 2, 3, 4), bool)}, V, ["mask has shape (1, 2, 3, 4)", "broadcast"]),
    ("layer_norm", {"mask": [True] * 4}, T, ["mask is a list", "expected a boolean array"]),
    ("layer_norm", {"mask": True}, T, ["mask is a bool", "expected a boolean array"]),
    ("layer_norm", {"mask": np.ma.masked_array(X > 3)}, T, ["mask is a numpy.ma", "expected a boolean array"]),
    ("instance_norm", {"mask": np.ones(5, bool)}, V, ["mask has shape (5,)", "broadcast"]),
    # backend and policy
    (
        "layer_norm",
        {"backend": "nunba"},
        nk.UnknownBackendError,
        ["backend is 'nunba'", "expected one of", "did you mean 'numba'?"],
    ),
    ("layer_norm", {"backend": ""}, nk.UnknownBackendError, ["backend is ''", "expected one of"]),
    ("layer_norm", {"backend": 3}, T, ["backend is 3", "numpy"]),
    ("layer_norm", {"backend": ["numpy"]}, T, ["backend is ['numpy']", "expected a name"]),
    ("instance_norm", {"backend": "NumPy"}, nk.UnknownBackendError, ["backend is 'NumPy'", "did you mean 'numpy'?"]),
    (
        "layer_norm",
        {"policy": "onnx"},
        nk.PolicyError,
        ["policy is 'onnx'", "expected a FallbackPolicy", "nk.FallbackPolicy.onnx()"],
    ),
    ("instance_norm", {"policy": nk.FallbackPolicy}, nk.PolicyError, ["expected a FallbackPolicy"]),
    (
        "instance_norm",
        {"policy": nk.FallbackPolicy(order=("nunba", "numpy"))},
        nk.UnknownBackendError,
        ["backend is 'nunba'", "did you mean 'numba'?"],
    ),
]


@pytest.mark.parametrize(
    ("op", "arguments", "kind", "parts"), BAD, ids=[f"{op}-{p[0]}".replace(" ", "_") for op, _, _, p in BAD]
)
def test_bad_argument(op, arguments, kind, parts):
    assert issubclass(kind, nk.NormkitError)
    assert issubclass(kind, TypeError | ValueError)
    arguments = {"x": X.copy(), "out": np.full((2, 3, 4), 9, F32)} | arguments
    if arguments["x"].shape != X.shape:
        del arguments["out"]
    before = {name: value.copy() for name, value in arguments.items() if isinstance(value, np.ndarray)}
    with pytest.raises(kind) as error:
        getattr(nk, op)(**arguments)
    text = message(error, *parts)
    if not isinstance(error.value, nk.UnknownBackendError | nk.PolicyError) and "backend" not in arguments:
        assert text.startswith(f"{op}: ")
    for name, value in before.items():
        np.testing.assert_array_equal(arguments[name], value)


def test_an_out_that_repeats_its_elements():
    out = np.lib.stride_tricks.as_strided(np.zeros(4, F32), (2, 3, 4), (0, 0, 4))
    with pytest.raises(V, match="elements of out lie over each other"):
        nk.layer_norm(X, out=out)


def test_a_degenerate_shape_leaves_out_and_running_statistics_alone():
    x, out = np.ones((2, 3, 1, 1), F32), np.full((2, 3, 1, 1), 9, F32)
    mean, var = np.full(3, 5.0), np.full(3, 6.0)
    with pytest.raises(nk.DegenerateShapeError):
        nk.instance_norm(x, mean, var, out=out)
    assert (out == 9).all()
    assert (mean == 5).all()
    assert (var == 6).all()


def test_an_unusable_backend_says_every_reason(monkeypatch):
    monkeypatch.setattr(type(nk.get_backend("numpy")), "why_not", lambda self, problem: ["one reason", "another reason"])
    out = np.full(X.shape, 9, F32)
    with pytest.raises(nk.NoBackendError) as error:
        nk.layer_norm(X, backend="numpy", out=out)
    message(
        error, "no backend can run layer_norm on x: (2, 3, 4) float32", "numpy: one reason", "numpy: another reason", "an order"
    )
    assert (out == 9).all()


def test_unexpected_arguments_are_pythons_business():
    with pytest.raises(TypeError):
        nk.layer_norm(X, 4, None, None, 1e-5, 1)  # axis is by name only
    with pytest.raises(TypeError):
        nk.instance_norm(X, training=True)


def test_every_error_is_also_a_builtin():
    for name in nk.__all__:
        kind = getattr(nk, name)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning):
            assert issubclass(kind, nk.NormkitError)
            assert kind is nk.NormkitError or issubclass(kind, TypeError | ValueError | NotImplementedError | ImportError)


def test_a_call_becomes_a_problem_without_arrays():
    problem, operands, running = validation.instance_norm(X, weight=np.ones(3, F32))
    assert hash(problem) == hash(dataclasses.replace(problem))
    assert problem.operands is None
    assert operands.x is X
    assert running is None
    with pytest.raises(AttributeError, match="without its arrays"):
        _ = problem.x


def test_an_out_whose_elements_overlap_is_refused():
    window = np.lib.stride_tricks.sliding_window_view(np.zeros(11, np.float32), 8, writeable=True)
    with pytest.raises(V, match="elements of out lie over each other"):
        nk.layer_norm(np.ones((4, 8), np.float32), out=window)
    for fine in (np.zeros((8, 4), np.float32).T, np.zeros((4, 16), np.float32)[::-1, ::-2], np.zeros((4, 8), np.float32)):
        assert nk.layer_norm(np.ones((4, 8), np.float32), out=fine) is fine

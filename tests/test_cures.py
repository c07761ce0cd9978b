"""Arrays of other libraries: the error names their own call, which is run here, and no digit is lost on the way.

The classes stand for those of libraries that are not installed here: same module, same names, same attributes.
"""

import re

import numpy as np
import pytest

import normkit as nk
from normkit import cures

LARGE = 1e8 + np.random.default_rng(0).normal(0, 1, (8, 64))  # one number in float32
HALF = np.random.default_rng(0).normal(0, 1, (8, 64)).astype(np.float16)


class Named:
    """A dtype of another library, with a name or a text alone."""

    def __init__(self, text, name=None):
        self.text = text
        if name:
            self.name = name

    def __str__(self):
        return self.text


def stranger(module, name, /, **members):
    return type(name, (), {"__module__": module, **members})


def torch_tensor(a, dtype=None):
    def numpy(self, *, force=False):
        assert force, "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        if str(self.dtype) == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return a

    def as_float(self):
        return torch_tensor(a.astype(np.float32))

    members = {"dtype": Named(f"torch.{dtype or a.dtype}"), "shape": a.shape, "numpy": numpy, "float": as_float}
    tensor = stranger("torch", "Tensor", **members)
    return type("Parameter", (tensor,), {"__module__": "torch.nn.parameter"})()


def pandas_series(a):
    def to_numpy(self, dtype=None, copy=False, na_value=None):
        return a if dtype is None else a.astype(dtype)

    return stranger("pandas.core.series", "Series", dtype=a.dtype, shape=a.shape, to_numpy=to_numpy)()


def pandas_frame(a, kinds=None):
    dtypes = [np.dtype(k) for k in kinds] if kinds else [a.dtype]
    frame = type(pandas_series(a))
    members = {k: v for k, v in vars(frame).items() if k not in ("dtype", "__dict__", "__weakref__")}
    return type("DataFrame", (), {**members, "__module__": "pandas.core.frame", "dtypes": dtypes})()


def polars_frame(a):
    dtypes = [Named(f"{a.dtype}".capitalize())] * 2
    return stranger("polars.dataframe.frame", "DataFrame", dtypes=dtypes, shape=a.shape, to_numpy=lambda self: a)()


def xarray_array(a):
    return stranger("xarray.core.dataarray", "DataArray", dtype=a.dtype, shape=a.shape, values=a)()


def xarray_dataset(a):
    array = xarray_array(a)
    members = {"dtypes": {"t": a.dtype}, "values": lambda self: {"t": array}.values(), "to_array": lambda self: array}
    return stranger("xarray.core.dataset", "Dataset", **members)()


def h5py_dataset(a):
    return stranger("h5py._hl.dataset", "Dataset", dtype=a.dtype, shape=a.shape, __getitem__=lambda self, key: a[key])()


def jax_array(a):
    return stranger("jaxlib._jax", "ArrayImpl", dtype=a.dtype, shape=a.shape, __array__=lambda self, *_, **__: a)()


def tensorflow_tensor(a):
    dtype = Named(f"<dtype: '{a.dtype}'>", str(a.dtype))
    return stranger("tensorflow.python.framework.ops", "EagerTensor", dtype=dtype, shape=a.shape, numpy=lambda self: a)()


def dask_array(a):
    return stranger("dask.array.core", "Array", dtype=a.dtype, shape=a.shape, compute=lambda self: a)()


MAKERS = {
    "numpy(force=True)": torch_tensor,
    "to_numpy()": pandas_series,
    "to_numpy() of a frame": pandas_frame,
    "to_numpy() of polars": polars_frame,
    "values": xarray_array,
    "to_array().values": xarray_dataset,
    "[...]": h5py_dataset,
    "np.asarray(x)": jax_array,
    "numpy()": tensorflow_tensor,
    "compute()": dask_array,
}


def cured(call, name, value):
    """What the cure in the error of `call(value)` makes of it."""
    with pytest.raises(nk.InputTypeError) as error:
        call(value)
    text = str(error.value)
    code = re.search(rf"; (.*{name}.*) makes one", text)[1]
    return eval(code, {"np": np, name: value}), code, text


@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_the_cure_keeps_every_digit(how, op):
    for values in (LARGE, LARGE.astype(np.float32), HALF):
        values = values if op == "layer_norm" else values[None]
        x, code, text = cured(getattr(nk, op), "x", MAKERS[how](values))
        assert how.partition(" of")[0] in code
        assert f"{op}: x is a " in text
        assert x.dtype == values.dtype
        np.testing.assert_array_equal(x, values)
        assert np.ptp(getattr(nk, op)(LARGE if op == "layer_norm" else LARGE[None], backend="numpy")) > 1
        getattr(nk, op)(x, backend="numpy")


@pytest.mark.parametrize("how", MAKERS)
def test_the_cure_of_integers_is_float64(how):
    numbers = np.arange(24).reshape(4, 6) + 2**40
    x, _, _ = cured(nk.layer_norm, "x", MAKERS[how](numbers))
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, numbers)


@pytest.mark.parametrize("argument", ["weight", "bias", "out"])
def test_the_cure_names_the_argument(argument):
    x = np.ones((3, 4))
    value, code, _ = cured(lambda v: nk.layer_norm(x, **{argument: v}), argument, torch_tensor(np.ones(4)))
    assert code == f"{argument}.numpy(force=True)"
    assert value.shape == (4,)


def test_a_tensor_of_bfloat16():
    """NumPy does not have it, and torch says so."""
    x, code, _ = cured(nk.layer_norm, "x", torch_tensor(HALF, "bfloat16"))
    assert code == "x.float().numpy(force=True)"
    assert x.dtype == np.float32


def test_columns_of_several_dtypes():
    assert cured(nk.layer_norm, "x", pandas_frame(LARGE, ["float32", "float64"]))[1] == "x.to_numpy()"
    code = "x.to_numpy(dtype=np.float64, na_value=np.nan)"
    assert cured(nk.layer_norm, "x", pandas_frame(LARGE, ["float32", "int64"]))[1] == code


@pytest.mark.parametrize(
    "value", [[[1e8, 1e8 + 1]], ((1e8, 1e8 + 1),), range(2**30, 2**30 + 4), memoryview(np.ones(4, np.float32))]
)
def test_numbers_without_a_dtype(value):
    x, code, _ = cured(nk.layer_norm, "x", value)
    assert code == "np.asarray(x, dtype=np.float64)"
    np.testing.assert_array_equal(x, value)


def test_complex_tensors_are_not_made_real():
    with pytest.raises(nk.InputTypeError, match=r"normalize x\.real and x\.imag apart"):
        nk.layer_norm(torch_tensor(np.ones((2, 3), complex)))


def test_a_tensor_in_a_state():
    class Broken(type(jax_array(np.ones(3)))):
        def __array__(self, *_, **__):
            raise RuntimeError("deleted")

    with pytest.raises(nk.InputTypeError, match=r"weight is a .*Broken that cannot become an array: RuntimeError\('deleted'\)"):
        nk.LayerNorm(3).load_state_dict({"weight": Broken(), "bias": np.ones(3)})


def test_articles():
    assert cures.kind_of(3) == "an int"
    assert cures.kind_of([]) == "a list"
    assert cures.kind_of(None) == "None"
    assert cures.kind_of(object()) == "an object"

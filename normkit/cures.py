"""How to make a NumPy array of what is none, by the call of the library that it comes from, and without losing digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLOATS = ("float16", "bfloat16", "float32", "float64")

# How each library makes a NumPy array of its own. What is not named here is taken by np.asarray.
CALLS = {
    "torch": "{}.numpy(force=True)",
    "tensorflow": "{}.numpy()",
    "paddle": "{}.numpy()",
    "pandas": "{}.to_numpy()",
    "polars": "{}.to_numpy()",
    "xarray": "{}.values",
    "h5py": "{}[...]",
    "zarr": "{}[...]",
    "netCDF4": "{}[...]",
    "dask": "{}.compute()",
    "scipy": "{}.toarray()",
}


def kind_of(value: object) -> str:
    """What a thing is, with its article."""
    if value is None:
        return "None"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def cure(name: str, value: Any) -> str:
    """The code that makes a plain array of floats of `value`, whose name is `name`, and what it does."""
    packages = [cls.__module__.partition(".")[0] for cls in type(value).__mro__]
    package = next((p for p in packages if p in CALLS), None)
    dtypes = _dtypes(value)
    if package == "polars":  # whose dtypes are named like classes
        dtypes = {dtype.lower() for dtype in dtypes}
    if not dtypes and package is None:
        return f"np.asarray({name}, dtype=np.float64) makes one of numbers"
    if any(dtype.startswith("complex") for dtype in dtypes):
        return f"normalize {name}.real and {name}.imag apart"
    code = CALLS.get(package or "", "np.asarray({})").format(name)
    if package == "xarray" and not hasattr(value, "dtype"):  # a Dataset, whose `values` is a dict's
        code = f"{name}.to_array().values"
    if package == "torch" and "bfloat16" in dtypes:  # which NumPy itself does not have
        code = CALLS["torch"].format(f"{name}.float()")
    if not dtypes <= set(FLOATS):
        code = f"{name}.to_numpy(dtype=np.float64, na_value=np.nan)" if package == "pandas" else f"{code}.astype(np.float64)"
    return f"{code} makes one"


def _dtypes(value: Any) -> set[str]:
    """The names of the dtypes of a thing's elements; none if it does not tell."""
    if hasattr(value, "dtype"):
        dtypes = [value.dtype]
    else:
        columns = getattr(value, "dtypes", ())  # of a table
        dtypes = list(columns.values() if isinstance(columns, Mapping) else columns)
    return {getattr(dtype, "name", None) or str(dtype).rpartition(".")[2] for dtype in dtypes}


def cast(name: str, value: Any) -> str:
    """The code that makes an array of one of our dtypes of an array of another one."""
    match value.dtype.kind:
        case "c":
            return f"normalize {name}.real and {name}.imag apart"
        case "f":
            return f"{name}.astype(np.float64) is the widest that is served"
        case "b" | "i" | "u":
            return f"{name}.astype(np.float32) holds integers up to 2**24 exactly, np.float64 up to 2**53"
        case _:
            return f"{name}.astype(np.float64) works if its elements are numbers"


def like(x: Any) -> str:
    """The code that makes an output for x."""
    package = type(x).__module__.partition(".")[0]
    return f"{'np' if package in ('numpy', 'normkit') else package}.empty_like(x) fits"

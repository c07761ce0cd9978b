"""The one home of compiling: a kernel for the dtypes of a call, compiled on first use, called without Numba's dispatcher.

A dispatcher looks at every argument of every call. Here the types are known beforehand, so the compiled entry point is
called directly. It trusts its arguments. Of an array it takes the address, see `objects`; where that cannot be read, or each
access is checked, the array with its shape and strides, of MAX_NDIM axes: one of more would be written past its place, so none
is sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numba.core import config, types
from numba.core.compiler_lock import global_compiler_lock

from normkit import forks, plans
from normkit.interrupts import undisturbed

from . import background, cache, column_kernels, guard_kernels, row_kernels, threads, tile_kernels
from .objects import OBJECT, Memory, by_address

MAX_NDIM = 6

Kernel = Callable[..., Any]

_TYPES: dict[str, Any] = {"float32": types.float32, "float64": types.float64, "float16": types.uint16, "bfloat16": types.int16}
# Kernels: one for all dtypes; those that most calls run on; those of calls on long rows that no view can take as they lie
ONCE = ("alike",)
MOST = tuple(f"{name}_{how}" for name in ("rows", "columns", "masked_rows", "masked_columns")
             for how in ("serial", "parallel", "split"))  # fmt: skip
SELDOM = ("tile_moments", "masked_tile_moments", "tile_merge", "tile_apply")
_MODULES = (row_kernels, column_kernels, tile_kernels, guard_kernels)
_compiled: dict[tuple[str, np.dtype[Any]], Kernel] = {}  # not by the dtype's name, which NumPy makes anew in 1.4 µs
_absent: set[tuple[str, np.dtype[Any]]] = set()  # on disk, when it was looked for
_lock = threading.RLock()
forks.wait_for(_lock)
forks.wait_for(global_compiler_lock)


def kernel(name: str, dtype: np.dtype[Any]) -> Kernel:
    """The kernel of that name for x of that dtype."""
    found = _compiled.get((name, dtype))
    if found is not None:
        return found
    if global_compiler_lock.is_locked():  # type: ignore[no-untyped-call]
        return _get(name, dtype)  # it may be this thread that holds it, and another would wait for ever
    return undisturbed(lambda: _get(name, dtype))


def soon(name: str, dtype: np.dtype[Any], meanwhile: str | None = None) -> Kernel | None:
    """The kernel, or None if it would have to be compiled first: then another thread does so.

    What serves `meanwhile` is compiled before that, here, as only one thread can compile.
    """
    key = name, dtype
    found = _compiled.get(key)
    if found is not None:
        return found
    if config.DISABLE_JIT or not background.allowed():
        return kernel(name, dtype)
    # What is being compiled is not waited for, nor by this thread for itself
    if key not in _absent and not global_compiler_lock.is_locked() and _lock.acquire(blocking=False):  # type: ignore[no-untyped-call]
        try:
            found = undisturbed(lambda: _load(name, dtype))
        finally:
            _lock.release()
        if found is not None:
            return found
        _absent.add(key)
    if meanwhile is not None:
        kernel(meanwhile, dtype)
    return None if background.compile_later(key, lambda: _replaced(name, dtype)) else kernel(name, dtype)


def _replaced(name: str, dtype: np.dtype[Any]) -> None:
    """Compile a kernel, for which another serves; what has been planned with that is planned anew."""
    _get(name, dtype)
    plans.forget()


def _get(name: str, dtype: np.dtype[Any]) -> Kernel:
    with _lock:
        return _compiled.get((name, dtype)) or _load(name, dtype) or _compile(name, dtype)


def _load(name: str, dtype: np.dtype[Any]) -> Kernel | None:
    """A kernel as an earlier process has compiled it."""
    if config.DISABLE_JIT:
        return None
    signature = _signature(_dispatcher(name).py_func, dtype, masked=name.startswith("masked"))
    if name.endswith(("_parallel", "_split")):
        threads.layer()  # loads it as we want it, before Numba does
    with global_compiler_lock:
        entry = cache.load(name, signature)
    return None if entry is None else _ready(name, dtype, entry, signature)


def _compile(name: str, dtype: np.dtype[Any]) -> Kernel:
    dispatcher = _dispatcher(name)
    if config.DISABLE_JIT:
        _compiled[name, dtype] = cast(Kernel, np.errstate(all="ignore")(dispatcher))  # as compiled code has it
        return _compiled[name, dtype]
    signature = _signature(dispatcher.py_func, dtype, masked=name.startswith("masked"))
    with global_compiler_lock:
        dispatcher.compile(signature)
        result = dispatcher.overloads[signature]
        cache.save(name, signature, result)
    return _ready(name, dtype, result.entry_point, signature)


def _dispatcher(name: str) -> Any:
    return next(getattr(module, name) for module in _MODULES if hasattr(module, name))


def _ready(name: str, dtype: np.dtype[Any], entry: Kernel, signature: tuple[Any, ...]) -> Kernel:
    _compiled[name, dtype] = _sized(entry, signature) if config.BOUNDSCHECK else entry
    return _compiled[name, dtype]


def _sized(entry: Kernel, signature: tuple[Any, ...]) -> Kernel:
    """The kernel, given arrays of exactly the axes that it was compiled for: to check an index takes a size to check it by."""

    def checked(*args: Any) -> None:
        entry(*(
            a.reshape(a.shape + (1,) * (MAX_NDIM - a.ndim)) if getattr(t, "ndim", 0) == MAX_NDIM else a
            for a, t in zip(args, signature, strict=True)
        ))  # fmt: skip

    return checked


@lru_cache
def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether there are kernels for it, and it is a half type."""
    return dtype.itemsize == 2 and dtype.isnative and dtype.name in _TYPES


def parameter_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that weight and bias must have beside x: that of the arithmetic."""
    return np.dtype(np.float64 if dtype.name == "float64" else np.float32)


def _array(dtype: Any, ndim: int = MAX_NDIM) -> Any:
    """The type of an array whose address is all that kernels use; whose extent they use too, if accesses are checked."""
    return Memory(dtype) if by_address() else types.Array(dtype, ndim, "C")


def _signature(function: Any, dtype: np.dtype[Any], masked: bool) -> tuple[Any, ...]:
    x, parameter = _array(_TYPES[dtype.name]), _array(_TYPES[parameter_dtype(dtype).name])
    statistic, mask_type = _array(types.float64), _array(types.boolean) if masked else types.none
    by_name = {
        "x": x,
        "out": x,
        "weight": parameter,
        "bias": parameter,
        "mean": statistic,
        "var": statistic,
        "shape": _array(types.int64, 1),
        "eps": types.float64,
        "chunks": types.intp,
        "taken": _array(types.int64, 1),
        "scratch": types.Array(types.float64, 2, "C"),
        "mask": mask_type,
        "yes": mask_type,
        "work": statistic,
        "factors": parameter,
        "places": types.Array(types.intp, 3, "C"),
        "start": types.intp,
        "stop": types.intp,
        **dict.fromkeys(guard_kernels.OBJECTS, OBJECT),
    }
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return tuple(by_name[name] for name in names)

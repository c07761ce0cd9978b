"""Recognizes a call like an earlier one, and repeats it: whether its arrays are of the kinds that a plan was made for.

A kind is a type, dtype, sizes and strides. To look these up takes Python longer than a small call should last, so compiled
code reads them where NumPy's C API has them, once a look at an array has shown that they are there. Elsewhere, as without the
GIL, Python compares.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit import pool
from normkit.problem import Kind, Operands, kind, of_kind

from .compiling import kernel
from .guard_kernels import MOST_AXES
from .objects import readable
from .sets import converted


def recognizer(x: Any, weight: Any, bias: Any, out: Any) -> tuple[Callable[..., bool], Any, tuple[Kind, ...]]:
    """(alike, known, kinds): whether arrays are like these, and out may be written as it is, is `alike(*arrays, known)`.

    `kinds` must live as long as `known`, which holds the addresses of their dtypes.
    """
    kinds = tuple(kind(a) for a in (x, weight, bias, out))
    if not readable() or any(len(k.shape) > MOST_AXES for k in kinds):
        return _alike, kinds, kinds
    known = np.array([_words(k, in_place=k is kinds[0] and k.strides == kinds[3].strides) for k in kinds], np.int64)
    return kernel("alike", np.dtype(np.float32)), known, kinds


def repeating(
    operands: Operands, given_out: NDArray[Any] | None, parameter: np.dtype[Any], size: int, run: Callable[..., None]
) -> Callable[..., Any]:
    """`again(x, weight, bias, out)`: run(x, out, weight, bias) where the arrays are of the kinds of these, else None.

    Weight and bias are handed over contiguous and of dtype `parameter`; ones and zeros, `size` of them, where there are none.
    What `again` is given beyond these is handed over as it is.
    """
    x, given = operands.x, [p for p in (operands.weight, operands.bias) if p is not None]
    convert = any(p.dtype != parameter or not p.flags.c_contiguous for p in given)
    ones, zeros = np.ones(size, parameter), np.zeros(size, parameter)
    alike, known, kinds = recognizer(x, operands.weight, operands.bias, given_out)
    empty = np.empty if x.nbytes < pool.SMALLEST else pool.empty
    sizes, dtype = x.shape, x.dtype

    def again(x: Any, weight: Any, bias: Any, out: Any, *more: Any, kinds: Any = kinds) -> Any:
        if not alike(x, weight, bias, out, known):
            return None
        weight, bias = ones if weight is None else weight, zeros if bias is None else bias
        if convert:
            weight, bias = converted(weight, parameter), converted(bias, parameter)
        if out is None:
            out = empty(sizes, dtype)
        run(x, out, weight, bias, *more)
        return out

    return again


def _words(k: Kind, in_place: bool) -> list[int]:
    """A kind as compiled code reads it. `in_place`: an `out` that begins where this does is, element on element, the same."""
    pad = (0,) * (MOST_AXES - len(k.shape))
    if k.dtype is None:
        return [id(k.type), 0, 0, 0, 0, 0, *pad, *pad]
    reach = [step * (n - 1) for step, n in zip(k.strides, k.shape, strict=True)] if prod(k.shape) > 0 else []
    low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + k.dtype.itemsize
    return [id(k.type), id(k.dtype), len(k.shape), low, high, in_place, *k.shape, *pad, *k.strides, *pad]


def _alike(x: Any, weight: Any, bias: Any, out: Any, kinds: tuple[Kind, ...]) -> bool:
    """As the compiled `alike`."""
    given = (x, weight, bias, out)
    if not all(map(of_kind, given, kinds)):
        return False
    if out is None:
        return True
    in_place = out.ctypes.data == x.ctypes.data and out.strides == x.strides
    others = [a for a in (None if in_place else x, weight, bias) if a is not None]
    return bool(out.flags.writeable) and not any(np.may_share_memory(out, a) for a in others)

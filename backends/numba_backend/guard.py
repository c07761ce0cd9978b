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
from normkit.constants import constant, is_kept
from normkit.problem import Kind, Operands, kind, native, of_kind

from .compiling import MAX_NDIM, soon
from .guard_kernels import MOST_AXES
from .kernels import NO_BIAS
from .objects import by_address, readable
from .sets import UNUSED, converted


def recognizer(x: Any, weight: Any, bias: Any, out: Any) -> tuple[Callable[..., bool], Any, tuple[Kind, ...]]:
    """(alike, known, kinds): whether arrays are like these, and out may be written as it is, is `alike(*arrays, known)`.

    `kinds` must live as long as `known`, which holds the addresses of their dtypes.
    """
    kinds = tuple(kind(a) for a in (x, weight, bias, out))
    compiled = soon("alike", np.dtype(np.float32)) if readable() and all(len(k.shape) <= MOST_AXES for k in kinds) else None
    if compiled is None:
        return _alike, kinds, kinds
    known = np.array([_words(k, in_place=k is kinds[0] and k.strides == kinds[3].strides) for k in kinds], np.int64)
    return compiled, known, kinds


class Parameters:
    """Weight and bias of the calls that are like one, as kernels take them."""

    def __init__(self, operands: Operands, dtype: np.dtype[Any], size: int) -> None:
        """Of so many elements each, of that dtype. Where only one is given, there are as many ones or zeros."""
        given = [p for p in (operands.weight, operands.bias) if p is not None]
        self.dtype = dtype
        self.convert = any(not _as_taken(p, dtype) for p in given)
        self.weight = constant(1, size, dtype) if operands.weight is None else None
        self.bias = constant(NO_BIAS, size, dtype) if operands.bias is None else None
        self.kept = len(given) != 1 or is_kept(size, dtype)  # else a plan would hold an array as large as the one that is given

    def converted(self, weight: NDArray[Any], bias: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Contiguous, and of the dtype of the arithmetic."""
        return converted(weight, self.dtype).reshape(-1), converted(bias, self.dtype).reshape(-1)


def _as_taken(parameter: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether kernels take it as it is."""
    return parameter.dtype == dtype and parameter.flags.c_contiguous and (by_address() or parameter.ndim <= MAX_NDIM)


def repeating(
    operands: Operands, given_out: NDArray[Any] | None, parameter: np.dtype[Any], size: int, run: Callable[..., None]
) -> Callable[..., Any] | None:
    """`again(x, weight, bias, out)`: run(x, out, weight, bias, ...) where the arrays are of the kinds of these, else None.

    Weight and bias are handed over contiguous and of dtype `parameter`; ones and zeros, `size` of them, where there are none.
    What `again` is given beyond these (mask, mean, var) is handed over as it is. None if it would have to hold as many ones or
    zeros itself.
    """
    x, parameters = operands.x, Parameters(operands, parameter, size)
    if not parameters.kept:
        return None
    ones, zeros, convert = parameters.weight, parameters.bias, parameters.convert
    alike, known, kinds = recognizer(x, operands.weight, operands.bias, given_out)
    empty = np.empty if x.nbytes < pool.SMALLEST else pool.empty
    sizes, dtype = x.shape, native(x.dtype)

    def again(
        x: Any, weight: Any, bias: Any, out: Any, mask: Any = None, mean: Any = UNUSED, var: Any = UNUSED, kinds: Any = kinds
    ) -> Any:
        if not alike(x, weight, bias, out, known):
            return None
        weight, bias = ones if weight is None else weight, zeros if bias is None else bias
        if convert:
            weight, bias = parameters.converted(weight, bias)
        if out is None:
            out = empty(sizes, dtype)
        run(x, out, weight, bias, mask, mean, var)
        return out

    return again


def _words(k: Kind, in_place: bool) -> list[int]:
    """A kind as compiled code reads it. `in_place`: an `out` that begins where this does is, element on element, the same."""
    pad = (0,) * (MOST_AXES - len(k.shape))
    if k.dtype is None:
        return [id(k.type), 0, 0, 0, 0, 0, 0, 0, *pad, *pad]
    reach = [step * (n - 1) for step, n in zip(k.strides, k.shape, strict=True)] if prod(k.shape) > 0 else []
    low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + k.dtype.itemsize
    dtype = id(k.dtype), id(type(k.dtype)), not k.dtype.isnative
    return [id(k.type), *dtype, len(k.shape), low, high, in_place, *k.shape, *pad, *k.strides, *pad]


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

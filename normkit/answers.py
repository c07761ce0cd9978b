"""What the policy's answers need no statistics for: x * weight + bias, and the bias, by NumPy, at about the speed of a copy.

No kernel could be much faster, nothing has to be compiled, and every backend for NumPy arrays gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from normkit.problem import Array, Operands, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray  # 1 ms at run time

BLOCK = 1 << 18  # bytes: what has been written is still in cache when it is read again


def prepared(answer: str, problem: Problem) -> Callable[[Operands], None] | None:
    """What fills `out` as the answer says, in place of a backend; None where a backend has to."""
    if problem.family != "numpy" or answer not in ("identity", "bias"):
        return None
    return partial(_identity if answer == "identity" else _erased, problem)


def shift(problem: Problem, operands: Operands) -> Array:
    """The bias, or 0 without one, as it broadcasts to x: a copy, as `out` may lie over it."""
    if operands.bias is None:
        return zeros((1,) * len(problem.shape), operands.x)
    return operands.bias.reshape(problem.affine_shape).copy()


def zeros(shape: tuple[int, ...], x: Array) -> Array:
    """Of x's family, if NumPy can ask for it; else no backend will take x, and that is what will be said."""
    return np.zeros(shape, like=x if hasattr(x, "__array_function__") else None)


def _identity(problem: Problem, operands: Operands) -> None:
    """x * weight + bias."""
    if operands.weight is None and operands.bias is None:
        operands.out[...] = operands.x  # the sign of 0 as well
    else:
        _affine(problem, operands, [])


def _erased(problem: Problem, operands: Operands) -> None:
    """(x - x) * weight + bias: the bias, but NaN for NaN and Inf. Statistics, if wanted, are those of single elements."""
    with np.errstate(all="ignore"):
        if operands.mean is not None:
            operands.mean[...] = operands.x
            np.subtract(operands.mean, operands.mean, out=operands.var)
        if operands.weight is not None and np.isfinite(operands.weight.sum()):  # so all of it is
            operands = replace(operands, weight=None)
    _affine(problem, operands, [np.subtract])


def _affine(problem: Problem, operands: Operands, steps: list[np.ufunc]) -> None:
    """Some steps with x itself, then times weight, plus bias.

    In x's dtype if weight and bias have it, as NumPy does; otherwise, and of halves, in float64, and rounded once.
    """
    x, out = operands.x, operands.out
    parameters = [p for p in (operands.weight, operands.bias) if p is not None]
    steps = [*steps, *[np.multiply] * (operands.weight is not None), *[np.add] * (operands.bias is not None)]
    dtype = out.dtype.newbyteorder("=")
    narrow = dtype.itemsize < 4 or any(p.dtype.newbyteorder("=") != dtype for p in parameters)
    if narrow:
        dtype = np.dtype(np.float64)
    most = max(1, BLOCK // dtype.itemsize)
    buffer = np.empty(min(most, x.size) if narrow else 0, dtype)
    with np.errstate(all="ignore"):
        spread = [p.reshape(problem.affine_shape) for p in parameters]
        if x.size > most:
            spread = [np.broadcast_to(p, x.shape) for p in spread]
        others = [x] * (len(steps) - len(spread)) + spread
        for block in _blocks(x, most) if x.size > most else [()]:
            there = out[block]
            y, before = buffer[: there.size].reshape(there.shape) if narrow else there, x[block]
            for step, other in zip(steps, others, strict=True):
                before = step(before, other[block], out=y, dtype=dtype)
            if narrow:
                there[...] = y


def _blocks(x: NDArray[Any], most: int) -> Iterator[tuple[slice, ...]]:
    """Indices of the parts of x, so many elements each at most, as they follow each other in memory."""
    order = sorted(range(x.ndim), key=lambda a: -abs(x.strides[a]))
    yield from _parts(x.shape, order, (slice(None),) * x.ndim, most)


def _parts(shape: tuple[int, ...], order: list[int], block: tuple[slice, ...], most: int) -> Iterator[tuple[slice, ...]]:
    size = prod(shape)
    if size <= most:
        yield block
        return
    axis, *order = order
    step = max(1, most * shape[axis] // size)
    for i in range(0, shape[axis], step):
        n = min(step, shape[axis] - i)
        part, inside = (*shape[:axis], n, *shape[axis + 1 :]), (*block[:axis], slice(i, i + n), *block[axis + 1 :])
        yield from _parts(part, order, inside, most)

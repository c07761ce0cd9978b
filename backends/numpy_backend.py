"""The reference backend: reads like the formula, for any layout, axes, dtype and mask, with float64 statistics."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.problem import Operands, Problem, native

Floats = NDArray[np.float64]


class NumpyBackend:
    """Plain NumPy. Always there, never in a hurry."""

    name = "numpy"
    family = "numpy"

    def why_not(self, problem: Problem) -> list[str]:
        return []

    def prepare(self, problem: Problem) -> Callable[[Operands], None]:
        return lambda operands: normalize(problem, operands)

    def empty_like(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.empty_like(x, dtype=native(x.dtype), subok=False)

    def empty_stats(self, shape: tuple[int, ...]) -> Floats:
        return np.empty(shape, np.float64)

    def describe_layout(self, problem: Problem) -> str:
        return "any: x is copied as a whole to float64, in which plain NumPy takes one step after another"

    def describe(self) -> dict[str, str]:
        return {"version": np.__version__}


def load() -> NumpyBackend:
    """The backend, for the registry."""
    return NumpyBackend()


def normalize(problem: Problem, operands: Operands) -> None:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, one rounding to the output dtype."""
    with np.errstate(all="ignore"):  # NaN and Inf in the input are the caller's, and belong in the output
        x = operands.x.astype(np.float64)
        if problem.statistics == "given":
            mean, var = operands.mean, operands.var
            deviation = x - mean
        else:
            mean, deviation, var = moments(x, problem.axes, operands.mask)
            if operands.mean is not None and operands.var is not None:
                operands.mean[...], operands.var[...] = mean, var
        std = np.sqrt(var + problem.eps)
        y = np.divide(
            deviation, std, out=deviation - deviation, where=std != 0
        )  # eps = 0 and no variance: 0; NaN of NaN and Inf
        if operands.weight is not None:
            y *= operands.weight.astype(np.float64).reshape(problem.affine_shape)
        if operands.bias is not None:
            y += operands.bias.astype(np.float64).reshape(problem.affine_shape)
        operands.out[...] = y


def moments(x: Floats, axes: tuple[int, ...], mask: NDArray[np.bool_] | None = None) -> tuple[Floats, Floats, Floats]:
    """Mean, deviations from it, and biased variance over `axes`, where the mask is True; NaN of no elements.

    Two passes, after a shift by the largest element, so that a constant has exactly no variance. The deviations from the
    rounded mean have a small mean of their own, which is fed back.
    """
    chosen: Any = True if mask is None else mask
    count = np.sum(np.broadcast_to(chosen, x.shape), axis=axes, keepdims=True)
    shift = np.max(x, axis=axes, keepdims=True, where=chosen, initial=-np.inf)
    mean = _total(x - shift, axes, mask) / count
    deviation = (x - shift) - mean
    residue = _total(deviation, axes, mask) / count
    deviation -= residue
    var = _total(np.square(deviation), axes, mask) / count
    return shift + (mean + residue), deviation, var


def _total(values: Floats, axes: tuple[int, ...], mask: NDArray[np.bool_] | None) -> Floats:
    """Sums over `axes`, kept as 1. Each set is laid out on its own first, since NumPy's order of adding follows the memory."""
    if mask is not None:
        values = np.where(mask, values, 0.0)
    kept = [a for a in range(values.ndim) if a not in axes]
    shape = [values.shape[a] for a in kept]
    sets = np.ascontiguousarray(values.transpose(*kept, *axes))
    total = sets.reshape(prod(shape), prod(values.shape[a] for a in axes)).sum(axis=1)
    return np.expand_dims(total.reshape(shape), axes)

"""The formula in array-API terms: serves what the kernels do not (masks, interleaved axes), and runs on any such library.

Nothing here is CuPy's own, so the same lines are tested on NumPy and on array-api-strict, without a GPU.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from normkit.problem import Array, Operands, Problem


class Result(NamedTuple):
    """All float64; mean and var of `Problem.stats_shape`, or as they were given."""

    y: Array
    mean: Array
    var: Array


def normalize(xp: Any, problem: Problem, operands: Operands) -> Result:
    """y = (x - mean) / sqrt(var + eps) * weight + bias in float64, not yet rounded; nothing is written."""
    x = _float64(xp, operands.x)
    if problem.statistics == "given":
        mean, var = operands.mean, operands.var
        deviation = x - mean
    else:
        mean, deviation, var = moments(xp, x, problem.axes, operands.mask)
    std = xp.sqrt(var + problem.eps)
    y = xp.where(std == 0, deviation - deviation, deviation / xp.where(std == 0, xp.ones_like(std), std))
    if operands.weight is not None:
        y = y * xp.reshape(_float64(xp, operands.weight), problem.affine_shape)
    if operands.bias is not None:
        y = y + xp.reshape(_float64(xp, operands.bias), problem.affine_shape)
    return Result(y, mean, var)


def moments(xp: Any, x: Array, axes: tuple[int, ...], mask: Array | None = None) -> tuple[Array, Array, Array]:
    """Mean, deviations from it, and biased variance over `axes`, where the mask is True; NaN of no elements.

    After a shift by the largest element, so that a constant has exactly no variance; the deviations from the rounded mean
    have a small mean of their own, which is fed back.
    """
    if math.prod(x.shape) == 0:
        nothing = xp.full(tuple(1 if a in axes else n for a, n in enumerate(x.shape)), math.nan, dtype=xp.float64)
        return nothing, x, nothing
    if mask is None:
        chosen, count = None, math.prod(x.shape[a] for a in axes)
    else:
        chosen = xp.broadcast_to(mask, x.shape)
        count = xp.sum(_float64(xp, chosen), axis=axes, keepdims=True)
    zero = xp.zeros_like(x)

    def mean_of(values: Array) -> Array:
        kept = values if chosen is None else xp.where(chosen, values, zero)
        return xp.sum(kept, axis=axes, keepdims=True) / count

    shift = xp.max(x if chosen is None else xp.where(chosen, x, zero - math.inf), axis=axes, keepdims=True)
    mean = mean_of(x - shift)
    deviation = (x - shift) - mean
    residue = mean_of(deviation)
    deviation = deviation - residue
    return shift + (mean + residue), deviation, mean_of(deviation * deviation)


def _float64(xp: Any, array: Array) -> Array:
    return xp.astype(array, xp.float64)

"""Whether a mask leaves something of every set: if not, the policy is asked."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from normkit.problem import Array, Problem

LOOK = 16  # elements of a mask in each set


def empty_sets(problem: Problem, mask: Array) -> Array | None:
    """Where, in the shape of the statistics, the mask leaves no element; None if that is nowhere."""
    if prod(problem.shape) == 0:
        return None
    mask = mask.reshape((1,) * (len(problem.shape) - mask.ndim) + mask.shape)
    if isinstance(mask, np.ndarray) and _all_show_soon(mask, problem.axes):  # elsewhere each look would wait for the device
        return None
    empty = ~mask.any(axis=problem.axes, keepdims=True)
    return empty if empty.any() else None


def _all_show_soon(mask: Array, axes: tuple[int, ...]) -> bool:
    """Whether every set has a True among its first elements: that settles most masks without looking at all of them."""
    axis = max(axes, key=lambda a: mask.shape[a], default=None)
    if axis is None or prod(mask.shape[a] for a in axes) < LOOK:
        return False
    if mask.strides[-1] == 1 and mask.ndim - 1 in axes and mask.shape[-1] >= 8:  # eight of them as one number
        first = mask[..., :8][tuple(0 if a in axes else slice(None) for a in range(mask.ndim - 1))]
        if first.view(np.uint64).all():
            return True
    seen: Any = False
    for i in range(min(LOOK, mask.shape[axis])):
        seen = seen | mask[tuple(i if a == axis else 0 if a in axes else slice(None) for a in range(mask.ndim))]
        if seen.all():
            return True
    return False

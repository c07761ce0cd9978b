"""Whether a mask leaves two elements or more of every set: fewer are degenerate statistics, and the policy is asked."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from normkit.problem import Array, Problem

LOOK = 16  # elements of a mask in each set
LINE = 64  # where they are neighbours: those of a cache line
LOWEST_BITS = np.uint64(0x0101010101010101)  # of eight elements of a mask; True is 1


class Degenerate(NamedTuple):
    """Where a mask leaves too little: booleans that broadcast to the shape of the statistics."""

    empty: Array  # no element is left
    single: Array  # one is

    @property
    def either(self) -> Array:
        return self.empty | self.single


def degenerate_sets(problem: Problem, mask: Array) -> Degenerate | None:
    """Where the mask leaves fewer than two elements of a set; None if that is nowhere."""
    if prod(problem.shape) == 0:
        return None
    mask = mask.reshape((1,) * (len(problem.shape) - mask.ndim) + mask.shape)
    enough = 2 if prod(mask.shape[a] for a in problem.axes) == problem.count else 1  # else each of its elements stands for many
    if isinstance(mask, np.ndarray) and _enough_everywhere(mask, problem.axes, enough):
        return None  # of other arrays, each look would wait for the device
    counts = left(mask, problem.axes)
    return None if not (counts < enough).any() else Degenerate(counts == 0, (counts == 1) & (enough == 2))


def left(mask: Array, axes: tuple[int, ...]) -> Array:
    """How many elements are True, along axes that are kept as 1."""
    if not isinstance(mask, np.ndarray):
        return mask.sum(axis=axes, keepdims=True)
    numbers = mask.view(np.uint8)  # NumPy sums bytes several times as fast as booleans
    if numbers.max(initial=0) > 1:  # of a view, True may be any byte but 0
        numbers = (numbers != 0).view(np.uint8)
    return numbers.sum(axis=axes, keepdims=True, dtype=np.int32 if mask.size < 1 << 31 else np.int64)


def _enough_everywhere(mask: Array, axes: tuple[int, ...], enough: int) -> bool:
    """Whether every set has one or two True: most show it at once, and the others are counted alone if they are few."""
    axis = max(axes, key=lambda a: mask.shape[a], default=None)
    if axis is None or prod(mask.shape[a] for a in axes) < LOOK:
        return False
    if mask.strides[-1] == 1 and mask.ndim - 1 in axes and mask.shape[-1] >= 8:
        begin = mask[tuple(slice(0, 1) if a in axes else slice(None) for a in range(mask.ndim - 1))]
        eight = begin[..., :8].view(np.uint64) & LOWEST_BITS  # as one number
        if (eight if enough == 1 else eight & (eight - np.uint64(1))).all():
            return True
        shown = left(begin[..., :LINE], axes) >= enough
    else:
        one: Any = False
        two: Any = False
        for i in range(min(LOOK, mask.shape[axis])):
            look = mask[
                tuple(slice(i, i + 1) if a == axis else slice(0, 1) if a in axes else slice(None) for a in range(mask.ndim))
            ]
            one, two = one | look, two | (one & look)
            if (one if enough == 1 else two).all():
                return True
        shown = one if enough == 1 else two
    doubtful = ~shown.reshape([n for a, n in enumerate(shown.shape) if a not in axes])
    if np.count_nonzero(doubtful) * LOOK > doubtful.size:
        return False
    others = mask.transpose(*(a for a in range(mask.ndim) if a not in axes), *axes)[doubtful]
    return bool((left(others, tuple(range(1, others.ndim))) >= enough).all())

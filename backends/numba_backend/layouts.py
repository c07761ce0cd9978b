"""How the elements of a call lie in memory, and so which kernels can take them where they lie.

The order of the elements of one set of statistics is that of their indices, whatever the layout: it fixes the order of
summation, and so the bits. Sets may be taken in any order. Axes that lie end to end are taken as one.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from normkit.problem import Problem

Strides = tuple[int, ...]
Quad = tuple[int, int, int, int]  # (bundle, leap, step, start): item i is at start + i // bundle * leap + i % bundle * step


class Memory(NamedTuple):
    """Where the elements of an array lie: the start of the first, and steps along each axis, in elements."""

    steps: tuple[int, ...]
    start: int


class RowsPlan(NamedTuple):
    """Each set is a stretch of neighbours in x and out (and the mask, if that does not stay the same all along)."""

    order: tuple[int, ...]  # the kept axes, as rows are counted
    x: Quad
    out: Quad
    mask: Quad
    mask_step: int


class ColumnsPlan(NamedTuple):
    """Neighbours belong to different sets: `lanes` of them, in blocks that are counted along the outer axes."""

    order: tuple[int, ...]  # the kept axes: outer ones, then those of the lanes
    outer: int
    length: int
    lanes: int
    x: tuple[Quad, Quad]  # of an outer block, and of a row of lanes in it
    out: tuple[Quad, Quad]
    mask: tuple[Quad, Quad]
    mask_step: int  # from lane to lane


@lru_cache(maxsize=256)
def plan(
    shape: tuple[int, ...], axes: tuple[int, ...], ordered: bool, x: Memory, out: Memory, mask: Memory | None
) -> RowsPlan | ColumnsPlan | None:
    """The kernels that take x, out and mask where they are; None if they must pass through a buffer.

    `ordered`: the kept axes are to be counted as they come, since weight and bias follow from the number of the row.
    """
    arrays = (x, out, mask or Memory((0,) * len(shape), 0))
    reduced = [a for a in axes if shape[a] > 1]
    kept = [a for a in range(len(shape)) if a not in axes]
    return _rows(shape, reduced, kept, ordered, *arrays) or _columns(shape, reduced, kept, *arrays)


def _rows(
    shape: tuple[int, ...], reduced: list[int], kept: list[int], ordered: bool, x: Memory, out: Memory, mask: Memory
) -> RowsPlan | None:
    order = kept if ordered else _by_memory(kept, x)
    steps = [_step(shape, reduced, memory) for memory in (x, out, mask)]
    if reduced and not (steps[0] == steps[1] == 1 and steps[2] in (0, 1)):
        return None
    x_rows, out_rows, mask_rows = (_quad(shape, order, memory) for memory in (x, out, mask))
    if x_rows is None or out_rows is None or mask_rows is None:
        return None
    return RowsPlan(tuple(order), x_rows, out_rows, mask_rows, steps[2] or 0)


def _columns(
    shape: tuple[int, ...], reduced: list[int], kept: list[int], x: Memory, out: Memory, mask: Memory
) -> ColumnsPlan | None:
    order = _by_memory(kept, x)
    inner: list[int] = []
    while len(inner) < len(order):
        more = order[-1 - len(inner) :]
        steps = [_step(shape, more, memory) for memory in (x, out, mask)]
        if not (steps[0] == steps[1] == 1 and steps[2] in (0, 1)):
            break
        inner = more
    if not inner:
        return None
    outer = order[: len(order) - len(inner)]
    pairs = [_pair(shape, outer, reduced, memory) for memory in (x, out, mask)]
    if pairs[0] is None or pairs[1] is None or pairs[2] is None:
        return None
    outer_size, length, lanes = (prod(shape[a] for a in axes) for axes in (outer, reduced, inner))
    return ColumnsPlan(tuple(order), outer_size, length, lanes, pairs[0], pairs[1], pairs[2], _step(shape, inner, mask) or 0)


def _pair(shape: tuple[int, ...], outer: list[int], reduced: list[int], memory: Memory) -> tuple[Quad, Quad] | None:
    blocks, rows = _quad(shape, outer, memory), _quad(shape, reduced, memory._replace(start=0))
    return None if blocks is None or rows is None else (blocks, rows)


def _by_memory(axes: list[int], memory: Memory) -> list[int]:
    """The axes as they lie in memory, the last one innermost; those along which nothing changes come first."""
    return sorted(axes, key=lambda a: (memory.steps[a] != 0, -abs(memory.steps[a])))


def _levels(shape: tuple[int, ...], axes: list[int], memory: Memory) -> list[tuple[int, int]]:
    """(size, step) of the axes, the last one first, with those that lie end to end as one."""
    levels: list[tuple[int, int]] = []
    for a in reversed(axes):
        size, step = shape[a], memory.steps[a]
        if size == 1:
            continue
        if levels and step == levels[-1][0] * levels[-1][1]:
            levels[-1] = (levels[-1][0] * size, levels[-1][1])
        else:
            levels.append((size, step))
    return levels


def _step(shape: tuple[int, ...], axes: list[int], memory: Memory) -> int | None:
    """The step between neighbours along the axes, if it is the same everywhere; None if not, or if there are no two."""
    levels = _levels(shape, axes, memory)
    return levels[0][1] if len(levels) == 1 else None


def _quad(shape: tuple[int, ...], axes: list[int], memory: Memory) -> Quad | None:
    """How a kernel finds item i along the axes; None if it would take more than two steps."""
    levels = _levels(shape, axes, memory)
    if len(levels) > 2:
        return None
    if len(levels) == 2:
        return levels[0][0], levels[1][1], levels[0][1], memory.start
    return 0, 0, levels[0][1] if levels else 0, memory.start


def memory(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Memory | None:
    """Where elements lie, counted from the lowest of them; None if that is not a whole number of elements."""
    steps = []
    start = 0
    for n, stride in zip(shape, strides, strict=True):
        step, rest = (0, 0) if n == 1 else divmod(stride, itemsize)
        if rest:
            return None
        steps.append(step)
        start -= min(step, 0) * (n - 1)
    return Memory(tuple(steps), start)


def of(
    problem: Problem, out: tuple[int, ...] | None = None, mask: tuple[int, ...] | None = None
) -> RowsPlan | ColumnsPlan | None:
    """The plan for a call with these strides of out and of the mask, broadcast to x."""
    shape = problem.shape
    x = memory(shape, problem.strides, problem.dtype.itemsize)
    y = x if out is None else memory(shape, out, problem.dtype.itemsize)
    if x is None or y is None or not problem.dtype.isnative:
        return None
    m = None if mask is None else memory(shape, mask, 1)
    return plan(shape, problem.axes, problem.op == "instance_norm", x, y, m)


def order(strides: Strides) -> list[int]:
    """The axes of an output for x with these strides: as they lie in x, or in C order if x repeats some of its elements."""
    if 0 in strides:
        return list(range(len(strides)))
    return sorted(range(len(strides)), key=lambda a: -abs(strides[a]))


def output(shape: tuple[int, ...], strides: Strides, itemsize: int) -> Strides:
    """The strides of an output for x with these."""
    steps, step = [0] * len(shape), itemsize
    for a in reversed(order(strides)):
        steps[a], step = step, step * shape[a]
    return tuple(steps)

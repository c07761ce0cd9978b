"""Calls on columns: how wide a tile is, and how the work is shared out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.problem import Operands, Problem

from . import column_moments as cm
from . import layouts, limits, threads
from .compiling import kernel, soon
from .guard import repeating
from .kernels import BLOCK
from .layouts import ColumnsPlan, Quad
from .objects import flat
from .sets import Sets
from .simd import WIDTH

TILE_BYTES = 1 << 10  # a tile is at most so wide: memory is fast in long stretches, and a block of a tile should stay in cache
TILE_LEAST = 1 << 8  # bytes, below which a tile is not narrowed for the sake of more threads
FLAT_LEAST = 256  # elements of a column, for which it pays to repeat what is known of it for each of 16 rows
FLAT_WIDTH = 512  # elements that are applied to as one row where lanes are few: 16 rows or more
# Rows of each phase that are summed at once, one vector after the other: so many streams in the order of memory, and few enough
# that what is left of a cache line is still in L1 for the next vector. Of fewer, sums would be read and written too often.
AT_ONCE = 4


def run(problem: Problem, plan: ColumnsPlan, operands: Operands, mask: NDArray[Any] | None) -> None:
    """Normalize the columns of a plan."""
    sets = Sets(problem, plan.order)
    mean, var = sets.statistics(operands)
    weight, bias = sets.parameters(operands)
    shape = _shape(plan, sets, weight.size, operands, threads.available())
    _launch(problem, plan, shape, operands.x, operands.out, mask, weight, bias, mean, var)
    sets.keep(operands, mean, var)


def replay(problem: Problem, operands: Operands, given_out: NDArray[Any] | None) -> Callable[..., Any] | None:
    """What repeats a run on columns without a mask, see `normkit.plans`; None of anything else.

    Nor if the output is new and its axes do not lie in order, or the statistics are wanted and their sets do not.
    """
    x, out = operands.x, operands.out
    if x.size == 0 or (given_out is None and not out.flags.c_contiguous):
        return None
    plan = layouts.of(problem, out.strides) if operands.mask is None and out.dtype.isnative else None
    if not isinstance(plan, ColumnsPlan):
        return None
    sets = Sets(problem, plan.order)
    given = [p for p in (operands.weight, operands.bias) if p is not None]
    if given and not sets.as_given(plan.lanes):
        return None
    if operands.mean is not None and not (sets.given or sets.in_order):
        return None
    size = max((p.size for p in given), default=1)
    shape = _shape(plan, sets, size, operands, threads.available())
    shape[cm.W_OUTER], shape[cm.W_LANE] = 0, bool(given) and not sets.apart

    def run(x: Any, out: Any, weight: Any, bias: Any, mask: Any, mean: Any, var: Any) -> None:
        mean, var = sets.handed(mean, var)
        _launch(problem, plan, shape, x, out, None, weight, bias, mean, var)

    return repeating(operands, given_out, sets.parameter, size, run)


def _launch(
    problem: Problem, plan: ColumnsPlan, shape: NDArray[np.int64], x: NDArray[Any], out: NDArray[Any],
    mask: NDArray[Any] | None, weight: NDArray[Any], bias: NDArray[Any], mean: NDArray[Any], var: NDArray[Any],
) -> None:  # fmt: skip
    """Choose a kernel, and run it. `shape` is as `_shape` makes it; where out begins is added to it here."""
    nbytes, dtype = x.size * x.itemsize, problem.dtype
    x, out, flags = flat(x), flat(out), None if mask is None else flat(mask)
    if nbytes >= limits.STREAM_BYTES and out.ctypes.data % out.itemsize == 0:
        shape = _streamed(plan, shape, out)
    prefix = "" if mask is None else "masked_"
    across, field = int(shape[cm.ACROSS]), int(shape[cm.FIELD])
    tiles = plan.outer * across
    blocks = -(-plan.length // BLOCK)
    with threads.sharing as granted:
        chunks = threads.worthwhile(granted, 2 * nbytes)
        split = tiles < chunks * 4 and blocks > 1 and not shape[cm.GIVEN]
        many = None
        if chunks > 1:
            many = soon(f"{prefix}columns_{'split' if split else 'parallel'}", dtype, f"{prefix}columns_serial")
        chunks = 1 if many is None else chunks
        work = _aligned_empty(chunks * cm.FIELDS * field, np.float64)
        factors = _aligned_empty(chunks * 4 * field, weight.dtype)
        places = np.empty((chunks, 2, cm.MAX_SPAN), np.intp)
        yes = None if mask is None else np.empty(chunks * cm.MAX_SPAN * cm.MAX_FLAT if shape[cm.FLAT] else 1, np.bool_)
        args = (x, out, flags, weight, bias, mean, var, shape, problem.eps, work, factors, places, yes)
        if many is None:
            kernel(f"{prefix}columns_serial", dtype)(*args)
        elif not split:
            threads.launch(many, chunks, 1, *args)
        else:
            some = min(max(limits.SPLIT_BYTES * plan.outer // nbytes, 1), plan.outer) * across
            scratch = np.empty((some * (blocks + 1), 5 * int(shape[cm.PITCH])))
            sweeps = 2 * (-(-tiles // some) + 1)
            threads.launch(many, chunks, sweeps, *args, scratch)


def _shape(plan: ColumnsPlan, sets: Sets, weights: int, operands: Operands, chunks: int) -> NDArray[np.int64]:
    """What the kernels are told."""
    size, lanes = operands.x.itemsize, plan.lanes
    flat_rows = (
        _ends_meet(plan.x[1], lanes)
        and _ends_meet(plan.out[1], lanes)
        and lanes <= cm.MAX_FLAT
        and plan.length >= FLAT_LEAST
        and not sets.apart
    )
    tile = lanes if flat_rows else _tile(plan, size, chunks)
    shape = np.zeros(cm.SHAPE, np.int64)
    shape[cm.OUTER], shape[cm.LENGTH], shape[cm.LANES], shape[cm.TILE] = plan.outer, plan.length, lanes, tile
    shape[cm.ACROSS] = -(-lanes // tile)
    if flat_rows:
        many = WIDTH  # powers of two, so that no span or block ends within what is taken as one row
        while 2 * many <= min(FLAT_WIDTH // lanes, plan.length // 16) and all(
            q[0] % (2 * many) == 0 for q in (plan.x[1], plan.out[1])
        ):
            many *= 2
        shape[cm.FLAT] = many
    shape[cm.SPAN] = shape[cm.ONCE] = min(cm.MAX_SPAN, AT_ONCE * max(WIDTH, int(shape[cm.FLAT])))
    shape[cm.NEXT], shape[cm.BACK] = limits.NEXT_BYTES // (tile * size), shape[cm.SPAN]
    while 2 * shape[cm.BACK] <= min(shape[cm.NEXT], BLOCK):
        shape[cm.BACK] *= 2
    shape[cm.PITCH], shape[cm.FIELD] = tile, max(WIDTH, int(shape[cm.FLAT])) * tile + WIDTH
    shape[cm.GIVEN], shape[cm.WANTED], shape[cm.PER_K] = sets.given, operands.mean is not None, sets.apart
    shape[cm.W_OUTER], shape[cm.W_LANE] = (lanes, 1) if weights == sets.number else (0, 0)
    shape[cm.M_STEP], shape[cm.SUMS] = plan.mask_step, 2 if operands.mask is None else 3
    shape[cm.M_FLAT] = plan.mask_step == 1 and _ends_meet(plan.mask[1], lanes)
    for at, quad in zip(range(cm.X_OUTER, cm.SHAPE, 4), (*plan.x, *plan.out, *plan.mask), strict=True):
        shape[at : at + 4] = quad
    return shape


def _ends_meet(rows: Quad, lanes: int) -> bool:
    """Whether every 16 rows lie end to end, as one."""
    return rows[2] == lanes and rows[0] % WIDTH == 0


def _streamed(plan: ColumnsPlan, shape: NDArray[np.int64], out: NDArray[Any]) -> NDArray[np.int64]:
    """What the kernels are told of an output that goes past the caches, a line at a time, where that can be."""
    line, streamed = _line(plan, out, bool(shape[cm.FLAT])), shape.copy()
    head = -out.ctypes.data % line // out.itemsize if line else 0
    streamed[cm.STREAMED], streamed[cm.HEAD] = 1, head
    streamed[cm.ACROSS] = max(-(-(plan.lanes - head) // int(shape[cm.TILE])), 1)
    streamed[cm.ONCE] //= 4 if shape[cm.FLAT] else 1
    together = plan.lanes * max(int(shape[cm.FLAT]), 1)  # elements of what the kernels take as a row
    end_to_end = all(rows[0] == 0 and _ends_meet(rows, plan.lanes) for rows in (plan.x[1], plan.out[1]))
    if streamed[cm.ACROSS] > 1:
        wider = WIDTH if head > 0 else 0  # the first tile is
        streamed[cm.PITCH] += wider
        streamed[cm.FIELD] += wider * WIDTH
    elif end_to_end and together >= WIDTH and not shape[cm.PER_K]:
        streamed[cm.JOINED] = head > 0 if line and together % WIDTH == 0 else cm.EACH
        return streamed
    return streamed if line else shape


def _tile(plan: ColumnsPlan, size: int, chunks: int) -> int:
    """Columns of a tile: as many as may be, and as few as give every thread something to do; a multiple of WIDTH."""
    widest = TILE_BYTES // size
    while widest * size > TILE_LEAST and plan.outer * plan.lanes < widest * chunks * 4:
        widest //= 2
    number = -(-plan.lanes // widest)
    return -(-plan.lanes // (number * WIDTH)) * WIDTH


def _aligned_empty(size: int, dtype: Any) -> NDArray[Any]:
    """Memory from a multiple of a cache line on, so that no vector lies across two."""
    nbytes = size * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes].view(dtype)


def _line(plan: ColumnsPlan, out: NDArray[Any], flat_rows: bool) -> int:
    """The number of bytes, at a multiple of which vectors of 16 may be streamed, if all rows have theirs alike; else 0."""
    line = min(WIDTH * out.itemsize, 64)
    rows = plan.out[1]
    steps = [*plan.out[0][1:], rows[1], rows[2] * WIDTH if flat_rows else rows[2]]
    return line if all(step * out.itemsize % line == 0 for step in steps) else 0

"""The kernels for rows: fused, a few rows or one at a time while they are in cache, or split where rows are few."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .group_kernels import LEAST, WORK, group
from .kernels import (
    AHEAD,
    BLOCK,
    GIVEN,
    GROUP,
    INNER,
    M_ROWS,
    M_STEP,
    OUT_ROWS,
    ROWS,
    RUNS,
    STREAMED,
    UNKNOWN,
    WANTED,
    X_ROWS,
    apply_span,
    bounds_of,
    inline,
    place,
)
from .masks import is_none
from .memory import element, fence, load, load_first, put, stack, store, store_first
from .moments import NOTHING, absorb, block_moments, finished, merged, note
from .shares import leave, next_piece, note_time, note_wait, ticks, use_threads
from .simd import WIDTH, one_by_one, splat


@inline
def tell(mean: Any, var: Any, shape: Any, r: int, moments: Any) -> None:
    """Write down the statistics of row r, if they are wanted."""
    if shape[WANTED]:
        put(mean, r, moments[0] + moments[1])
        put(var, r, moments[2])


@inline
def next_rows(shape: Any, taken: Any, c: int, chunks: int) -> Any:
    """(first, last) of the rows that thread c takes next; there are no more for one that has taken all from the start."""
    if is_none(taken):
        return shape[ROWS], shape[ROWS]
    many = max(shape[GROUP], 1)
    start, stop = next_piece((shape[ROWS] + many - 1) // many, taken, 0, c, chunks)
    return min(start * many, shape[ROWS]), min(stop * many, shape[ROWS])


@inline
def each_row(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, bounds: Any, first: int,
    last: int, taken: Any, c: int, chunks: int,
) -> None:  # fmt: skip
    """Rows one after the other. Between the blocks of a row that are summed, those of the row before are normalized.

    So memory is read and written at the same time. What is summed next is fetched by both: neither alone keeps it busy.
    """
    n, ahead, step = shape[RUNS] * shape[INNER], shape[AHEAD], shape[M_STEP]
    known, before = (0.0, 0.0, 0.0), -1
    r, stop = first, last
    while True:
        if r >= stop:
            r, stop = next_rows(shape, taken, c, chunks)
        more = r < stop
        moments, xi, mi, sums = known, place(r, shape, X_ROWS), place(r, shape, M_ROWS), NOTHING
        x_before, oi = place(before, shape, X_ROWS), place(before, shape, OUT_ROWS)
        for k in range(0, n, BLOCK):
            one_by_one()
            if before >= 0:
                at, fetched = k, xi - x_before + ahead
                if not more:  # nothing more is summed, and what was read last is still in cache
                    at, fetched = (n - 1) // BLOCK * BLOCK - k, -ahead
                end = min(n, at + BLOCK)
                apply_span(x, x_before, out, oi, at, end, weight, bias, before, moments, shape, eps, bounds, fetched)
            if more and shape[GIVEN] == 0:
                sums = absorb(sums, block_moments(x, xi + k, mask, mi + k * step, step, min(BLOCK, n - k), ahead, None))
        if not more:
            return
        if shape[GIVEN] == 0:
            known = finished(sums)
            tell(mean, var, shape, r, known)
        else:
            known = element(mean, r % shape[GIVEN]), 0.0, element(var, r % shape[GIVEN])
        before = r
        r += 1


@inline
def rows(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, first: int, last: int,
    taken: Any, c: int, chunks: int,
) -> None:  # fmt: skip
    """Rows from first on, and what thread c takes next: short ones a group at a time, others one by one."""
    work, single, double = stack(np.float64), stack(np.float32), stack(np.float64)
    bounds, many = bounds_of(x, weight, bias, shape, shape[ROWS] // chunks, single), shape[GROUP]
    if not is_none(mask) or many == 0:
        each_row(x, out, mask, weight, bias, mean, var, shape, eps, bounds, first, last, taken, c, chunks)
        return
    if many < WIDTH or last % many >= LEAST:  # what is computed in lanes without a row must be harmless
        for i in range(0, WORK, WIDTH):
            one_by_one()
            store(work, i, splat(0.0, np.float64))
    while first < last:
        for r in range(first, last, many):
            k = min(many, last - r)
            if k < LEAST or not group(x, out, weight, bias, mean, var, shape, eps, r, k, work, single, double, bounds):
                each_row(x, out, mask, weight, bias, mean, var, shape, eps, bounds, r, r + k, None, 0, 1)
        first, last = next_rows(shape, taken, c, chunks)


@njit(nogil=True, error_model="numpy", _nrt=False)
def widened(x: Any, weight: Any, stop: int) -> None:
    """Write so many weights, halves in x, as the float32 that kernels read."""
    for i in range(0, stop, WIDTH):
        one_by_one()
        k = min(WIDTH, stop - i)
        if k == WIDTH:
            store(weight, i, load(x, i, np.float32))
        else:
            store_first(weight, i, k, load_first(x, i, k, np.float32))


@njit(nogil=True, error_model="numpy", _nrt=False)
def rows_serial(x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float) -> None:
    """All rows on this thread."""
    rows(x, out, mask, weight, bias, mean, var, shape, eps, 0, shape[ROWS], None, 0, 1)
    if shape[STREAMED]:
        fence()


@njit(nogil=True, error_model="numpy", _nrt=False)
def rows_first(x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float) -> None:
    """As `rows_serial`, without what pays for short rows: compiled in a third of the time, it serves the first calls."""
    bounds = bounds_of(x, weight, bias, shape, shape[ROWS], stack(np.float32))
    each_row(x, out, mask, weight, bias, mean, var, shape, eps, bounds, 0, shape[ROWS], None, 0, 1)
    if shape[STREAMED]:
        fence()


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def rows_parallel(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, chunks: int, taken: Any
) -> None:  # fmt: skip
    """A share of the rows on each thread."""
    setting, began = use_threads(chunks), ticks()
    for i in prange(chunks):
        c = np.intp(i)  # prange counts in unsigned integers
        first, last = next_rows(shape, taken, c, chunks)
        rows(x, out, mask, weight, bias, mean, var, shape, eps, first, last, taken, c, chunks)
        fence()
        leave(taken, 0, c, chunks)
    note_wait(taken, 0, chunks)
    note_time(taken, began)
    use_threads(setting)


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def rows_split(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, scratch: Any, chunks: int,
    taken: Any,
) -> None:  # fmt: skip
    """Long rows: a share of a row's blocks on each thread, as `each_row` takes them. `scratch` is (blocks, 5)."""
    setting, began = use_threads(chunks), ticks()
    n, ahead, step = shape[RUNS] * shape[INNER], shape[AHEAD], shape[M_STEP]
    blocks = (n + BLOCK - 1) // BLOCK
    known = 0.0, 0.0, 0.0
    for r in range(shape[ROWS] + 1):
        before, xi, mi = known, place(r, shape, X_ROWS), place(r, shape, M_ROWS)
        x_before, oi = place(r - 1, shape, X_ROWS), place(r - 1, shape, OUT_ROWS)
        again = x_before - xi + BLOCK if r > 0 else ahead  # what is normalized next has only the last cache still
        for i in prange(chunks):
            c = np.intp(i) if r < shape[ROWS] else chunks - 1 - np.intp(i)  # whose last blocks are taken first then
            start, stop = next_piece(blocks, taken, r, c, chunks)
            while start < stop:
                for b in range(start, stop):
                    one_by_one()
                    if r > 0:
                        at, fetched = b * BLOCK, xi - x_before + ahead
                        if r == shape[ROWS]:  # as in `each_row`
                            at, fetched = (blocks - 1 - b) * BLOCK, -ahead
                        end = min(n, at + BLOCK)
                        apply_span(x, x_before, out, oi, at, end, weight, bias, r - 1, before, shape, eps, UNKNOWN, fetched)
                    if r < shape[ROWS]:
                        k = b * BLOCK
                        note(scratch, b, block_moments(x, xi + k, mask, mi + k * step, step, min(BLOCK, n - k), ahead, again))
                start, stop = next_piece(blocks, taken, r, c, chunks)
            fence()
            leave(taken, r, c, chunks)
        note_wait(taken, r, chunks)
        if r < shape[ROWS]:
            known = merged(scratch, blocks)
            tell(mean, var, shape, r, known)
    note_time(taken, began)
    use_threads(setting)


# The same with a mask: `compiling` takes the type of the mask from the name
masked_rows_first, masked_rows_serial = rows_first, rows_serial
masked_rows_parallel, masked_rows_split = rows_parallel, rows_split

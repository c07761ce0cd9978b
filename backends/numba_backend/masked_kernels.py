"""The rows kernels with a mask: statistics of the elements where it is True, while every element is normalized.

A block is BLOCK positions, whatever their number of True ones, and what is masked adds 0 to its lane: a mask that is True
everywhere gives the bits of no mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .kernels import (
    AHEAD,
    BLOCK,
    INNER,
    M_ROWS,
    M_STEP,
    OUT_ROWS,
    ROWS,
    RUNS,
    WANTED,
    X_ROWS,
    apply_span,
    inline,
    merge,
    nearness,
    place,
)
from .masks import choose, first_set, flags, flags_first, number
from .simd import WIDTH, element, fence, fma, is_double, load, load_first, put, splat, total, unity


@inline
def masked_deviations(x: Any, start: int, mask: Any, at: int, step: int, n: int, shift: float) -> Any:
    """(count, mean - shift, M2) where the mask is True; whether the shift is too far, as in `kernels.deviations`."""
    s = q = zero = splat(0.0, np.float64)
    one, center = splat(unity(x), np.float64), splat(shift, np.float64)
    count, whole = 0, n - n % WIDTH
    for i in range(0, whole, WIDTH):
        yes = flags(mask, at + i * step, step)
        d = choose(yes, load(x, start + i, np.float64) - center, zero)
        s = fma(d, one, s)
        q = fma(d, d, q)
        count += number(yes)
    if whole < n:
        yes = flags_first(mask, at + whole * step, step, n - whole)
        d = choose(yes, load_first(x, start + whole, n - whole, np.float64) - center, zero)
        s = s + d
        q = fma(d, d, q)
        count += number(yes)
    sum_s = total(s)
    delta = sum_s * (1.0 / count)
    m2 = total(q) - sum_s * delta
    return float(count), delta, m2, delta * delta * count > m2 * nearness(x)


@inline
def first_true(mask: Any, at: int, step: int, n: int) -> int:
    """Position of the first True of n, or n."""
    for i in range(0, n, WIDTH):
        yes = flags(mask, at + i * step, step) if i + WIDTH <= n else flags_first(mask, at + i * step, step, n - i)
        if number(yes) > 0:
            return i + first_set(yes)
    return n


@inline
def masked_block(x: Any, start: int, mask: Any, at: int, step: int, n: int) -> Any:
    """(count, first element, shift, mean - shift, M2) of n <= BLOCK elements, as `kernels.block_moments` takes them."""
    i = first_true(mask, at, step, n)
    if i == n:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    first = element(x, start + i)
    shift = first if is_double(x) else 0.0
    count, delta, m2, far = masked_deviations(x, start, mask, at, step, n, shift)
    if far:
        shift = shift + delta if is_double(x) else first
        count, delta, m2, far = masked_deviations(x, start, mask, at, step, n, shift)
    return count, first, shift, delta, max(m2, 0.0) if m2 == m2 else m2


@inline
def absorb(moments: Any, block: Any) -> Any:
    """(count, origin, mean - origin, M2) of what has been merged so far and of a block."""
    count, origin, mean, m2 = moments
    n, first, shift, delta, block_m2 = block
    if n == 0.0:
        return moments
    if count == 0.0:
        return n, first, (shift - first) + delta, block_m2
    mean, m2 = merge(count, mean, m2, n, (shift - origin) + delta, block_m2)
    return count + n, origin, mean, m2


@inline
def finished(moments: Any) -> Any:
    """(origin, mean - origin, variance); NaN of no elements."""
    count, origin, mean, m2 = moments
    return origin, mean, m2 * (1.0 / count) if count > 0.0 else np.nan


@inline
def masked_rows(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, start: int, stop: int
) -> None:  # fmt: skip
    """Moments and apply of each row while it is in cache."""
    n, step = shape[RUNS] * shape[INNER], shape[M_STEP]
    for r in range(start, stop):
        xi, oi, mi = place(r, shape, X_ROWS), place(r, shape, OUT_ROWS), place(r, shape, M_ROWS)
        state = 0.0, np.nan, 0.0, 0.0
        for at in range(0, n, BLOCK):
            state = absorb(state, masked_block(x, xi + at, mask, mi + at * step, step, min(BLOCK, n - at)))
        moments = finished(state)
        if shape[WANTED]:
            put(mean, r, moments[0] + moments[1])
            put(var, r, moments[2])
        for at in range((n - 1) // BLOCK * BLOCK, -1, -BLOCK):  # backwards: what was read last is still in cache
            apply_span(x, xi, out, oi, at, min(n, at + BLOCK), weight, bias, r, moments, shape, eps, shape[AHEAD])


@njit(nogil=True, error_model="numpy", _nrt=False)
def masked_rows_serial(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float
) -> None:  # fmt: skip
    """All rows on this thread."""
    masked_rows(x, out, mask, weight, bias, mean, var, shape, eps, 0, shape[ROWS])
    fence()


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def masked_rows_parallel(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, chunks: int
) -> None:  # fmt: skip
    """A chunk of rows on each thread."""
    for c in prange(chunks):
        i = np.intp(c)
        first, last = shape[ROWS] * i // chunks, shape[ROWS] * (i + 1) // chunks
        masked_rows(x, out, mask, weight, bias, mean, var, shape, eps, first, last)
        fence()


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def masked_rows_split(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, chunks: int, scratch: Any
) -> None:  # fmt: skip
    """Few rows: a chunk of all blocks on each thread, for the moments, then for the apply. `scratch` is (rows * blocks, 5)."""
    n, step = shape[RUNS] * shape[INNER], shape[M_STEP]
    blocks = (n + BLOCK - 1) // BLOCK
    tasks = shape[ROWS] * blocks
    for c in prange(chunks):
        i = np.intp(c)
        for t in range(tasks * i // chunks, tasks * (i + 1) // chunks):
            r, at = t // blocks, t % blocks * BLOCK
            xi, mi = place(r, shape, X_ROWS) + at, place(r, shape, M_ROWS) + at * step
            block = masked_block(x, xi, mask, mi, step, min(BLOCK, n - at))
            scratch[t, 0], scratch[t, 1], scratch[t, 2], scratch[t, 3], scratch[t, 4] = block
    for r in range(shape[ROWS]):
        state = 0.0, np.nan, 0.0, 0.0
        for t in range(r * blocks, (r + 1) * blocks):
            state = absorb(state, (scratch[t, 0], scratch[t, 1], scratch[t, 2], scratch[t, 3], scratch[t, 4]))
        t = r * blocks
        scratch[t, 0], scratch[t, 1], scratch[t, 2] = finished(state)
        if shape[WANTED]:
            put(mean, r, scratch[t, 0] + scratch[t, 1])
            put(var, r, scratch[t, 2])
    for c in prange(chunks):
        i = np.intp(c)
        for back in range(tasks * i // chunks, tasks * (i + 1) // chunks):
            t = tasks * i // chunks + tasks * (i + 1) // chunks - 1 - back  # the last blocks read are still in cache
            r, at = t // blocks, t % blocks * BLOCK
            xi, oi = place(r, shape, X_ROWS), place(r, shape, OUT_ROWS)
            moments = scratch[r * blocks, 0], scratch[r * blocks, 1], scratch[r * blocks, 2]
            apply_span(x, xi, out, oi, at, min(n, at + BLOCK), weight, bias, r, moments, shape, eps, shape[AHEAD])
        fence()

"""Moments of a block of a row, and the merge of blocks. `column_moments` takes those of columns, with the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernels import inline
from .masks import choose, first_set, flags, flags_first, is_none, number, prefetch_flags
from .memory import element, in_order, load, load_evens, load_first, prefetch
from .simd import (
    WIDTH,
    fma,
    is_double,
    keep_first,
    one_by_one,
    splat,
    total,
    unity,
)

NOTHING = 0.0, np.nan, 0.0, 0.0  # the moments of no elements, see `absorb`


@inline
def lane_sums(x: Any, start: int, mask: Any, at: int, step: int, n: int, shift: float, ahead: int, again: Any) -> Any:
    """Sum and sum of squares of x - shift, in float64 lanes, and their number, where the mask is True.

    What is masked adds 0 to its lane. What lies `ahead`, if not 0, is fetched meanwhile, and what lies `again` ahead, if not
    None: it is read again next, and no longer in the nearer caches.
    """
    s = q = zero = splat(0.0, np.float64)
    one, center = splat(unity(x), np.float64), splat(shift, np.float64)
    count, whole = 0, n - n % WIDTH
    for i in range(0, whole, WIDTH):
        one_by_one()
        if ahead != 0:
            prefetch(x, start + i, ahead)
            prefetch(x, start + i, again)
            prefetch_flags(mask, at + i * step + ahead)
        yes = flags(mask, at + i * step, step)
        d = load_evens(x, start + i) if is_none(mask) else load(x, start + i, np.float64)
        d = choose(yes, d - center, zero)
        s = fma(d, one, s)
        q = fma(d, d, q)
        count += number(yes)
    if is_none(mask):
        s, q = in_order(x, s), in_order(x, q)
    if whole < n:
        yes = flags_first(mask, at + whole * step, step, n - whole)
        d = choose(yes, keep_first(load_first(x, start + whole, n - whole, np.float64) - center, n - whole), zero)
        s = s + d
        q = fma(d, d, q)
        count += number(yes)
    return s, q, n if is_none(mask) else count


@inline
def nearness(x: Any) -> float:
    """How far the mean may lie from a shift, in squared deviations, before too few digits of their sum are left.

    The sums of a block lose at most 260 * 2**-53 of themselves: of float32, 2e-10 of the variance if they are not shifted.
    """
    return 4.0 if is_double(x) else 4096.0


@inline
def deviations(x: Any, start: int, mask: Any, at: int, step: int, n: int, shift: float, ahead: int, again: Any) -> Any:
    """(count, mean - shift, M2) of n elements from their sums; whether the shift is too far from the mean for that."""
    lanes_s, lanes_q, count = lane_sums(x, start, mask, at, step, n, shift, ahead, again)
    s = total(lanes_s)
    delta = s * (1.0 / count)
    m2 = total(lanes_q) - s * delta
    return float(count), delta, m2, delta * delta * count > m2 * nearness(x)


@inline
def first_true(mask: Any, at: int, step: int, n: int) -> int:
    """Position of the first True of n, or n; 0 without a mask."""
    if is_none(mask):
        return 0
    for i in range(0, n, WIDTH):
        yes = flags(mask, at + i * step, step) if i + WIDTH <= n else flags_first(mask, at + i * step, step, n - i)
        if number(yes) > 0:
            return i + first_set(yes)
    return n


@inline
def block_moments(x: Any, start: int, mask: Any, at: int, step: int, n: int, ahead: int, again: Any) -> Any:
    """(count, first element, shift, mean - shift, M2) of n <= BLOCK elements, where the mask is True.

    The squares of float32 are exact in float64, and their sums good enough unless the mean is large; then they are shifted by
    the first element, which leaves nothing of a constant. float64 is always shifted: by the mean if that is far off.
    """
    i = first_true(mask, at, step, n)
    if i == n:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    first = element(x, start + i)
    shift = first if is_double(x) else 0.0
    count, delta, m2, far = deviations(x, start, mask, at, step, n, shift, ahead, again)
    if far:
        shift = shift + delta if is_double(x) else first
        count, delta, m2, far = deviations(x, start, mask, at, step, n, shift, 0, None)
    return count, first, shift, delta, max(m2, 0.0) if m2 == m2 else m2


@inline
def merge(count: float, mean: float, m2: float, n: float, block_mean: float, block_m2: float) -> Any:
    """Moments of `count` elements and n more (Chan, Golub and LeVeque, 1979)."""
    share = n / (count + n)
    delta = block_mean - mean
    return mean + delta * share, m2 + block_m2 + delta * delta * (count * share)


@inline
def absorb(moments: Any, block: Any) -> Any:
    """(count, origin, mean - origin, M2) of what has been merged so far and of a block.

    The origin is the first element of all, so that the sum of it and of what the mean is off is exact enough.
    """
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
    """(origin, mean - origin, variance); NaN of no elements, and of Inf, wherever it is."""
    count, origin, mean, m2 = moments
    known = (origin + mean) - (origin + mean) == 0.0  # of float64, squares may overflow where the mean does not
    return origin, mean if known else np.nan, m2 * (1.0 / count) if count > 0.0 else np.nan


@inline
def note(scratch: Any, b: int, block: Any) -> None:
    """Write down the moments of block b."""
    scratch[b, 0], scratch[b, 1], scratch[b, 2], scratch[b, 3], scratch[b, 4] = block


@inline
def merged(scratch: Any, blocks: int) -> Any:
    """`finished` moments of all blocks that have been noted, in order."""
    sums = NOTHING
    for b in range(blocks):
        sums = absorb(sums, (scratch[b, 0], scratch[b, 1], scratch[b, 2], scratch[b, 3], scratch[b, 4]))
    return finished(sums)

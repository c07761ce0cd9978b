"""Moments of columns: statistics down the lanes of (outer, length, lanes), with the bits of the rows kernels.

Element k of a block of a column goes to accumulator k % 16, its phase, as it goes to lane k % 16 of a row. So 16 sums are
kept for each column, and what is one vector there is 16 vectors here, each across neighbouring columns. Columns are taken a
tile at a time, so that the sums stay in cache. Where there are fewer columns than lanes in a vector (the channels of an image)
and the rows of x lie end to end, 16 rows are taken as one: element i of them belongs to sum i, whatever its column.

`shape` says what is where, see the names below; offsets into `work`, float64 of one thread, are counted in fields.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernels import inline, lanes, place
from .lane_kernels import lane_moments
from .masks import (
    choose,
    copy_flag,
    copy_flags,
    flags,
    flags_first,
    is_none,
    tally,
    unless,
)
from .memory import element, load, load_first, prefetch, put, store, store_first
from .moments import merge, nearness
from .simd import WIDTH, above, any_of, fma, is_double, keep_first, one_by_one, pick, splat, total, unity

MAX_SPAN = 1024  # rows of x whose places are looked up at once
MAX_FLAT = 64  # columns, of rows that are taken 16 as one

# What stands where in `shape`
OUTER, LENGTH, LANES, TILE, FLAT, SPAN, FIELD, GIVEN, WANTED, STREAMED, PER_K, W_OUTER, W_LANE, M_STEP, M_FLAT, SUMS = range(16)
HEAD, NEXT, BACK, JOINED, PITCH, ONCE, ACROSS = range(16, 23)  # ACROSS: tiles side by side
X_OUTER, X_LENGTH, OUT_OUTER, OUT_LENGTH, M_OUTER, M_LENGTH = range(23, 47, 4)  # each as `place` takes it
SHAPE = 47

EACH = 2  # in JOINED: each row has a line's beginning elsewhere

# Fields of `work`, each of shape[FIELD] numbers: sums of each phase, and what they are shifted by
S, Q, N, SHIFT = range(4)
# A block's moments in each column
B_COUNT, B_FIRST, B_SHIFT, B_DELTA, B_M2 = range(4, 9)
# A column's moments, and from them the factors of y
COUNT, ORIGIN, MEAN, M2, CENTER, SCALE, REST, OFFSET, WIDE = range(9, 18)
FIELDS = 18


@inline
def add_up(
    x: Any, xi: int, mask: Any, mi: int, m_step: int, places: Any, c: int, k: int, rows: int, width: int, work: Any,
    sums: int, shift: int, shifted: bool, field: int, ahead: int,
) -> None:  # fmt: skip
    """Add rows k, k + 16, ... of x - shift, and their squares, to the sums of `width` columns; only where the mask is 1.

    What lies `ahead` is fetched meanwhile.
    """
    one, zero = splat(unity(x), np.float64), splat(0.0, np.float64)
    for j in range(0, width, WIDTH):
        at, n = sums + j, width - j
        s, q = load(work, at + S * field, np.float64), load(work, at + Q * field, np.float64)
        count, center = load(work, at + N * field, np.float64), load(work, shift + j, np.float64)
        if n >= WIDTH:
            for i in range(rows):
                xj, mj = xi + places[c, 0, k + i * WIDTH] + j, mi + places[c, 1, k + i * WIDTH] + j * m_step
                yes, d = flags(mask, mj, m_step), load(x, xj, np.float64)
                if shifted:
                    d = d - center
                d = choose(yes, d, zero)
                prefetch(x, xj, ahead)
                s, q, count = fma(d, one, s), fma(d, d, q), tally(count, yes)
        else:
            for i in range(rows):
                xj, mj = xi + places[c, 0, k + i * WIDTH] + j, mi + places[c, 1, k + i * WIDTH] + j * m_step
                d = keep_first(load_first(x, xj, n, np.float64) - center, n)
                yes = flags_first(mask, mj, m_step, n)
                d = choose(yes, d, zero)
                s, q, count = s + d, fma(d, d, q), tally(count, yes)
        store(work, at + S * field, s)
        store(work, at + Q * field, q)
        if not is_none(mask):
            store(work, at + N * field, count)


@inline
def fold(work: Any, at: int, pitch: int, phases: int) -> None:
    """Add the sums of all phases, halves onto halves as `total` does, into those of phase 0."""
    half = 1
    while half * 2 < phases:
        half *= 2
    while half > 0:
        n = max(min(phases - half, half), 0) * pitch
        for j in range(0, n - n % WIDTH, WIDTH):
            upper = load(work, at + half * pitch + j, np.float64)
            store(work, at + j, load(work, at + j, np.float64) + upper)
        if n % WIDTH > 0:
            j = n - n % WIDTH
            upper = load(work, at + half * pitch + j, np.float64)
            store_first(work, at + j, n % WIDTH, load(work, at + j, np.float64) + upper)
        half //= 2


@inline
def first_elements(x: Any, xi: int, mask: Any, mi: int, shape: Any, k: int, n: int, width: int, work: Any, at: int) -> None:
    """The first of elements k .. k + n of each column; with a mask, the first one where it is 1."""
    m_step = shape[M_STEP]
    for j in range(0, width, WIDTH):
        some = min(width - j, WIDTH)
        first = seen = splat(0.0, np.float64)
        for i in range(k, k + n):
            yes = flags_first(mask, mi + place(i, shape, M_LENGTH) + j * m_step, m_step, some)
            fresh = unless(seen, yes)
            first = choose(fresh, lanes(x, xi + place(i, shape, X_LENGTH) + j, some, np.float64), first)
            seen = tally(seen, fresh)
            if is_none(mask) or total(seen) == some:
                break
        store(work, at + j, first)


@inline
def look_up(places: Any, c: int, which: int, k: int, n: int, every: int, shape: Any, layout: int) -> None:
    """Write down where rows k .. k + n are, or where every so many-th of them is."""
    if shape[layout] == 0:
        step = shape[layout + 2]
        for i in range(0, n, every):
            one_by_one()
            places[c, which, i] = (k + i) * step
    else:
        for i in range(0, n, every):
            one_by_one()
            places[c, which, i] = place(k + i, shape, layout)


@inline
def spread(mask: Any, mi: int, m_step: int, places: Any, c: int, n: int, width: int, yes: Any, at: int) -> None:
    """Write down the mask of each element of n rows, as they lie in x; the rows of the mask have been looked up."""
    for i in range(n):
        if m_step == 0:
            for j in range(0, width, WIDTH):  # past the row, where the next one will be
                copy_flags(mask, mi + places[c, 1, i], yes, at + i * width + j)
        else:
            for j in range(width):
                one_by_one()
                copy_flag(mask, mi + places[c, 1, i] + j, yes, at + i * width + j)


@inline
def repeat(array: Any, at: int, n: int, many: int) -> None:
    """Copy the n numbers at `at` behind themselves, until there are so many."""
    for i in range(at + n, at + many):
        one_by_one()
        put(array, i, element(array, i - n))


@inline
def block_moments(
    x: Any, xi: int, mask: Any, mi: int, shape: Any, k: int, n: int, width: int, work: Any, w: int, places: Any, c: int,
    yes: Any,
) -> None:  # fmt: skip
    """The moments of n <= BLOCK elements of each column from k on, as `moments.block_moments` takes them of a row."""
    field, pitch, flat = shape[FIELD], shape[PITCH], shape[FLAT]
    yes_at = c * MAX_SPAN * MAX_FLAT
    spreads = flat != 0 and shape[M_FLAT] == 0  # the mask does not lie as x: it is written down so, a span at a time
    where, where_at, m_step = (yes, yes_at, 1) if spreads else (mask, mi, shape[M_STEP])
    first, shift, phases = w + B_FIRST * field, w + SHIFT * field, min(n, WIDTH)
    first_elements(x, xi, mask, mi, shape, k, n, width, work, first)
    for j in range(0, width, WIDTH):
        store(work, shift + j, load(work, first + j, np.float64) if is_double(x) else splat(0.0, np.float64))
    for sweep in range(2):
        for j in range(0, width, WIDTH):
            store(work, w + B_SHIFT * field + j, load(work, shift + j, np.float64))
        repeat(work, shift, width, width * (WIDTH if flat else 1))
        for f in range(shape[SUMS]):
            for j in range(0, phases * pitch, WIDTH):
                store(work, w + f * field + j, splat(0.0, np.float64))
        for at in range(0, n, shape[SPAN]):
            rows = min(shape[SPAN], n - at)
            look_up(places, c, 0, k + at, rows, WIDTH if flat else 1, shape, X_LENGTH)
            if not is_none(mask):
                look_up(places, c, 1, k + at, rows, WIDTH if flat and not spreads else 1, shape, M_LENGTH)
                if spreads:
                    spread(mask, mi, shape[M_STEP], places, c, rows, width, yes, yes_at)
                    for i in range(0, rows, WIDTH):
                        one_by_one()
                        places[c, 1, i] = i * width
            ahead = place(k + at + rows, shape, X_LENGTH) - places[c, 0, 0]  # what is summed next is fetched meanwhile
            shifted = is_double(x) or sweep > 0
            for start in range(0, rows, shape[ONCE]):
                once = min(shape[ONCE], rows - start)
                for p in range(2 if flat else min(once, WIDTH)):
                    if flat:  # all that fill 16 rows, then the rest
                        rest = once % WIDTH
                        i, some, many, sums = p * (once - rest), width * (rest if p else WIDTH), 1 if p else once // WIDTH, w
                    else:
                        i, some, many, sums = p, width, (once - p + WIDTH - 1) // WIDTH, w + p * pitch
                    i += start
                    add_up(x, xi, where, where_at, m_step, places, c, i, many, some, work, sums, shift, shifted, field, ahead)
        for f in range(shape[SUMS]):
            fold(work, w + f * field, pitch, phases)
        again = splat(0.0, np.float64)
        for j in range(0, width, WIDTH):
            count = splat(float(n), np.float64) if is_none(mask) else load(work, w + N * field + j, np.float64)
            s, q = load(work, w + S * field + j, np.float64), load(work, w + Q * field + j, np.float64)
            delta = s * (splat(1.0, np.float64) / count)
            m2 = q - s * delta
            store(work, w + B_COUNT * field + j, count)
            store(work, w + B_DELTA * field + j, delta)
            store(work, w + B_M2 * field + j, pick(above(splat(0.0, np.float64), m2), splat(0.0, np.float64), m2))
            far = keep_first(above(delta * delta * count, m2 * splat(nearness(x), np.float64)), width - j)
            old = load(work, shift + j, np.float64)
            store(work, shift + j, pick(far, old + delta if is_double(x) else load(work, first + j, np.float64), old))
            again = again + far
        if not any_of(again):
            break


@inline
def short_moments(x: Any, xi: int, shape: Any, width: int, work: Any, w: int) -> None:
    """The moments of columns of at most SHORT elements, of whose sums nothing is kept.

    There are WIDTH columns or more, whose rows lie a step apart; the last ones are taken twice where they do not fill a vector.
    """
    n, field = shape[LENGTH], shape[FIELD]
    for j in range(0, width, WIDTH):
        at = min(j, width - WIDTH)
        first, mean, m2 = lane_moments(x, xi + at, 1, shape[X_LENGTH + 2], n, False)
        store(work, w + COUNT * field + at, splat(float(n), np.float64))
        store(work, w + ORIGIN * field + at, first)
        store(work, w + MEAN * field + at, mean)
        store(work, w + M2 * field + at, m2)


@inline
def start_moments(work: Any, w: int, field: int, width: int) -> None:
    """Moments of no elements."""
    for j in range(0, width, WIDTH):
        store(work, w + COUNT * field + j, splat(0.0, np.float64))
        store(work, w + ORIGIN * field + j, splat(np.nan, np.float64))
        store(work, w + MEAN * field + j, splat(0.0, np.float64))
        store(work, w + M2 * field + j, splat(0.0, np.float64))


@inline
def absorb(block: Any, b: int, b_field: int, work: Any, w: int, field: int, width: int) -> None:
    """Merge the moments of a block, whose fields start at `b`, into those of the columns."""
    zero = splat(0.0, np.float64)
    for j in range(0, width, WIDTH):
        some, at = min(width - j, WIDTH), b + j
        n, first = lanes(block, at, some, np.float64), lanes(block, at + b_field, some, np.float64)
        count, origin = load(work, w + COUNT * field + j, np.float64), load(work, w + ORIGIN * field + j, np.float64)
        old_mean, old_m2 = load(work, w + MEAN * field + j, np.float64), load(work, w + M2 * field + j, np.float64)
        own = pick(count, origin, first)
        mean = (lanes(block, at + 2 * b_field, some, np.float64) - own) + lanes(block, at + 3 * b_field, some, np.float64)
        m2 = lanes(block, at + 4 * b_field, some, np.float64)
        both_mean, both_m2 = merge(count, old_mean, old_m2, n, mean, m2)
        more = above(n, zero)
        store(work, w + COUNT * field + j, count + n)
        store(work, w + ORIGIN * field + j, pick(more, own, origin))
        store(work, w + MEAN * field + j, pick(more, pick(count, both_mean, mean), old_mean))
        store(work, w + M2 * field + j, pick(more, pick(count, both_m2, m2), old_m2))


@inline
def given_moments(mean: Any, var: Any, at: int, work: Any, w: int, field: int, width: int) -> None:
    """Moments that the caller knows."""
    for j in range(width):
        one_by_one()
        put(work, w + COUNT * field + j, 1.0)
        put(work, w + ORIGIN * field + j, element(mean, at + j))
        put(work, w + MEAN * field + j, 0.0)
        put(work, w + M2 * field + j, element(var, at + j))


@inline
def variance(work: Any, w: int, field: int, j: int) -> float:
    """The variance of column j; NaN of no elements."""
    count = element(work, w + COUNT * field + j)
    return element(work, w + M2 * field + j) * (1.0 / count) if count > 0.0 else np.nan


@inline
def tell_moments(mean: Any, var: Any, at: int, work: Any, w: int, field: int, width: int) -> None:
    """Write mean and variance of each column; NaN of no elements, and of Inf, wherever it is."""
    for j in range(width):
        one_by_one()
        own = element(work, w + ORIGIN * field + j) + element(work, w + MEAN * field + j)
        put(mean, at + j, own if own - own == 0.0 else np.nan)
        put(var, at + j, variance(work, w, field, j))

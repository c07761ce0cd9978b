"""Short rows, sixteen at a time: what is done once for a row is done for all of them, in the lanes of one vector."""

from __future__ import annotations

from typing import Any

import numpy as np

from .across_kernels import factors_in, rows_across
from .kernels import (
    AHEAD,
    INNER,
    NO_BIAS,
    OUT_ROWS,
    PERIOD,
    RUNS,
    STREAMED,
    WANTED,
    X_ROWS,
    affine,
    apply_lanes,
    bypasses,
    inline,
    leads,
    misaligned,
    place,
)
from .lane_kernels import FEW, apply_in_lanes, lane_factors, lane_moments
from .memory import (
    STAGE,
    element,
    has_stage,
    in_order,
    load,
    load_evens,
    load_first,
    prefetch,
    put,
    put_quarter,
    stage,
    store,
    store_first,
    stream,
)
from .moments import lane_sums, nearness
from .simd import (
    WIDTH,
    above,
    any_of,
    crosswise,
    fma,
    is_double,
    itemsize,
    keep_first,
    one_by_one,
    pays_in_pairs,
    pick,
    splat,
    total,
    unity,
)

# Fields of `work`, each of WIDTH numbers, one for each row of a group; those from S and Q on hold 4 of each row, see `totals`
ORIGIN, SHIFT, MEAN, VAR, SCALE, OFFSET = range(0, 6 * WIDTH, WIDTH)
S, Q, WORK = 6 * WIDTH, 10 * WIDTH, 14 * WIDTH
LEAST = 4  # rows for which it pays to be a group


@inline
def few_apart(shape: Any, n: int, rows: int) -> bool:
    """Whether rows are so short that each has a lane, and lie a step apart."""
    return n <= FEW and rows == WIDTH and shape[X_ROWS] == 0 and shape[OUT_ROWS] == 0


@inline
def keep_sums(work: Any, at: int, i: int, sums: Any) -> None:
    """Write down, for `totals`, what is left of the sums of row i when halves of lanes are added onto halves down to 4."""
    put_quarter(work, at + i % 4 * WIDTH + i // 4 * 4, sums)


@inline
def totals(work: Any, at: int) -> Any:
    """The `total` of the sums of each row, one in each lane, from the four fields that `keep_sums` has written."""
    a, b = load(work, at, np.float64), load(work, at + WIDTH, np.float64)
    return crosswise(a, b, load(work, at + 2 * WIDTH, np.float64), load(work, at + 3 * WIDTH, np.float64))


@inline
def two_sums(x: Any, a: int, b: int, n: int, shift_a: float, shift_b: float, ahead: int) -> Any:
    """`lane_sums` of the rows at a and b, side by side: each waits for the sums before it, and the other fills the time."""
    s = q = s2 = q2 = splat(0.0, np.float64)
    one, center, center2 = splat(unity(x), np.float64), splat(shift_a, np.float64), splat(shift_b, np.float64)
    whole = n - n % WIDTH
    for i in range(0, whole, WIDTH):
        one_by_one()
        if ahead != 0:
            prefetch(x, a + i, ahead)
            prefetch(x, b + i, ahead)
        d, e = load_evens(x, a + i) - center, load_evens(x, b + i) - center2
        s, s2 = fma(d, one, s), fma(e, one, s2)
        q, q2 = fma(d, d, q), fma(e, e, q2)
    s, q, s2, q2 = in_order(x, s), in_order(x, q), in_order(x, s2), in_order(x, q2)
    if whole < n:
        d = keep_first(load_first(x, a + whole, n - whole, np.float64) - center, n - whole)
        e = keep_first(load_first(x, b + whole, n - whole, np.float64) - center2, n - whole)
        s, s2 = s + d, s2 + e
        q, q2 = fma(d, d, q), fma(e, e, q2)
    return s, q, s2, q2


@inline
def group_deviations(x: Any, shape: Any, r: int, rows: int, shifted: bool, work: Any, ahead: int) -> Any:
    """`deviations` of a few rows from r on, one in each lane, from their shifts in `work`."""
    n = shape[RUNS] * shape[INNER]
    two = pays_in_pairs(x) and (ahead == 0 or (itemsize(x) == 2 and shape[STREAMED] == 0))  # from memory, one is quicker
    for i in range(0, rows, 2 if two else 1):
        one_by_one()
        j = min(i + 1, rows - 1) if two else i
        a, b = place(r + i, shape, X_ROWS), place(r + j, shape, X_ROWS)
        first, second = 0.0, 0.0
        if shifted:
            first, second = element(work, SHIFT + i), element(work, SHIFT + j)
        else:
            put(work, ORIGIN + i, element(x, a))
            put(work, ORIGIN + j, element(x, b))
        if two:
            s, q, s2, q2 = two_sums(x, a, b, n, first, second, ahead)
            keep_sums(work, S, j, s2)
            keep_sums(work, Q, j, q2)
        else:
            s, q, _ = lane_sums(x, a, None, 0, 0, n, first, ahead, None)
        keep_sums(work, S, i, s)
        keep_sums(work, Q, i, q)
    s = totals(work, S)
    delta = s * splat(1.0 / n, np.float64)
    m2 = totals(work, Q) - s * delta
    return delta, m2, above(delta * delta * splat(float(n), np.float64), m2 * splat(nearness(x), np.float64))


@inline
def group_moments(x: Any, shape: Any, r: int, rows: int, work: Any) -> Any:
    """(mean - origin, variance) of a few rows from r on, one in each lane, as `row_moments` takes them of one."""
    zero, n = splat(0.0, np.float64), shape[RUNS] * shape[INNER]
    share = splat(1.0 / n, np.float64)
    if few_apart(shape, n, rows):
        first, mean, m2 = lane_moments(x, place(r, shape, X_ROWS), shape[X_ROWS + 2], 1, n, True)
        store(work, ORIGIN, first)
        return mean, m2 * share
    if is_double(x):
        for i in range(rows):
            one_by_one()
            put(work, ORIGIN + i, element(x, place(r + i, shape, X_ROWS)))
        store(work, SHIFT, load(work, ORIGIN, np.float64))
    delta, m2, far = group_deviations(x, shape, r, rows, is_double(x), work, shape[AHEAD])
    first = load(work, ORIGIN, np.float64)
    shift = first if is_double(x) else zero
    if any_of(far):
        shift = pick(far, shift + delta if is_double(x) else first, shift)
        store(work, SHIFT, shift)
        delta, m2, far = group_deviations(x, shape, r, rows, True, work, 0)
    return (shift - first) + delta, pick(above(zero, m2), zero, m2) * share


@inline
def group_factors(
    x: Any, weight: Any, bias: Any, shape: Any, r: int, rows: int, eps: float, work: Any, single: Any, double: Any
) -> bool:
    """From the moments in `work`, the factors of y for a few rows, as `factors_of` makes them; whether they do for all rows."""
    a, b = splat(1.0, np.float64), splat(NO_BIAS, np.float64)
    if shape[RUNS] == 1:
        for i in range(rows):
            one_by_one()
            w = (r + i) % shape[PERIOD] if shape[PERIOD] > 1 else 0
            put(work, SCALE + i, element(weight, w))
            put(work, OFFSET + i, element(bias, w))
        a, b = load(work, SCALE, np.float64), load(work, OFFSET, np.float64)
    origin, mean, var = load(work, ORIGIN, np.float64), load(work, MEAN, np.float64), load(work, VAR, np.float64)
    fits, center, scale, rest, offset = lane_factors(x, origin, mean, var, shape[RUNS] * shape[INNER], eps, a, b)
    keep_factors(single, center, scale, rest, offset)
    keep_factors(double, center, scale, rest, offset)
    return total(keep_first(fits, rows)) == rows


@inline
def keep_factors(factors: Any, center: Any, scale: Any, rest: Any, offset: Any) -> None:
    """Write down the factors of each row."""
    store(factors, 0, center)
    store(factors, WIDTH, scale)
    store(factors, 2 * WIDTH, rest)
    store(factors, 3 * WIDTH, offset)


@inline
def group(
    x: Any, out: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, r: int, rows: int, work: Any,
    single: Any, double: Any, bounds: Any,
) -> bool:  # fmt: skip
    """A few short rows from r on: what is done once for a row is done for all of them. False if one of them has to go alone."""
    means, variances = group_moments(x, shape, r, rows, work)
    store(work, MEAN, means)
    store(work, VAR, variances)
    if not group_factors(x, weight, bias, shape, r, rows, eps, work, single, double):
        return False
    if shape[WANTED]:
        for i in range(rows):
            one_by_one()
            put(mean, r + i, element(work, ORIGIN + i) + element(work, MEAN + i))
            put(var, r + i, element(work, VAR + i))
    n, per_element = shape[RUNS] * shape[INNER], shape[RUNS] > 1
    x_first, out_first, end_to_end = place(r, shape, X_ROWS), place(r, shape, OUT_ROWS), lie_end_to_end(shape, n)
    if few_apart(shape, n, rows):
        where = x, x_first, out, out_first, shape[X_ROWS + 2], shape[OUT_ROWS + 2], n, weight, bias, per_element
        if is_double(x):
            apply_in_lanes(*where, double, double, np.float64)
        else:
            apply_in_lanes(*where, single, double, np.float32)
        return True
    streamed = bypasses(out, out_first, shape)
    head = misaligned(out, out_first) if streamed and end_to_end else 0
    i, step = (rows - 1, -1) if leads(x, x_first, out, out_first, shape) else (0, 1)
    ahead, left = place(r + rows, shape, X_ROWS) - x_first + shape[AHEAD], rows
    if itemsize(x) > 2 and head > 0 and n % WIDTH == 0 and rows % 4 == 0 and shape[X_ROWS] == 0 and shape[X_ROWS + 2] == n:
        if is_double(x):
            rows_across(x, x_first, out, out_first, weight, bias, n, per_element, rows, double, step, head, ahead, np.float64)
        else:
            rows_across(x, x_first, out, out_first, weight, bias, n, per_element, rows, single, step, head, ahead, np.float32)
        return True
    staged = has_stage(out) and head > 0 and WIDTH * n * itemsize(out) <= STAGE
    target, streamed = stage(out, staged), streamed and not staged
    whole = not streamed or (end_to_end and n % WIDTH == 0 and head == 0)
    while itemsize(x) > 2 and whole and left >= 4:
        one_by_one()
        first = i if step > 0 else i - 3
        if is_double(x):
            four_rows(x, target, weight, bias, shape, r, first, staged, double, step, streamed, ahead, np.float64)
        else:
            four_rows(x, target, weight, bias, shape, r, first, staged, single, step, streamed, ahead, np.float32)
        i += 4 * step
        left -= 4
    for _ in range(left):
        xi, oi = place(r + i, shape, X_ROWS), in_target(i, r, n, shape, staged)
        back, wide = leads(x, xi, target, oi, shape), factors_in(double, i, np.float64)
        if is_double(x):
            apply_lanes(
                x, xi, target, oi, n, weight, bias, 0, per_element, wide, wide, bounds, streamed, back, ahead, np.float64
            )
        else:
            own = factors_in(single, i, np.float32)
            apply_lanes(
                x, xi, target, oi, n, weight, bias, 0, per_element, own, wide, bounds, streamed, back, ahead, np.float32
            )
        i += step
    if staged and is_double(x):
        stream_from(target, out, out_first, rows * n, x, x_first + ahead, np.float64)
    elif staged:
        stream_from(target, out, out_first, rows * n, x, x_first + ahead, np.float32)
    return True


@inline
def four_rows(
    x: Any, target: Any, weight: Any, bias: Any, shape: Any, r: int, i: int, staged: bool, factors: Any,
    step: int, streamed: bool, ahead: int, compute: Any,
) -> None:  # fmt: skip
    """Normalize rows i .. i + 4 of a group, whose weight and bias are loaded once for all of them; as `apply_lanes` does."""
    n, per_element = shape[RUNS] * shape[INNER], shape[RUNS] > 1
    x0, x1 = place(r + i, shape, X_ROWS), place(r + i + 1, shape, X_ROWS)
    x2, x3 = place(r + i + 2, shape, X_ROWS), place(r + i + 3, shape, X_ROWS)
    y0, y1 = in_target(i, r, n, shape, staged), in_target(i + 1, r, n, shape, staged)
    y2, y3 = in_target(i + 2, r, n, shape, staged), in_target(i + 3, r, n, shape, staged)
    f0, f1 = factors_in(factors, i, compute), factors_in(factors, i + 1, compute)
    f2, f3 = factors_in(factors, i + 2, compute), factors_in(factors, i + 3, compute)
    rest = n % WIDTH
    j = 0 if step > 0 else n - rest - WIDTH
    for _ in range(n // WIDTH):
        one_by_one()
        a, b = affine(x, load(x, x0 + j, compute), f0), affine(x, load(x, x1 + j, compute), f1)
        c, d = affine(x, load(x, x2 + j, compute), f2), affine(x, load(x, x3 + j, compute), f3)
        if per_element:
            w, o = load(weight, j, compute), load(bias, j, compute)
            a, b, c, d = fma(a, w, o), fma(b, w, o), fma(c, w, o), fma(d, w, o)
        if streamed:
            prefetch(x, x0 + j, ahead)
            prefetch(x, x1 + j, ahead)
            prefetch(x, x2 + j, ahead)
            prefetch(x, x3 + j, ahead)
            stream(target, y0 + j, a)
            stream(target, y1 + j, b)
            stream(target, y2 + j, c)
            stream(target, y3 + j, d)
        else:
            store(target, y0 + j, a)
            store(target, y1 + j, b)
            store(target, y2 + j, c)
            store(target, y3 + j, d)
        j += WIDTH * step
    if rest > 0:
        j = n - rest
        w, o = splat(1.0, compute), splat(0.0, compute)
        if per_element:
            w, o = load_first(weight, j, rest, compute), load_first(bias, j, rest, compute)
        for xi, yi, f in ((x0, y0, f0), (x1, y1, f1), (x2, y2, f2), (x3, y3, f3)):
            y = affine(x, load_first(x, xi + j, rest, compute), f)
            store_first(target, yi + j, rest, fma(y, w, o) if per_element else y)


@inline
def in_target(i: int, r: int, n: int, shape: Any, staged: bool) -> int:
    """Where row i of a group is written: in out, or in a stage for it."""
    return i * n if staged else place(r + i, shape, OUT_ROWS)


@inline
def lie_end_to_end(shape: Any, n: int) -> bool:
    """Whether the next row of out begins where one ends."""
    return shape[OUT_ROWS] == 0 and shape[OUT_ROWS + 2] == n


@inline
def stream_from(target: Any, out: Any, oi: int, n: int, x: Any, ahead: int, compute: Any) -> None:
    """Stream n elements from a stage to oi, where rows begin anywhere in a vector; meanwhile fetch what x has `ahead`."""
    head = min(n, misaligned(out, oi))
    rest = (n - head) % WIDTH
    for i, k in ((0, head), (n - rest, rest)):
        if k > 0:
            store_first(out, oi + i, k, load_first(target, i, k, compute))
    for i in range(head, n - rest, WIDTH):
        one_by_one()
        prefetch(x, i, ahead)
        stream(out, oi + i, load(target, i, compute))

"""What the moments of columns become: the factors of y, and the apply. Names of fields are those of `column_moments`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .column_moments import (
    BACK,
    CENTER,
    COUNT,
    EACH,
    FIELD,
    FIELDS,
    FLAT,
    JOINED,
    LENGTH,
    M2,
    MEAN,
    NEXT,
    OFFSET,
    ORIGIN,
    OUT_LENGTH,
    PER_K,
    REST,
    SCALE,
    STREAMED,
    SUMS,
    W_LANE,
    WIDE,
    X_LENGTH,
    repeat,
    variance,
)
from .kernels import NO_BIAS, affine, doubtful, extreme, factors_of, inline, lanes, place, too_close
from .lane_kernels import factors_at, lane_factors
from .memory import address, element, load, prefetch, put, store, store_first, stream
from .simd import WIDTH, above, any_of, cast, fma, is_double, itemsize, keep_first, one_by_one, pick, splat, total

EXTREME = 2.0  # in WIDE: see `kernels.extreme`


@inline
def make_factors(x: Any, weight: Any, bias: Any, at: int, shape: Any, eps: float, work: Any, w: int, factors: Any, c: int,
                 width: int) -> bool:  # fmt: skip
    """From the moments, the factors of y in each column, in float64 and as the lanes hold them; whether any needs others.

    That is float64 instead of float32, or `extreme`.
    """
    field, mixed = shape[FIELD], False
    f = c * 4 * field
    for lane in range(0, width, WIDTH):
        n = min(width - lane, WIDTH)
        if sixteen_factors(x, weight, bias, at + lane * shape[W_LANE], n, shape, eps, work, w + lane):
            continue
        for j in range(lane, lane + n):
            var = variance(work, w, field, j)
            moments = element(work, w + ORIGIN * field + j), element(work, w + MEAN * field + j), var
            a = 1.0 if shape[PER_K] else element(weight, at + j * shape[W_LANE])
            b = NO_BIAS if shape[PER_K] else element(bias, at + j * shape[W_LANE])
            single, extremes, center, scale, rest, offset = factors_of(x, moments, shape[LENGTH], eps, a, b)
            put(work, w + WIDE * field + j, EXTREME if extremes else 0.0 if single else 1.0)
            put(work, w + CENTER * field + j, center)
            put(work, w + SCALE * field + j, scale)
            put(work, w + REST * field + j, rest)
            put(work, w + OFFSET * field + j, offset)
            mixed = mixed or extremes or not (single or is_double(x))
    many = width * max(shape[FLAT], 1) + min(shape[JOINED], 1) * WIDTH
    for i in range(CENTER, FIELDS):
        repeat(work, w + i * field, width, many)
    for i in range(4):
        for j in range(0, many, WIDTH):
            store(factors, f + i * field + j, load(work, w + (CENTER + i) * field + j, np.float64))
    return mixed


@inline
def sixteen_factors(x: Any, weight: Any, bias: Any, at: int, n: int, shape: Any, eps: float, work: Any, w: int) -> bool:
    """The factors of n <= WIDTH columns; False if they do not do for some of them."""
    field, one, zero = shape[FIELD], splat(1.0, np.float64), splat(0.0, np.float64)
    count, share = load(work, w + COUNT * field, np.float64), splat(1.0 / element(work, w + COUNT * field), np.float64)
    if shape[SUMS] > 2:  # with a mask, counts differ
        share = one / count
    var = pick(above(count, zero), load(work, w + M2 * field, np.float64) * share, splat(np.nan, np.float64))
    origin, mean = load(work, w + ORIGIN * field, np.float64), load(work, w + MEAN * field, np.float64)
    a, b = one, splat(NO_BIAS, np.float64)
    if shape[PER_K] == 0:
        a, b = splat(element(weight, at), np.float64), splat(element(bias, at), np.float64)
        if shape[W_LANE]:
            a, b = lanes(weight, at, n, np.float64), lanes(bias, at, n, np.float64)
    fits, center, scale, rest, offset = lane_factors(x, origin, mean, var, shape[LENGTH], eps, a, b)
    store(work, w + WIDE * field, one if is_double(x) else zero)
    store(work, w + CENTER * field, center)
    store(work, w + SCALE * field, scale)
    store(work, w + REST * field, rest)
    store(work, w + OFFSET * field, offset)
    return total(keep_first(fits, n)) == n


@inline
def in_double(x: Any, xi: int, n: int, work: Any, at: int, field: int, usual: Any, a: float, b: float, per_k: bool) -> Any:
    """n neighbours normalized in float64; at `at` in `work` are the factors of their columns, `extreme` where not `usual`."""
    elements, factors = lanes(x, xi, n, np.float64), factors_at(work, at, field, np.float64)
    y = pick(usual, affine(x, elements, factors), extreme(elements - factors[0], factors[1], factors[2], factors[3]))
    return fma(y, splat(a, np.float64), splat(b, np.float64)) if per_k else y


@inline
def normalized(
    x: Any, xi: int, n: int, factors: Any, work: Any, at: int, field: int, a: float, b: float, per_k: bool, compute: Any
) -> Any:  # fmt: skip
    """n neighbours normalized, then * a + b if weight and bias belong to the row; as `kernels.normalized` does it."""
    y = affine(x, lanes(x, xi, n, compute), factors)
    if per_k:
        y = fma(y, splat(a, compute), splat(b, compute))
    if itemsize(x) == 2:
        least = too_close(x, cast(factors[3], np.float32), splat(a, np.float32), splat(b, np.float32))
        again = doubtful(cast(y, np.float32), least)
        if any_of(again):
            y = pick(cast(again, compute), cast(in_double(x, xi, n, work, at, field, None, a, b, per_k), compute), y)
    return y


@inline
def apply_lanes(
    x: Any, xi: int, out: Any, oi: int, factors: Any, work: Any, at: int, field: int, a: float, b: float, per_k: bool,
    streamed: int, ahead: Any, compute: Any,
) -> None:  # fmt: skip
    """Normalize WIDTH neighbours; streamed past the caches, while what lies `ahead`, in two places, is fetched into them."""
    y = normalized(x, xi, WIDTH, factors, work, at, field, a, b, per_k, compute)
    if streamed:
        prefetch(x, xi, ahead[0])
        if itemsize(x) > 2:  # halves wait for their arithmetic
            prefetch(x, xi, ahead[1])
        stream(out, oi, y)
    else:
        store(out, oi, y)


@inline
def apply_row(
    x: Any, xi: int, out: Any, oi: int, head: int, skip: int, width: int, a: float, b: float, shape: Any, array: Any, at: int,
    work: Any, w: int, mixed: bool, ahead: Any, compute: Any,
) -> None:  # fmt: skip
    """Normalize a row of a tile less what lies between head and skip, with factors in `array`, or in float64 where needed.

    If `head` is 0, it begins at `skip`.
    """
    field, per_k, streamed = shape[FIELD], shape[PER_K] != 0, shape[STREAMED]
    j = skip if head == 0 else 0
    while j < width:
        if j >= head and not mixed:
            for _ in range((width - j) // WIDTH):
                one_by_one()
                factors = factors_at(array, at + j, field, compute)
                wide = w + CENTER * field + j
                apply_lanes(x, xi + j, out, oi + j, factors, work, wide, field, a, b, per_k, streamed, ahead, compute)
                j += WIDTH
            if j == width:
                return
        n, wide = min(width - j, head if j < head else WIDTH), w + CENTER * field + j
        y = normalized(x, xi + j, n, factors_at(array, at + j, field, compute), work, wide, field, a, b, per_k, compute)
        if mixed:
            others = load(work, w + WIDE * field + j, np.float64)
            y64 = in_double(x, xi + j, n, work, wide, field, above(splat(EXTREME, np.float64), others), a, b, per_k)
            y = pick(cast(others, compute), cast(y64, compute), y)
        if n == WIDTH:
            store(out, oi + j, y)
        else:
            store_first(out, oi + j, n, y)
        j = skip if j < head else j + WIDTH


@inline
def apply_rows(
    x: Any, xi: Any, out: Any, oi: Any, head: int, skip: int, a: Any, b: Any, shape: Any, array: Any, at: int, work: Any,
    w: int, ahead: Any, compute: Any,
) -> None:  # fmt: skip
    """Normalize what lies between head and skip of four rows: the factors of its columns stay in registers meanwhile."""
    field, per_k, streamed = shape[FIELD], shape[PER_K] != 0, shape[STREAMED]
    for j in range(head, skip, WIDTH):
        factors, wide = factors_at(array, at + j, field, compute), w + CENTER * field + j
        apply_lanes(x, xi[0] + j, out, oi[0] + j, factors, work, wide, field, a[0], b[0], per_k, streamed, ahead, compute)
        apply_lanes(x, xi[1] + j, out, oi[1] + j, factors, work, wide, field, a[1], b[1], per_k, streamed, ahead, compute)
        apply_lanes(x, xi[2] + j, out, oi[2] + j, factors, work, wide, field, a[2], b[2], per_k, streamed, ahead, compute)
        apply_lanes(x, xi[3] + j, out, oi[3] + j, factors, work, wide, field, a[3], b[3], per_k, streamed, ahead, compute)


@inline
def apply_with(
    x: Any, xi: int, out: Any, oi: int, start: int, stop: int, first: int, last: int, width: int, head: int, weight: Any,
    bias: Any, shape: Any, array: Any, at: int, work: Any, w: int, mixed: bool, ahead: Any, compute: Any,
) -> None:  # fmt: skip
    """Normalize elements start .. stop of each column of a tile, of first .. last of this call, with factors in `array`.

    What of a row lies before `head` shares a line of out with the end of the row before. If the rows are joined, both are
    written at once, with that row: the line is whole, and is not read for the sake of its other half.
    """
    step, k, per_k, joined = max(shape[FLAT], 1), start, shape[PER_K] != 0, shape[JOINED]
    fours = start if shape[FLAT] or mixed or joined == EACH else min(stop, last - joined)  # end to end, they go one by one
    begun = joined != 0 and start > first  # whether the row before has written what lies before a line
    while k < stop:
        rows, own, skip = 1, head, head
        if k + 4 <= fours:
            rows, skip = 4, head + (width - (0 if joined else head)) // WIDTH * WIDTH
            xs, outs = four_places(xi, k, shape, X_LENGTH), four_places(oi, k, shape, OUT_LENGTH)
            a, b = four(weight, k, 1.0, per_k), four(bias, k, 0.0, per_k)
            apply_rows(x, xs, out, outs, head, skip, a, b, shape, array, at, work, w, ahead, compute)
        if rows == 1 or (head > 0 and not begun) or skip < width:
            for i in range(k, k + rows * step, step):
                n = width * min(step, stop - i)
                x1, out1 = xi + place(i, shape, X_LENGTH), oi + place(i, shape, OUT_LENGTH)
                then = head
                if joined == EACH:
                    own, then = to_line(out, out1), to_line(out, out1 + n)
                    skip = own
                lead = 0 if begun and i + step <= last else own
                end = n + then if joined and i + 2 * step <= last else n
                a1, b1 = (element(weight, i), element(bias, i)) if per_k else (1.0, 0.0)
                apply_row(x, x1, out, out1, min(lead, n), skip, end, a1, b1, shape, array, at, work, w, mixed, ahead, compute)
                begun = joined != 0
        k += rows * step


@inline
def to_line(out: Any, oi: int) -> int:
    """Elements from oi to the first address that is a multiple of WIDTH elements."""
    return (WIDTH - (address(out) // itemsize(out) + oi) % WIDTH) % WIDTH


@inline
def four_places(start: int, k: int, shape: Any, layout: int) -> Any:
    """Where row k and the next three are."""
    return (
        start + place(k, shape, layout), start + place(k + 1, shape, layout),
        start + place(k + 2, shape, layout), start + place(k + 3, shape, layout),
    )  # fmt: skip


@inline
def four(parameter: Any, k: int, default: float, per_k: bool) -> Any:
    """Elements k .. k + 4 of weight or bias, if it belongs to the rows."""
    if per_k:
        return element(parameter, k), element(parameter, k + 1), element(parameter, k + 2), element(parameter, k + 3)
    return default, default, default, default


@inline
def apply(
    x: Any, xi: int, out: Any, oi: int, start: int, stop: int, width: int, head: int, weight: Any, bias: Any, shape: Any,
    work: Any, w: int, factors: Any, c: int, mixed: bool, following: int,
) -> None:  # fmt: skip
    """Normalize elements start .. stop of each column of a tile, in float32 or float64 as they need it.

    A part that the L2 holds after the other, backwards: what was read last is still in cache. Meanwhile memory would only be
    written: the first rows of the tile that is next, which begins at `following`, are fetched. There is none of -1.
    """
    field, span = shape[FIELD], shape[BACK]
    for k in range((stop - 1) // span * span, start - 1, -span):
        end = min(stop, k + span)
        here = xi + place(k, shape, X_LENGTH)
        then = own = xi + place(max(k - span, 0), shape, X_LENGTH) - here  # to what comes next
        if following >= 0 and stop - end < shape[NEXT]:
            then = following + place(stop - end, shape, X_LENGTH) - here
        ahead = own, then
        if is_double(x):
            apply_with(
                x, xi, out, oi, k, end, start, stop, width, head, weight, bias, shape, work, w + CENTER * field, work, w, mixed,
                ahead, np.float64,
            )  # fmt: skip
        else:
            apply_with(
                x, xi, out, oi, k, end, start, stop, width, head, weight, bias, shape, factors, c * 4 * field, work, w, mixed,
                ahead, np.float32,
            )  # fmt: skip

"""The kernels for columns: what the moments of its tiles become, and who takes which tile. See `column_moments`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .column_moments import (
    B_COUNT,
    CENTER,
    COUNT,
    FIELD,
    FIELDS,
    FLAT,
    GIVEN,
    HEAD,
    LANES,
    LENGTH,
    M_OUTER,
    M_STEP,
    MEAN,
    NEXT,
    OFFSET,
    ORIGIN,
    OUT_LENGTH,
    OUT_OUTER,
    OUTER,
    PER_K,
    REST,
    SCALE,
    SPAN,
    STREAMED,
    TILE,
    W_LANE,
    W_OUTER,
    WANTED,
    WIDE,
    X_LENGTH,
    X_OUTER,
    absorb,
    block_moments,
    given_moments,
    repeat,
    start_moments,
    tell_moments,
    variance,
)
from .kernels import (
    BLOCK,
    affine,
    doubtful,
    factors_of,
    inline,
    lanes,
    place,
    too_close,
)
from .memory import element, fence, load, prefetch, put, store, store_first, stream
from .shares import next_piece, use_threads
from .simd import WIDTH, any_of, cast, fma, is_double, itemsize, one_by_one, pick, splat


@inline
def make_factors(x: Any, weight: Any, bias: Any, at: int, shape: Any, eps: float, work: Any, w: int, factors: Any, c: int,
                 width: int) -> bool:  # fmt: skip
    """From the moments, the factors of y in each column, in float64 and as the lanes hold them; whether any needs float64."""
    field, mixed = shape[FIELD], False
    f = c * 4 * field
    for j in range(width):
        var = variance(work, w, field, j)
        moments = element(work, w + ORIGIN * field + j), element(work, w + MEAN * field + j), var
        rstd = 1.0 / np.sqrt(var + eps) if var + eps != 0.0 else 0.0
        scale = rstd if shape[PER_K] else rstd * element(weight, at + j * shape[W_LANE])
        offset = 0.0 if shape[PER_K] else element(bias, at + j * shape[W_LANE])
        single, center, scale, rest, offset = factors_of(x, moments, shape[LENGTH], scale, offset)
        put(work, w + WIDE * field + j, 0.0 if single else 1.0)
        put(work, w + CENTER * field + j, center)
        put(work, w + SCALE * field + j, scale)
        put(work, w + REST * field + j, rest)
        put(work, w + OFFSET * field + j, offset)
        mixed = mixed or not single
    times = max(shape[FLAT], 1)
    for i in range(CENTER, FIELDS):
        repeat(work, w + i * field, width, times)
    for i in range(4):
        for j in range(0, width * times, WIDTH):
            store(factors, f + i * field + j, load(work, w + (CENTER + i) * field + j, np.float64))
    return mixed and not is_double(x)


@inline
def column_factors(array: Any, at: int, field: int, compute: Any) -> Any:
    """(center, scale, rest, offset) of WIDTH columns, as `kernels.affine` takes them."""
    center, scale = load(array, at, compute), load(array, at + field, compute)
    return center, scale, load(array, at + 2 * field, compute), load(array, at + 3 * field, compute)


@inline
def in_double(x: Any, xi: int, n: int, work: Any, at: int, field: int, a: float, b: float, per_k: bool) -> Any:
    """n neighbours normalized in float64; at `at` in `work` are the factors of their columns."""
    y = affine(x, lanes(x, xi, n, np.float64), column_factors(work, at, field, np.float64))
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
            y = pick(cast(again, compute), cast(in_double(x, xi, n, work, at, field, a, b, per_k), compute), y)
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
    """Normalize a row of a tile less what lies between head and skip, with factors in `array`, or in float64 where needed."""
    field, per_k, streamed = shape[FIELD], shape[PER_K] != 0, shape[STREAMED]
    j = skip if head == 0 else 0
    while j < width:
        if j >= head and not mixed:
            for _ in range((width - j) // WIDTH):
                one_by_one()
                factors = column_factors(array, at + j, field, compute)
                wide = w + CENTER * field + j
                apply_lanes(x, xi + j, out, oi + j, factors, work, wide, field, a, b, per_k, streamed, ahead, compute)
                j += WIDTH
            if j == width:
                return
        n, wide = min(width - j, head if j < head else WIDTH), w + CENTER * field + j
        y = normalized(x, xi + j, n, column_factors(array, at + j, field, compute), work, wide, field, a, b, per_k, compute)
        if mixed:
            y64 = in_double(x, xi + j, n, work, wide, field, a, b, per_k)
            y = pick(load(work, w + WIDE * field + j, compute), cast(y64, compute), y)
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
        factors, wide = column_factors(array, at + j, field, compute), w + CENTER * field + j
        apply_lanes(x, xi[0] + j, out, oi[0] + j, factors, work, wide, field, a[0], b[0], per_k, streamed, ahead, compute)
        apply_lanes(x, xi[1] + j, out, oi[1] + j, factors, work, wide, field, a[1], b[1], per_k, streamed, ahead, compute)
        apply_lanes(x, xi[2] + j, out, oi[2] + j, factors, work, wide, field, a[2], b[2], per_k, streamed, ahead, compute)
        apply_lanes(x, xi[3] + j, out, oi[3] + j, factors, work, wide, field, a[3], b[3], per_k, streamed, ahead, compute)


@inline
def apply_with(
    x: Any, xi: int, out: Any, oi: int, start: int, stop: int, width: int, weight: Any, bias: Any, shape: Any, array: Any,
    at: int, work: Any, w: int, mixed: bool, ahead: Any, compute: Any,
) -> None:  # fmt: skip
    """Normalize elements start .. stop of each column of a tile, with factors in `array`."""
    step, k, per_k = max(shape[FLAT], 1), start, shape[PER_K] != 0
    head = min(shape[HEAD], width * step)
    while k < stop:
        rows, skip = 1, head
        if shape[FLAT] == 0 and k + 4 <= stop and not mixed:  # rows that lie end to end are quicker one by one
            rows, skip = 4, head + (width - head) // WIDTH * WIDTH
            xs, outs = four_places(xi, k, shape, X_LENGTH), four_places(oi, k, shape, OUT_LENGTH)
            a, b = four(weight, k, 1.0, per_k), four(bias, k, 0.0, per_k)
            apply_rows(x, xs, out, outs, head, skip, a, b, shape, array, at, work, w, ahead, compute)
        for i in range(k, k + rows * step, step):
            n = width * min(step, stop - i)
            if rows == 1 or head > 0 or skip < n:
                x1, out1 = xi + place(i, shape, X_LENGTH), oi + place(i, shape, OUT_LENGTH)
                a1, b1 = (element(weight, i), element(bias, i)) if per_k else (1.0, 0.0)
                apply_row(x, x1, out, out1, min(head, n), skip, n, a1, b1, shape, array, at, work, w, mixed, ahead, compute)
        k += rows * step


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
    x: Any, xi: int, out: Any, oi: int, start: int, stop: int, width: int, weight: Any, bias: Any, shape: Any, work: Any,
    w: int, factors: Any, c: int, mixed: bool, following: int,
) -> None:  # fmt: skip
    """Normalize elements start .. stop of each column of a tile, in float32 or float64 as they need it.

    A span after the other, backwards: what was read last is still in cache. Meanwhile memory would only be written: the first
    rows of the tile that is next, which begins at `following`, are fetched. There is none of -1.
    """
    field, span = shape[FIELD], shape[SPAN]
    for k in range((stop - 1) // span * span, start - 1, -span):
        end = min(stop, k + span)
        here = xi + place(k, shape, X_LENGTH)
        then = own = xi + place(max(k - span, 0), shape, X_LENGTH) - here  # to what comes next
        if following >= 0 and stop - end < shape[NEXT]:
            then = following + place(stop - end, shape, X_LENGTH) - here
        ahead = own, then
        if is_double(x):
            apply_with(
                x, xi, out, oi, k, end, width, weight, bias, shape, work, w + CENTER * field, work, w, False, ahead, np.float64
            )
        else:
            apply_with(
                x, xi, out, oi, k, end, width, weight, bias, shape, factors, c * 4 * field, work, w, mixed, ahead, np.float32
            )


@inline
def tiles_in(shape: Any) -> int:
    """The number of tiles."""
    return shape[OUTER] * ((shape[LANES] + shape[TILE] - 1) // shape[TILE])


@inline
def tile_of(t: int, shape: Any) -> Any:
    """(outer, first column, columns) of tile t."""
    tiles = (shape[LANES] + shape[TILE] - 1) // shape[TILE]
    first = t % tiles * shape[TILE]
    return t // tiles, first, min(shape[TILE], shape[LANES] - first)


@inline
def columns(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any, c: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Moments and apply of tiles start .. stop."""
    field, w, length = shape[FIELD], c * FIELDS * shape[FIELD], shape[LENGTH]
    for t in range(start, stop):
        o, first, width = tile_of(t, shape)
        xi, oi = place(o, shape, X_OUTER) + first, place(o, shape, OUT_OUTER) + first
        mi, at = place(o, shape, M_OUTER) + first * shape[M_STEP], o * shape[LANES] + first
        if shape[GIVEN]:
            given_moments(mean, var, at, work, w, field, width)
        else:
            start_moments(work, w, field, width)
            for k in range(0, length, BLOCK):
                block_moments(x, xi, mask, mi, shape, k, min(BLOCK, length - k), width, work, w, places, c, yes)
                absorb(work, w + B_COUNT * field, field, work, w, field, width)
            if shape[WANTED]:
                tell_moments(mean, var, at, work, w, field, width)
        wi = o * shape[W_OUTER] + first * shape[W_LANE]
        mixed = make_factors(x, weight, bias, wi, shape, eps, work, w, factors, c, width)
        following = -1
        if t + 1 < tiles_in(shape):
            o, first, _ = tile_of(t + 1, shape)
            following = place(o, shape, X_OUTER) + first
        apply(x, xi, out, oi, 0, length, width, weight, bias, shape, work, w, factors, c, mixed, following)


@njit(nogil=True, error_model="numpy", _nrt=False)
def columns_serial(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any,
) -> None:  # fmt: skip
    """All tiles on this thread."""
    columns(x, out, mask, weight, bias, mean, var, shape, eps, work, factors, places, yes, 0, 0, tiles_in(shape))
    fence()


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def columns_parallel(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any, chunks: int, taken: Any,
) -> None:  # fmt: skip
    """A share of the tiles on each thread."""
    setting = use_threads(chunks)
    tiles = tiles_in(shape)
    for i in prange(chunks):
        c = np.intp(i)
        start, stop = next_piece(tiles, taken, 0, c, chunks)
        while start < stop:
            columns(x, out, mask, weight, bias, mean, var, shape, eps, work, factors, places, yes, c, start, stop)
            start, stop = next_piece(tiles, taken, 0, c, chunks)
        fence()
    use_threads(setting)


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def columns_split(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any, scratch: Any, chunks: int, taken: Any,
) -> None:  # fmt: skip
    """Few tiles: a share of the blocks of all tiles on each thread, for the moments, then for the apply.

    `scratch` is (blocks of all tiles, 5 * TILE): the moments of each block; then, with the first one, those of the columns.
    """
    setting = use_threads(chunks)
    field, tile, length = shape[FIELD], shape[TILE], shape[LENGTH]
    tiles = tiles_in(shape)
    blocks = (length + BLOCK - 1) // BLOCK
    for i in prange(chunks):
        c = np.intp(i)
        w = c * FIELDS * field
        start, stop = next_piece(tiles * blocks, taken, 0, c, chunks)
        while start < stop:
            for t in range(start, stop):
                o, first, width = tile_of(t % tiles, shape)
                xi, mi = place(o, shape, X_OUTER) + first, place(o, shape, M_OUTER) + first * shape[M_STEP]
                k = t // tiles * BLOCK
                block_moments(x, xi, mask, mi, shape, k, min(BLOCK, length - k), width, work, w, places, c, yes)
                for f in range(5):
                    for j in range(width):
                        one_by_one()
                        scratch[t, f * tile + j] = element(work, w + (B_COUNT + f) * field + j)
            start, stop = next_piece(tiles * blocks, taken, 0, c, chunks)
    for t in range(tiles):
        o, first, width = tile_of(t, shape)
        start_moments(work, 0, field, width)
        for b in range(blocks):
            absorb(scratch, (b * tiles + t) * 5 * tile, tile, work, 0, field, width)
        if shape[WANTED]:
            tell_moments(mean, var, o * shape[LANES] + first, work, 0, field, width)
        for f in range(4):
            for j in range(width):
                one_by_one()
                scratch[t, f * tile + j] = element(work, (COUNT + f) * field + j)
    for i in prange(chunks):
        c = np.intp(i)
        w = c * FIELDS * field
        start, stop = next_piece(tiles * blocks, taken, 1, chunks - 1 - c, chunks)
        while start < stop:
            for back in range(start, stop):
                t = tiles * blocks - 1 - back  # the last blocks of its share: what was read last is still in cache
                o, first, width = tile_of(t % tiles, shape)
                for f in range(4):
                    for j in range(width):
                        one_by_one()
                        put(work, w + (COUNT + f) * field + j, scratch[t % tiles, f * tile + j])
                wi = o * shape[W_OUTER] + first * shape[W_LANE]
                mixed = make_factors(x, weight, bias, wi, shape, eps, work, w, factors, c, width)
                xi, oi = place(o, shape, X_OUTER) + first, place(o, shape, OUT_OUTER) + first
                k = t // tiles * BLOCK
                apply(x, xi, out, oi, k, min(length, k + BLOCK), width, weight, bias, shape, work, w, factors, c, mixed, -1)
            start, stop = next_piece(tiles * blocks, taken, 1, chunks - 1 - c, chunks)
        fence()
    use_threads(setting)


# The same with a mask: `compiling` takes the type of the mask from the name
masked_columns_serial, masked_columns_parallel, masked_columns_split = columns_serial, columns_parallel, columns_split

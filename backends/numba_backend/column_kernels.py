"""The kernels for columns: what the moments of its tiles become, and who takes which tile. See `column_moments`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .column_moments import (
    B_COUNT,
    BACK,
    CENTER,
    COUNT,
    EACH,
    FIELD,
    FIELDS,
    FLAT,
    GIVEN,
    HEAD,
    JOINED,
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
    PITCH,
    REST,
    SCALE,
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
from .memory import address, element, fence, load, prefetch, put, store, store_first, stream
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
    many = width * max(shape[FLAT], 1) + min(shape[JOINED], 1) * WIDTH
    for i in range(CENTER, FIELDS):
        repeat(work, w + i * field, width, many)
    for i in range(4):
        for j in range(0, many, WIDTH):
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
    """Normalize a row of a tile less what lies between head and skip, with factors in `array`, or in float64 where needed.

    If `head` is 0, it begins at `skip`.
    """
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
                x, xi, out, oi, k, end, start, stop, width, head, weight, bias, shape, work, w + CENTER * field, work, w, False,
                ahead, np.float64,
            )  # fmt: skip
        else:
            apply_with(
                x, xi, out, oi, k, end, start, stop, width, head, weight, bias, shape, factors, c * 4 * field, work, w, mixed,
                ahead, np.float32,
            )  # fmt: skip


@inline
def tiles_across(shape: Any) -> int:
    """The number of tiles side by side. The first is wider by what precedes a line of out, so that others begin with one."""
    return max((shape[LANES] - shape[HEAD] + shape[TILE] - 1) // shape[TILE], 1)


@inline
def tile_of(t: int, shape: Any) -> Any:
    """(outer, first column, columns, those that precede a line of out) of tile t."""
    tiles = tiles_across(shape)
    i, first, head = t % tiles, 0, min(shape[HEAD], shape[LANES] * max(shape[FLAT], 1))
    if i > 0:
        first, head = i * shape[TILE] + shape[HEAD], 0
    end = (i + 1) * shape[TILE] + shape[HEAD]
    return t // tiles, first, (end if i + 1 < tiles else shape[LANES]) - first, head


@inline
def columns(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any, c: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Moments and apply of tiles start .. stop."""
    field, w, length = shape[FIELD], c * FIELDS * shape[FIELD], shape[LENGTH]
    tiles = shape[OUTER] * tiles_across(shape)
    for t in range(start, stop):
        o, first, width, head = tile_of(t, shape)
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
        if t + 1 < tiles:
            o, first, _, _ = tile_of(t + 1, shape)
            following = place(o, shape, X_OUTER) + first
        apply(x, xi, out, oi, 0, length, width, head, weight, bias, shape, work, w, factors, c, mixed, following)


@njit(nogil=True, error_model="numpy", _nrt=False)
def columns_serial(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any,
) -> None:  # fmt: skip
    """All tiles on this thread."""
    tiles = shape[OUTER] * tiles_across(shape)
    columns(x, out, mask, weight, bias, mean, var, shape, eps, work, factors, places, yes, 0, 0, tiles)
    fence()


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def columns_parallel(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any, chunks: int, taken: Any,
) -> None:  # fmt: skip
    """A share of the tiles on each thread."""
    setting = use_threads(chunks)
    tiles = shape[OUTER] * tiles_across(shape)
    for i in prange(chunks):
        c = np.intp(i)
        start, stop = next_piece(tiles, taken, 0, c, chunks)
        while start < stop:
            columns(x, out, mask, weight, bias, mean, var, shape, eps, work, factors, places, yes, c, start, stop)
            start, stop = next_piece(tiles, taken, 0, c, chunks)
        fence()
    use_threads(setting)


@inline
def note_block(
    x: Any, mask: Any, shape: Any, b: int, tile: int, row: int, scratch: Any, work: Any, w: int, places: Any, c: int, yes: Any
) -> None:  # fmt: skip
    """Write the moments of block b of a tile into a row of `scratch`."""
    o, first, width, _ = tile_of(tile, shape)
    xi, mi = place(o, shape, X_OUTER) + first, place(o, shape, M_OUTER) + first * shape[M_STEP]
    k = b * BLOCK
    block_moments(x, xi, mask, mi, shape, k, min(BLOCK, shape[LENGTH] - k), width, work, w, places, c, yes)
    for f in range(5):
        for j in range(width):
            one_by_one()
            scratch[row, f * shape[PITCH] + j] = element(work, w + (B_COUNT + f) * shape[FIELD] + j)


@inline
def merge_blocks(
    mean: Any, var: Any, shape: Any, tile: int, row: int, tiles: int, blocks: int, scratch: Any, work: Any
) -> None:  # fmt: skip
    """Merge what `note_block` wrote of a tile, every so many rows from `row` on, into the row behind all of them."""
    o, first, width, _ = tile_of(tile, shape)
    field, pitch = shape[FIELD], shape[PITCH]
    start_moments(work, 0, field, width)
    for b in range(blocks):
        absorb(scratch, (row + b * tiles) * 5 * pitch, pitch, work, 0, field, width)
    if shape[WANTED]:
        tell_moments(mean, var, o * shape[LANES] + first, work, 0, field, width)
    for f in range(4):
        for j in range(width):
            one_by_one()
            scratch[row + blocks * tiles, f * pitch + j] = element(work, (COUNT + f) * field + j)


@inline
def apply_block(
    x: Any, out: Any, weight: Any, bias: Any, shape: Any, eps: float, b: int, tile: int, row: int, scratch: Any, work: Any,
    w: int, factors: Any, c: int,
) -> None:  # fmt: skip
    """Normalize block b of a tile, whose moments are in a row of `scratch`."""
    o, first, width, head = tile_of(tile, shape)
    for f in range(4):
        for j in range(width):
            one_by_one()
            put(work, w + (COUNT + f) * shape[FIELD] + j, scratch[row, f * shape[PITCH] + j])
    wi = o * shape[W_OUTER] + first * shape[W_LANE]
    mixed = make_factors(x, weight, bias, wi, shape, eps, work, w, factors, c, width)
    xi, oi = place(o, shape, X_OUTER) + first, place(o, shape, OUT_OUTER) + first
    k = b * BLOCK
    stop = min(shape[LENGTH], k + BLOCK)
    apply(x, xi, out, oi, k, stop, width, head, weight, bias, shape, work, w, factors, c, mixed, -1)


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def columns_split(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any, scratch: Any, chunks: int, taken: Any,
) -> None:  # fmt: skip
    """Few tiles: a share of the blocks of some tiles on each thread, for the moments, then for the apply; then other tiles.

    `scratch` is (blocks of those tiles + tiles, 5 * PITCH): the moments of each block, and of the columns of each tile.
    """
    setting = use_threads(chunks)
    field, all_tiles = shape[FIELD], shape[OUTER] * tiles_across(shape)
    blocks = (shape[LENGTH] + BLOCK - 1) // BLOCK
    tiles = len(scratch) // (blocks + 1)
    before = now = 0  # tiles
    for first in range(0, all_tiles + tiles, tiles):
        before, now = now, max(min(all_tiles - first, tiles), 0)
        rows, done = before * blocks, first - tiles
        for t in range(before):
            merge_blocks(mean, var, shape, done + t, t, before, blocks, scratch, work)
        sweep = first // tiles * 2
        for i in prange(chunks):
            c = np.intp(i)
            w = c * FIELDS * field
            start, stop = next_piece(rows, taken, sweep, chunks - 1 - c, chunks)
            while start < stop:
                for back in range(start, stop):
                    b, t = divmod(rows - 1 - back, before)  # the last blocks of its share: they are still in cache
                    apply_block(x, out, weight, bias, shape, eps, b, done + t, rows + t, scratch, work, w, factors, c)
                start, stop = next_piece(rows, taken, sweep, chunks - 1 - c, chunks)
            start, stop = next_piece(now * blocks, taken, sweep + 1, c, chunks)
            while start < stop:
                for row in range(start, stop):
                    b, t = divmod(row, now)
                    note_block(x, mask, shape, b, first + t, row, scratch, work, w, places, c, yes)
                start, stop = next_piece(now * blocks, taken, sweep + 1, c, chunks)
            fence()
    use_threads(setting)


# The same with a mask: `compiling` takes the type of the mask from the name
masked_columns_serial, masked_columns_parallel, masked_columns_split = columns_serial, columns_parallel, columns_split

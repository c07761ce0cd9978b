"""The kernels for columns: tiles of them, and who takes which tile. See `column_moments` and `column_apply`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .column_apply import apply, make_factors
from .column_moments import (
    ACROSS,
    B_COUNT,
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
    OUT_OUTER,
    OUTER,
    PITCH,
    TILE,
    W_LANE,
    W_OUTER,
    WANTED,
    X_LENGTH,
    X_OUTER,
    absorb,
    block_moments,
    given_moments,
    short_moments,
    start_moments,
    tell_moments,
)
from .kernels import BLOCK, inline, place
from .lane_kernels import SHORT
from .masks import is_none
from .memory import element, fence, put
from .shares import leave, next_piece, note_time, note_wait, ticks, use_threads
from .simd import WIDTH, one_by_one


@inline
def tile_of(t: int, shape: Any) -> Any:
    """(outer, first column, columns, those that precede a line of out) of tile t.

    The first tile is wider by these, so that others begin with a line.
    """
    tiles = shape[ACROSS]
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
    tiles = shape[OUTER] * shape[ACROSS]
    for t in range(start, stop):
        o, first, width, head = tile_of(t, shape)
        xi, oi = place(o, shape, X_OUTER) + first, place(o, shape, OUT_OUTER) + first
        mi, at = place(o, shape, M_OUTER) + first * shape[M_STEP], o * shape[LANES] + first
        if shape[GIVEN]:
            given_moments(mean, var, at, work, w, field, width)
        else:
            if is_none(mask) and length <= SHORT and width >= WIDTH and shape[X_LENGTH] == 0:
                short_moments(x, xi, shape, width, work, w)
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
    tiles = shape[OUTER] * shape[ACROSS]
    columns(x, out, mask, weight, bias, mean, var, shape, eps, work, factors, places, yes, 0, 0, tiles)
    fence()


@njit(nogil=True, parallel=True, error_model="numpy", _nrt=False)
def columns_parallel(
    x: Any, out: Any, mask: Any, weight: Any, bias: Any, mean: Any, var: Any, shape: Any, eps: float, work: Any, factors: Any,
    places: Any, yes: Any, chunks: int, taken: Any,
) -> None:  # fmt: skip
    """A share of the tiles on each thread."""
    setting, began = use_threads(chunks), ticks()
    tiles = shape[OUTER] * shape[ACROSS]
    for i in prange(chunks):
        c = np.intp(i)
        start, stop = next_piece(tiles, taken, 0, c, chunks)
        while start < stop:
            columns(x, out, mask, weight, bias, mean, var, shape, eps, work, factors, places, yes, c, start, stop)
            start, stop = next_piece(tiles, taken, 0, c, chunks)
        fence()
        leave(taken, 0, c, chunks)
    note_wait(taken, 0, chunks)
    note_time(taken, began)
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
    setting, began = use_threads(chunks), ticks()
    field, all_tiles = shape[FIELD], shape[OUTER] * shape[ACROSS]
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
            leave(taken, sweep, c, chunks)
        note_wait(taken, sweep, chunks)
    note_time(taken, began)
    use_threads(setting)


# The same with a mask: `compiling` takes the type of the mask from the name
masked_columns_serial, masked_columns_parallel, masked_columns_split = columns_serial, columns_parallel, columns_split

"""The kernels for a row that passes through a buffer piece by piece: moments of a piece, merge of all, apply to a piece.

A piece is a number of whole blocks of the row, elements start .. stop of it. `scratch` holds (count, first element, shift,
mean - shift, M2) of each block of the row, and after the merge, with the first block, (origin, mean - origin, variance).
"""

from __future__ import annotations

from typing import Any

from numba import njit

from .kernels import BLOCK, UNKNOWN, apply_span
from .moments import block_moments, merged, note


@njit(nogil=True, error_model="numpy", _nrt=False)
def tile_moments(x: Any, mask: Any, scratch: Any, start: int, stop: int) -> None:
    """Moments of the blocks of a piece, where the mask is True."""
    for at in range(start, stop, BLOCK):
        note(scratch, at // BLOCK, block_moments(x, at - start, mask, at - start, 1, min(BLOCK, stop - at), 0, None))


@njit(nogil=True, error_model="numpy", _nrt=False)
def tile_merge(scratch: Any) -> None:
    """Moments of the row, from those of its blocks."""
    scratch[0, 0], scratch[0, 1], scratch[0, 2] = merged(scratch, scratch.shape[0])


@njit(nogil=True, error_model="numpy", _nrt=False)
def tile_apply(x: Any, weight: Any, bias: Any, scratch: Any, shape: Any, eps: float, start: int, stop: int) -> None:
    """Normalize a piece in place."""
    moments = scratch[0, 0], scratch[0, 1], scratch[0, 2]
    apply_span(x, -start, x, -start, start, stop, weight, bias, 0, moments, shape, eps, UNKNOWN, 0)


masked_tile_moments = tile_moments  # as with `rows_serial`

"""Ones and zeros for the weight or bias that is not given, as kernels read one of each: the same few arrays for all calls.

They are only ever read. Large ones are not kept, so no more than some MiB are held, and `normkit.empty_cache` lets go of those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray  # 1 ms at run time

LARGEST = 1 << 22  # bytes of one that is kept

_kept: dict[tuple[str, np.dtype[Any]], NDArray[Any]] = {}  # by the number as text, which tells 0.0 and -0.0 apart


def constant(number: float, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """So many times the same number, not to be written to."""
    if size * dtype.itemsize > LARGEST:
        return np.full(size, number, dtype)
    key = repr(float(number)), dtype
    kept = _kept.get(key)
    if kept is None or kept.size < size:
        kept = _kept[key] = np.full(1 << (size - 1).bit_length(), number, dtype)  # twice as many each time: soon they suffice
    return kept[:size]


def is_kept(size: int, dtype: np.dtype[Any]) -> bool:
    """Whether so many are kept: what calls have in common may then refer to them."""
    return size * dtype.itemsize <= LARGEST


def forget() -> None:
    """Keep none."""
    _kept.clear()

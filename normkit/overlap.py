"""Which arrays lie over each other: to write one of them changes the other."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from normkit.problem import Array

_WORK = 10_000  # candidates that NumPy may try, some 0.1 ms; what takes more counts as shared


def may_share_memory(a: Array, b: Array) -> bool:
    """Whether the memory that two arrays of one family span has a byte in common."""
    if isinstance(a, np.ndarray):
        return np.may_share_memory(a, b)
    (a_low, a_high), (b_low, b_high) = _span(a), _span(b)
    return a_low < b_high and b_low < a_high


def shares_memory(a: Array, b: Array) -> bool:
    """Whether two arrays of one family have an element in common: two columns of one table have none."""
    if not may_share_memory(a, b) or not isinstance(a, np.ndarray):
        return may_share_memory(a, b)
    try:
        return np.shares_memory(a, b, max_work=_WORK)  # type: ignore[arg-type]  # NumPy takes any number, its stubs two
    except np.exceptions.TooHardError:
        return True


def repeats(a: Array) -> bool:
    """Whether elements of one array lie over each other, as those of a stride of 0 do."""
    reach = a.dtype.itemsize if 0 not in a.shape else 0
    for stride, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (n - 1)
    return False


def place(a: Array) -> tuple[int, np.dtype[Any]]:
    """Where the first element of an array is, and of which dtype it is."""
    interface = getattr(a, "__array_interface__", None)
    return a.data.ptr if interface is None else interface["data"][0], a.dtype  # CuPy's own interface asks the driver


def _span(a: Array) -> tuple[int, int]:
    if prod(a.shape) == 0:
        return 0, 0
    start = place(a)[0]
    reach = [step * (n - 1) for step, n in zip(a.strides, a.shape, strict=True)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + a.dtype.itemsize

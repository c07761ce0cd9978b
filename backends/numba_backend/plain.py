"""The names of simd.py and memory.py on plain NumPy, for NUMBA_DISABLE_JIT=1: a debugger can step through kernels, at its pace.

Lanes are arrays of WIDTH floats. Every access to memory is checked against the array's extent: here a kernel that reads or
writes outside fails an assertion. Scalars are NumPy's, which overflow to inf where Python's would raise. The float64 fma
rounds as long double does, which is not always once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

WIDTH = 16
STACK = 14 * WIDTH

__all__ = [
    "above", "address", "any_of", "cast", "crosswise", "element", "fence", "fma", "forwards_from_memory", "has_stage",
    "in_order", "is_bfloat16", "is_double", "itemsize", "joined", "keep_first", "load", "load_apart", "load_evens",
    "load_first", "magnitude", "one_by_one", "pays_in_pairs", "pick", "prefetch", "put", "put_quarter", "root", "roots",
    "splat", "stack", "stage", "store", "store_apart", "store_first", "store_normal", "stream", "take", "total", "unity",
]  # fmt: skip

_NUMBERS = np.arange(WIDTH)


def _memory(array: Any, index: int, count: int) -> Any:
    """`count` elements of the array's memory from `index` on, all of which must belong to it."""
    assert array.size > 0
    extent = 1 + sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) // array.itemsize
    assert 0 <= index <= index + count <= extent, (index, count, extent)
    return as_strided(array, (extent,), (array.itemsize,))[index : index + count]


def load(array: Any, index: int, compute: Any) -> Any:
    return _memory(array, index, WIDTH).astype(compute)


def load_evens(array: Any, index: int) -> Any:
    return load(array, index, np.float64)


def in_order(array: Any, lanes: Any) -> Any:
    return lanes


def load_first(array: Any, index: int, count: int, compute: Any) -> Any:
    assert 0 <= count < WIDTH
    lanes = np.zeros(WIDTH, compute)
    lanes[:count] = _memory(array, index, count)
    return lanes


def store(array: Any, index: int, lanes: Any) -> None:
    _memory(array, index, WIDTH)[...] = _rounded(lanes, array)


def store_normal(array: Any, index: int, lanes: Any) -> None:
    store(array, index, lanes)


def store_first(array: Any, index: int, count: int, lanes: Any) -> None:
    assert 0 <= count < WIDTH
    _memory(array, index, count)[...] = _rounded(lanes[:count], array)


def stream(array: Any, index: int, lanes: Any) -> None:
    assert (address(array) + index * array.itemsize) % (64 if array.itemsize > 2 else 16) == 0
    store(array, index, lanes)


def load_apart(array: Any, index: int, step: int, compute: Any) -> Any:
    return np.array([_memory(array, index + i * step, 1)[0] for i in range(WIDTH)]).astype(compute)


def store_apart(array: Any, index: int, step: int, lanes: Any) -> None:
    for i, lane in enumerate(_rounded(lanes, array)):
        _memory(array, index + i * step, 1)[0] = lane


def _rounded(lanes: Any, array: Any) -> Any:
    """Halves come from float32."""
    return lanes.astype(np.float32) if array.itemsize == 2 else lanes


def splat(scalar: float, compute: Any) -> Any:
    return np.full(WIDTH, scalar, compute)


def keep_first(lanes: Any, count: int) -> Any:
    return np.where(count > _NUMBERS, lanes, lanes.dtype.type(0))


def joined(a: Any, b: Any, count: int) -> Any:
    return np.where(np.arange(WIDTH) < count, a, b)


def pick(flags: Any, a: Any, b: Any) -> Any:
    return a if flags is None else np.where(flags != 0, a, b)


def cast(lanes: Any, compute: Any) -> Any:
    return lanes.astype(compute)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, as the instruction does: what a sum loses is kept, and rounded to odd before the last sum.

    Boldo and Melquiond, *Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd*, 2008.
    """
    if a.dtype == np.float32:  # the product is exact in float64
        return _rounded_to_odd(*_two_sum(a.astype(np.float64) * b, c.astype(np.float64))).astype(np.float32)
    high, low = _two_product(a, b)
    u_high, u_low = _two_sum(c, low)
    v_high, v_low = _two_sum(high, u_high)
    exact = v_high + _rounded_to_odd(*_two_sum(u_low, v_low))
    return np.where(np.isfinite(exact) & (exact != 0), exact, a * b + c)  # the sign of zeros, Inf and NaN


def _two_sum(a: Any, b: Any) -> Any:
    """The sum of float64, and what it lacks."""
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


def _two_product(a: Any, b: Any) -> Any:
    """The product of float64, and what it lacks, of factors that are split in halves of their digits."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product = a * b
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Any) -> Any:
    scaled = a * 134217729.0
    high = scaled - (scaled - a)
    return high, a - high


def _rounded_to_odd(s: Any, rest: Any) -> Any:
    """s + rest, whose last bit tells that something was cut off: it is 1 wherever rest is not 0."""
    bits = np.ascontiguousarray(s).view(np.int64)
    towards_zero = (s > 0) != (rest > 0)
    odd = np.where(towards_zero, bits - 1, bits) | 1
    inexact = (rest != 0) & np.isfinite(s) & np.isfinite(rest) & (bits & 1 == 0) & (s != 0)
    return np.where(inexact, odd.view(np.float64), s)


def total(lanes: Any) -> Any:
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def put_quarter(array: Any, index: int, lanes: Any) -> None:
    half = lanes[: WIDTH // 2] + lanes[WIDTH // 2 :]
    _memory(array, index, WIDTH // 4)[:] = half[: WIDTH // 4] + half[WIDTH // 4 :]


def crosswise(a: Any, b: Any, c: Any, d: Any) -> Any:
    fours = np.stack([a, b, c, d]).reshape(4, WIDTH // 4, 4)
    twos = fours[:, :, :2] + fours[:, :, 2:]
    return (twos[:, :, 0] + twos[:, :, 1]).T.reshape(-1)


def roots(lanes: Any) -> Any:
    return np.sqrt(lanes)


def above(a: Any, b: Any) -> Any:
    return (a > b).astype(a.dtype)


def magnitude(lanes: Any) -> Any:
    return np.abs(lanes)


def any_of(lanes: Any) -> bool:
    return bool((lanes != 0).any())


def stack(compute: Any) -> Any:
    return np.full(STACK, np.nan, compute)


def forwards_from_memory(array: Any) -> bool:
    return False


def pays_in_pairs(array: Any) -> bool:
    return True


def has_stage(array: Any) -> bool:
    return False


def stage(array: Any, wanted: bool) -> Any:
    return array


def prefetch(array: Any, index: int, ahead: int | None) -> None:
    pass


def prefetch_flags(mask: Any, index: int) -> None:
    pass


def one_by_one() -> None:
    pass


def address(array: Any) -> int:
    return int(array.ctypes.data)


def element(array: Any, index: int) -> Any:
    return _memory(array, index, 1).astype(np.float64)[0]


def put(array: Any, index: int, value: float) -> None:
    _memory(array, index, 1)[0] = value


def flags(mask: Any, index: int, step: int) -> Any:
    return flags_first(mask, index, step, WIDTH)


def flags_first(mask: Any, index: int, step: int, count: int) -> Any:
    if mask is None:
        return None
    lanes = np.zeros(WIDTH, np.bool_)
    lanes[:count] = _memory(mask, index, count if step else 1)
    return lanes


def copy_flag(mask: Any, index: int, into: Any, at: int) -> None:
    if mask is not None:
        _memory(into, at, 1)[...] = _memory(mask, index, 1)[0]


def copy_flags(mask: Any, index: int, into: Any, at: int) -> None:
    if mask is not None:
        _memory(into, at, WIDTH)[...] = _memory(mask, index, 1)[0]


def unless(seen: Any, flags: Any) -> Any:
    return None if flags is None else flags & (seen == 0)


def choose(flags: Any, a: Any, b: Any) -> Any:
    return a if flags is None else np.where(flags, a, b)


def number(flags: Any) -> int:
    return 0 if flags is None else int(np.count_nonzero(flags))


def first_set(flags: Any) -> int:
    return int(np.argmax(flags)) if flags.any() else WIDTH


def tally(count: Any, flags: Any) -> Any:
    return count if flags is None else count + flags


def is_none(value: Any) -> bool:
    return value is None


def is_double(array: Any) -> bool:
    return bool(array.dtype == np.float64)


def is_bfloat16(array: Any) -> bool:
    return bool(array.dtype.name == "bfloat16")


def itemsize(array: Any) -> int:
    return int(array.itemsize)


def take(taken: Any, index: int, n: int) -> int:
    if taken is None:
        return 0
    taken[index] += n
    return int(taken[index]) - n


def fence() -> None:
    pass


def unity(array: Any) -> float:
    return 1.0


def root(value: Any) -> Any:
    return np.sqrt(value)

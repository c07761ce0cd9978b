"""From which sizes on a call is shared, streamed, fetched ahead or taken in groups, as measured: docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from normkit.hardware import cache_sizes
from normkit.problem import Problem

from . import kernels
from .conversions import has_long_vectors
from .group_kernels import LEAST
from .simd import WIDTH


def cache_bytes(level: int, otherwise: int) -> int:
    """The size of a data cache of this CPU: 1 is the nearest, 3 the last one."""
    return _SIZES.get(level, otherwise)


_SIZES = cache_sizes()

PARALLEL_BYTES = 1 << 21  # in and out together; two threads win from half of it on, but sleeping ones take 250 us to wake
WAKING_BYTES = 1 << 24  # from which size on a call wakes threads that sleep: it takes several times as long as to wake them
FETCH_BYTES = 1 << 21  # inputs of at least this many bytes are fetched ahead: in L2, where smaller ones may be, that costs 4%
AHEAD_BYTES = 1 << 13  # so far ahead at least: less comes too late, much more is in the way
NEXT_BYTES = cache_bytes(2, 1 << 20) // 4  # of the next columns that are fetched while the ones before them are normalized
SPLIT_BYTES = 1 << 21  # rows of at least this many bytes are shared by the threads: more of each stays in L2


# Outputs of at least this many bytes go past the caches. A virtual machine is told of a whole L3, and may have a share of it
STREAM_BYTES = min(cache_bytes(3, 24 << 20) * 3 // 4, 40 << 20)
KEPT_ROW_BYTES = 1 << 17  # see `streamed_share`

# Rows of at most so many bytes are taken as a group of 16, if memory is what is waited for: a group is read, then written, and
# should fit in half of L1. Where arithmetic is waited for, groups take less time than their rows one by one
GROUP_ROW_BYTES = 1 << 10
CACHED_ROW_BYTES = 1 << 12
GROUP_BYTES = cache_bytes(1, 32 << 10) // 2  # of fewer rows that are longer, where two are summed side by side


def streamed_share(nbytes: int, n: int, group: int, itemsize: int) -> int:
    """How many sixteenths of an output go past the caches: of one a little larger than the last cache, that can keep a part.

    Not of longer rows, of which the caches keep what is read again, nor where arithmetic is waited for.
    """
    if nbytes < STREAM_BYTES:
        return 0
    if nbytes >= 2 * STREAM_BYTES or group or itemsize == 2 or n * itemsize > KEPT_ROW_BYTES:
        return 16
    return 16 - 16 * (STREAM_BYTES * 5 // 6) // nbytes


def fetched_ahead(nbytes: int, n: int, step: int, group: int, itemsize: int) -> int:
    """How many elements ahead of what is summed memory is fetched: a block, or some rows or groups of rows if they are less.

    0 if x is too small for that.
    """
    if nbytes < min(FETCH_BYTES, STREAM_BYTES):
        return 0
    piece = min(n, kernels.BLOCK) * max(group, 1)
    pieces = -(-AHEAD_BYTES // (piece * itemsize))
    return pieces * (kernels.BLOCK if n > kernels.BLOCK else step * max(group, 1))


def splitting(problem: Problem) -> Callable[[int, int], bool]:
    """Whether so many threads share each of so many rows, rather than the rows: where they are few, or too long for a cache."""
    if problem.statistics == "given" or problem.count <= kernels.BLOCK:
        return lambda rows, threads: False
    long = problem.count * problem.dtype.itemsize >= SPLIT_BYTES
    return lambda rows, threads: long or rows < threads * 4


def rows_at_once(problem: Problem, runs: int, inner: int) -> int:
    """How many rows a kernel takes as a group; 0 if each is taken by itself."""
    n, size, itemsize = runs * inner, prod(problem.shape), problem.dtype.itemsize
    if problem.statistics == "given" or min(runs, inner) > 1 or size < LEAST * n:
        return 0
    if has_long_vectors() and (itemsize == 2 or size * itemsize < FETCH_BYTES):
        return min(max(GROUP_BYTES // (n * itemsize), LEAST), WIDTH) if n <= kernels.BLOCK else 0
    longest = CACHED_ROW_BYTES if 2 * size * itemsize < PARALLEL_BYTES else GROUP_ROW_BYTES
    return WIDTH if n * itemsize <= longest else 0

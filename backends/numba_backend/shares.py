"""How the threads of a launch share its work, and help each other with it."""

from __future__ import annotations

from typing import Any

from .kernels import inline
from .memory import take
from .simd import one_by_one

PIECES = 16  # in which a thread's share of the work is taken
LINE = 8  # int64 of a cache line


@inline
def next_piece(n: int, taken: Any, sweep: int, c: int, chunks: int) -> Any:
    """(start, stop) of what thread c does next of n things: more of its own share, then of those of others; (n, n) of nothing.

    `taken` has, for each sweep and share, how much of it is taken, on a cache line of its own; 0 at first. A thread that starts
    late, or has half a core, is helped: else all would be as slow as the slowest. It begins where it began the last time, as
    that may still be in its cache.
    """
    for i in range(c, c + chunks):
        one_by_one()
        share = i - chunks if i >= chunks else i
        first, last = n * share // chunks, n * (share + 1) // chunks
        many = max((last - first) // PIECES, 1)
        start = first + take(taken, (sweep * chunks + share) * LINE, many)
        if start < last:
            return start, min(start + many, last)
    return n, n

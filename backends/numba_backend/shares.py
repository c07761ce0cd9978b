"""How the threads of a launch share its work, and help each other with it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .kernels import inline
from .memory import take
from .simd import one_by_one

PIECES = 16  # in which a thread's share of the work is taken
LINE = 16  # int64 of a cache line: Apple's have 128 bytes, and some CPUs fetch two of 64 together


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


@intrinsic
def use_threads(typingctx: Any, n: Any) -> Any:
    """Have the parallel regions of this thread use n threads, as `numba.set_num_threads` does; what they used is returned.

    A kernel puts that back when it is done: it is the caller's. From Python this takes longer than to launch.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word, count = ir.IntType(64), ir.IntType(32)
        get = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, []), "get_num_threads")  # as Numba has it
        put = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [count]), "set_num_threads")
        before = builder.call(get, [])
        builder.call(put, [builder.trunc(args[0], count)])
        return builder.sext(builder.trunc(before, count), word)

    return types.intp(types.intp), codegen

"""How the threads of a launch share its work, help each other with it, and tell how long they then waited for each other."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .kernels import inline
from .memory import take
from .simd import one_by_one

PIECES = 16  # in which a thread's share of the work is taken
LINE = 16  # int64 of a cache line: Apple's have 128 bytes, and some CPUs fetch two of 64 together

# Beside what is taken of a share: when its thread found nothing left. And on the first line of all: how long the launch took,
# and how much of that was after the first thread had found nothing left; all by a clock of unknown rate
LEFT, TOOK, WAITED = 1, 2, 3


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
def ticks(typingctx: Any) -> Any:
    """A clock that all cores have in common, read in some 10 ns, where the system's may take 1000; 0 where there is none."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word, cpu = ir.IntType(64), binding.get_process_triple().partition("-")[0]
        if cpu in ("x86_64", "i686"):
            clock = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, []), "llvm.readcyclecounter")
            return builder.call(clock, [])
        if cpu in ("aarch64", "arm64"):
            clock = ir.InlineAsm(ir.FunctionType(word, []), "mrs $0, cntvct_el0", "=r", side_effect=True)
            return builder.call(clock, [])
        return word(0)

    return types.intp(), codegen


@inline
def leave(taken: Any, sweep: int, c: int, chunks: int) -> None:
    """Thread c finds nothing left of a sweep."""
    take(taken, (sweep * chunks + c) * LINE + LEFT, ticks())


@inline
def note_wait(taken: Any, sweep: int, chunks: int) -> None:
    """After the threads of a sweep have joined: add up how long those who were through waited for the others.

    Where all have cores, that is less than a piece takes. It is long if one has none: it has not begun, or not ended a piece.
    """
    now = ticks()
    first = now
    for c in range(chunks):
        one_by_one()
        first = min(first, take(taken, (sweep * chunks + c) * LINE + LEFT, 0))
    take(taken, WAITED, now - first)


@inline
def note_time(taken: Any, began: int) -> None:
    """The launch is over."""
    take(taken, TOOK, ticks() - began)


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

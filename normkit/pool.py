"""Reuses the memory of large outputs that have died: fresh pages cost more than the arithmetic that fills them.

A block is idle when nobody but the pool refers to it. NumPy makes every view, however derived, refer to the array that owns
the memory, so a block is lent again only when the output, all its views, and whatever holds them are gone. Nothing runs when
an output dies; who needs memory next looks for an idle block. What is kept is a small share of what this process is granted,
and given back where little of that is left.
"""

from __future__ import annotations

import os
import sys
import time
from math import prod
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from normkit import constants, plans
from normkit.arguments import guarded, integer, shown
from normkit.errors import InputTypeError, InputValueError
from normkit.memory_limits import Scope, scopes

if TYPE_CHECKING:
    from numpy.typing import NDArray  # 1 ms at run time

SMALLEST = 1 << 17  # smaller outputs come from malloc, which keeps them by itself; glibc maps larger ones anew each time
PAGE = 4096  # an output starts on one, so that its first vector can be streamed
PATIENCE = 0.02  # seconds to wait for the pool, which others leave within microseconds
MOST_BLOCKS = 128  # each is looked at where none that was used last is idle
WASTE = 1.05  # a block may be this much larger than what it is lent for
MOST, SHARE = 1 << 30, 8  # bytes that are kept, unless somebody sets another limit, and at most 1/SHARE of what is granted
TIGHT = 10  # nothing is kept where less than 1/TIGHT of what is granted would be left
LOOK_SECONDS, LOOK_SHARE = 0.1, 64  # to look what is left takes 0.2 ms: again after that time, or 1/LOOK_SHARE of it in outputs


class Block(NamedTuple):
    """Memory that the pool knows, the part of it that an array may have, and the size of that in bytes.

    Whoever has an output can reach the memory, and make it read-only, or an array of another shape. Nobody else has `part`.
    """

    memory: NDArray[np.uint8]
    part: NDArray[np.uint8]
    size: int


_blocks: list[Block] = []
_lock = Lock()


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialized C-contiguous array, in memory that a dead one has left if there is some."""
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < SMALLEST or _limit == 0 or not _counted:
        return np.empty(shape, dtype)
    with _Alone() as mine:
        if not mine:
            return np.empty(shape, dtype)
        block = _idle_block(nbytes) or _new_block(nbytes)
        return np.ndarray(shape, dtype, block.part)  # under the lock: from here on it is not idle


class _Alone:
    """`with _Alone() as mine:`, where `mine` says whether the pool may be touched.

    A finalizer or a signal handler may have interrupted the pool's own work on this thread, which then cannot go on before
    it ends: so it does not wait, and nobody waits for long.
    """

    within: int | None = None  # the thread that is in the pool

    def __enter__(self) -> bool:
        self.lock, me = _lock, get_ident()
        self.mine = _Alone.within != me and (self.lock.acquire(False) or self.lock.acquire(timeout=PATIENCE))
        if self.mine:
            _Alone.within = me
        return self.mine

    def __exit__(self, *_: object) -> None:
        if self.mine:
            _Alone.within = None
            self.lock.release()


def empty_cache() -> None:
    """Give the memory of dead outputs back to the system, and forget what calls that recur are repeated by.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.empty_cache()
    """
    plans.forget()
    constants.forget()
    with _Alone() as mine:
        if mine:
            _blocks.clear()  # a block whose output lives is kept by that output, and freed with it


@guarded("set_cache_limit")
def set_cache_limit(nbytes: int) -> None:
    """Set how many bytes of outputs may be kept for reuse in this process; 0 keeps none.

    At first it is the environment variable NORMKIT_POOL_LIMIT, or else 1 GiB, and at most an eighth of what the machine, its
    control groups (a container's limit), `ulimit -v` and `ulimit -d` grant. Outputs that live count as well, as they may be
    kept when they die. Where less than a tenth of what is granted would be left, nothing is kept.

    Parameters
    ----------
    nbytes : int
        0 or more.

    Examples
    --------
    >>> import normkit as nk
    >>> before = nk.get_cache_limit()
    >>> nk.set_cache_limit(0)
    >>> nk.set_cache_limit(before)
    """
    global _limit
    if isinstance(nbytes, bool):
        raise InputTypeError(f"set_cache_limit: nbytes is {nbytes}, expected an int")
    nbytes = integer("set_cache_limit", "nbytes is", nbytes, "an int")
    if nbytes < 0:
        raise InputValueError(f"set_cache_limit: nbytes is {shown(nbytes)}, expected 0 or more; 0 keeps nothing")
    _limit = nbytes
    with _Alone() as mine:
        if mine:
            _make_room(0)


def get_cache_limit() -> int:
    """How many bytes of outputs may be kept for reuse; see `set_cache_limit`."""
    if _limit is not None:
        return _limit
    return min([MOST, *(scope.granted // SHARE for scope in _look.fresh())])


def held() -> int:
    """Bytes of dead outputs that are kept now."""
    with _Alone() as mine:
        return sum(_blocks[i].memory.nbytes for i in range(len(_blocks)) if _idle(i)) if mine else 0


def _idle_block(nbytes: int) -> Block | None:
    """The smallest idle block that fits without much waste, moved to the end: the end is what was used last."""
    if _blocks and _blocks[-1].size == nbytes and _idle(-1):
        return _writeable(_blocks[-1])
    best = -1
    for i in range(len(_blocks)):
        size = _blocks[i].size
        if nbytes <= size <= nbytes * WASTE and (best < 0 or size < _blocks[best].size) and _idle(i):
            best = i
    if best < 0:
        return None
    _blocks.append(_blocks.pop(best))
    return _writeable(_blocks[-1])


def _writeable(block: Block) -> Block:
    """An idle block, which somebody who had it may have frozen: NumPy asks the memory whether a view of it may be written."""
    if not block.memory.flags.writeable:
        block.memory.flags.writeable = True
    return block


def _new_block(nbytes: int) -> Block:
    """Memory for an output, kept if there is room for it."""
    tight = _look.tight(nbytes)
    if tight:
        _blocks.clear()
    try:
        memory = np.empty(nbytes + PAGE, np.uint8)
    except MemoryError:
        _blocks.clear()
        memory = np.empty(nbytes + PAGE, np.uint8)
    block = _block(memory, nbytes)
    if not tight and nbytes <= get_cache_limit() and _make_room(memory.nbytes):
        _blocks.append(block)
    return block


def _block(memory: NDArray[np.uint8], nbytes: int) -> Block:
    start = -memory.ctypes.data % PAGE
    return Block(memory, memory[start : start + nbytes], nbytes)


def _make_room(nbytes: int) -> bool:
    """Forget blocks, those used longest ago first, until so many bytes more are within the limit."""
    total, limit = sum(block.memory.nbytes for block in _blocks), get_cache_limit()
    while _blocks and (total + nbytes > limit or len(_blocks) >= MOST_BLOCKS):
        total -= _blocks.pop(0).memory.nbytes
    return total + nbytes <= limit


def _idle(i: int) -> bool:
    return sys.getrefcount(_blocks[i].memory) == _idle_references


class _Look:
    """A look at what is granted and left, which is good for a while."""

    def __init__(self) -> None:
        self.seen: list[Scope] = []
        self.until, self.since = -1.0, 0  # when to look again, and bytes of new outputs since the last time

    def fresh(self) -> list[Scope]:
        now = time.monotonic()
        if now > self.until or self.since > min((scope.granted for scope in self.seen), default=0) // LOOK_SHARE:
            self.seen, self.until, self.since = scopes(), now + LOOK_SECONDS, 0
        return self.seen

    def tight(self, nbytes: int) -> bool:
        """Whether so many bytes more leave too little."""
        self.since += nbytes
        return any((scope.left - max(nbytes, self.since)) * TIGHT < scope.granted for scope in self.fresh())


def _first_limit() -> int | None:
    text = os.environ.get("NORMKIT_POOL_LIMIT", "")
    return int(text) if text.isdecimal() else None


def _after_fork() -> None:
    global _lock, _look
    _lock, _Alone.within = Lock(), None  # another thread may have held it
    _look = _Look()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_limit: int | None = _first_limit()  # None: as much as `set_cache_limit` says
_look = _Look()
# References are counted exactly only under the GIL; what an idle block counts depends on the interpreter, so it is looked up.
_counted = getattr(sys, "_is_gil_enabled", lambda: True)() and sys.implementation.name == "cpython"
_idle_references = 0
_blocks.append(_block(np.empty(PAGE + 1, np.uint8), 1))
while not _idle(0):
    _idle_references += 1
_blocks.clear()

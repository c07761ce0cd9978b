"""A fork waits for an import or a compilation on another thread: cut off, it would keep the child waiting for ever."""

from __future__ import annotations

import os
from typing import Any

_locks: list[Any] = []
_taken: list[Any] = []


def wait_for(lock: Any) -> None:
    """Have every fork take `lock`, after those that were named before it, and let go of it on both sides."""
    _locks.append(lock)


def _before() -> None:
    for lock in _locks:  # which grow while the first of them is waited for: importing a backend names its own
        lock.acquire()
        _taken.append(lock)


def _after() -> None:
    while _taken:
        _taken.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)

"""A fork waits for an import or a compilation on another thread: cut off, it would keep the child waiting for ever."""

from __future__ import annotations

# Unused: a fork takes locks in the reverse order of their registration. Registered after ours, that of logging would be held
# while ours waits for an import; and Numba's import takes it.
import logging  # noqa: F401
import os
import threading
from typing import Any

_locks: list[Any] = []


class _Own(threading.local):
    """What this thread has taken, a list for each fork that it is in: a signal handler may fork while a fork waits.

    Another thread that forks as well takes the locks the moment we let go of them, and must keep them.
    """

    def __init__(self) -> None:
        self.taken: list[list[Any]] = []


_own = _Own()


def wait_for(lock: Any) -> None:
    """Have every fork take `lock`, after those that were named before it, and let go of it on both sides."""
    _locks.append(lock)


def _before() -> None:
    taken: list[Any] = []
    _own.taken.append(taken)
    for lock in _locks:  # which grow while the first of them is waited for: importing a backend names its own
        lock.acquire()
        taken.append(lock)


def _after() -> None:
    for lock in reversed(_own.taken.pop() if _own.taken else []):  # none if we were imported after it began
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)

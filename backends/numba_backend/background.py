"""Compiles on a thread of its own what calls can do without for now: another kernel with the same bits serves meanwhile.

NORMKIT_BACKGROUND=0 has the call that needs a kernel wait for it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Hashable

PATIENCE = 0.5  # seconds between two attempts to end what is compiled when the process ends

_guard = threading.RLock()  # held for microseconds
_wanted: dict[Hashable, Callable[[], object]] = {}  # in the order in which they were asked for
_known: set[Hashable] = set()  # what has been asked for: nothing is tried twice
_thread: threading.Thread | None = None  # ends when nothing is wanted: a fork had better find no threads
_ending = False


def allowed() -> bool:
    """Whether anything is compiled in the background."""
    return not _ending and os.environ.get("NORMKIT_BACKGROUND") != "0"


def compile_later(key: Hashable, work: Callable[[], object]) -> bool:
    """Have `work` done soon, once for each key. False if there is no thread to do it."""
    global _thread
    with _guard:
        if key in _known:
            return True
        _known.add(key)
        _wanted[key] = work
        if _thread is None:
            _thread = threading.Thread(target=_run, name="normkit, compiling", daemon=True)
            try:
                _thread.start()
            except RuntimeError:  # no more threads, or the interpreter is about to end
                _forget()
                return False
        return True


def wait() -> None:
    """Until nothing is left to compile."""
    while (thread := _thread) is not None:
        thread.join()


def _run() -> None:
    global _thread
    while True:
        with _guard:
            if _ending or not _wanted:
                _thread = None
                return
            work = _wanted.pop(next(iter(_wanted)))
        try:
            work()
        except BaseException:
            _thread = None
            raise


def _forget() -> None:
    """Nothing is wanted, and there is no thread: as in a forked child."""
    global _thread
    _thread = None
    _known.difference_update(_wanted)
    _wanted.clear()


def _after_fork() -> None:
    global _guard
    _guard = threading.RLock()  # another thread may have held it
    _forget()


def _end() -> None:
    """End what is compiled: LLVM does not survive the end of the process, and it may take many seconds more."""
    global _ending
    _ending, hook = True, sys.unraisablehook
    sys.unraisablehook = lambda _: None  # LLVM calls Python back, from where an exception would be told of, and lost
    while (thread := _thread) is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(PATIENCE)
    sys.unraisablehook = hook


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

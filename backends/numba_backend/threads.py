"""The one home of threading: how many threads a call may have, and where a parallel launch would kill the process.

What is known of Numba's threading layers: a forked child of a process that has touched GNU OpenMP is killed when it
launches, workqueue aborts the process when two threads launch at once, whoever they belong to, and GNU OpenMP keeps a team of
threads for every thread that has ever launched. So a forked child and workqueue are serial; a call has more than one thread
only while no other large call runs in this process; and no more than TEAMS threads may ever launch on GNU OpenMP. Bits do
not depend on any of this.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numba
import numpy as np
from numba.core import config

from normkit.threads import forked, get_num_threads

from .shares import LINE

PARALLEL_LAYERS = ("tbb", "omp")
TEAMS = 4


class _Sharing:
    """`with sharing as n:` around each large call: n threads are its to use, 1 if another call is running.

    Threads that call all the time thus find each other, and each does its own work: no more threads are busy than call.
    A list needs no lock, so neither a fork nor a signal handler can find one held. A thread that enters again has either been
    interrupted by Ctrl-C before it could leave, or is in a signal handler: its former call does not run now.
    """

    def __init__(self) -> None:
        self._running: list[int] = []

    def __enter__(self) -> int:
        me = threading.get_ident()
        if me not in self._running:
            self._running.append(me)
        return available() if len(self._running) == 1 and _may_launch() else 1

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        if me in self._running:
            self._running.remove(me)


sharing = _Sharing()


class _Team:
    """Stands for the threads that GNU OpenMP keeps for a Python thread; dies with that thread, as they do."""


_own = threading.local()
_teams: WeakSet[_Team] = WeakSet()


def _may_launch() -> bool:
    if hasattr(_own, "team") or layer() != "omp":
        return True
    if len(_teams) >= TEAMS:
        return False
    _own.team = _Team()
    _teams.add(_own.team)
    return True


_launched: str | None = None


def layer() -> str:
    """The threading layer that Numba has launched, or else will pick, found out without launching it."""
    global _launched
    if _launched is None:
        try:
            _launched = str(numba.threading_layer())
        except ValueError:
            return _expected()
    return _launched


@lru_cache(maxsize=1)
def _expected() -> str:
    asked = str(config.THREADING_LAYER).lower()
    priority = list(config.THREADING_LAYER_PRIORITY)
    by_wish = {"default": priority, "safe": ["tbb"], "threadsafe": ["tbb", "omp"], "forksafe": ["tbb", "workqueue"]}
    if asked in ("tbb", "safe"):
        _preload_tbb()
    return next((name for name in by_wish.get(asked, [asked]) if _loads(name)), "none")


def _loads(name: str) -> bool:
    modules = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    try:
        if name == "tbb":
            from numba.np.ufunc.parallel import _check_tbb_version_compatible

            _check_tbb_version_compatible()  # type: ignore[no-untyped-call]
        __import__(f"numba.np.ufunc.{modules[name]}")
    except (ImportError, KeyError):
        return False
    return True


def _preload_tbb() -> None:
    """pip puts the library where the dynamic linker does not look; once loaded it is found by name."""
    names = {"linux": "lib/libtbb.so.12", "darwin": "lib/libtbb.12.dylib", "win32": "Library/bin/tbb12.dll"}
    library = Path(sys.prefix, names.get(sys.platform, ""))
    if library.is_file():
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            return  # Numba will say what is wrong with it


def available() -> int:
    """Threads that a launch may have: 1 means that no parallel region may be entered."""
    if forked() or config.DISABLE_JIT or layer() not in PARALLEL_LAYERS:
        return 1
    return min(get_num_threads(), int(config.NUMBA_NUM_THREADS))


def launch(kernel: Callable[..., None], n: int, sweeps: int, *args: Any) -> None:
    """Run a parallel kernel on n threads, which write down how much of each share is taken in each sweep, see `shares`."""
    kernel(*args, n, np.zeros(sweeps * n * LINE, np.int64))


def describe() -> str:
    """The threading layer and what it means, for `normkit doctor`."""
    if config.DISABLE_JIT:
        return "none: NUMBA_DISABLE_JIT is set"
    if forked():
        return "none: this process was forked, which GNU OpenMP does not survive"
    name = layer()
    if name in PARALLEL_LAYERS:
        return name
    cure = (
        "install libgomp"
        if os.name == "posix" and sys.platform != "darwin"
        else "pip install tbb and set NUMBA_THREADING_LAYER=tbb"
    )
    return f"{name}: not used, as it aborts when two threads launch at once; {cure}"

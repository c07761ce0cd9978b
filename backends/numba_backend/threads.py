"""The one home of threading: how many threads a call may have, and where a parallel launch would kill the process or cost time.

What is known of Numba's threading layers: a forked child of a process that has touched GNU OpenMP is killed when it
launches, workqueue aborts the process when two threads launch at once, whoever they belong to, and GNU OpenMP keeps a team of
threads for every thread that has ever launched. So a forked child and workqueue are serial; a call has more than one thread
only while no other large call runs in this process; and no more than TEAMS threads may ever launch on GNU OpenMP. Bits do
not depend on any of this.

A launch ends when all its threads have come. Where another process, or another pool of this one, has their cores, that takes
milliseconds. So threads look for work only briefly before they sleep; what is too little to wake them for is done by the
caller; and a launch that has waited long is followed by calls on one thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import WeakSet

import numba
import numpy as np
from numba.core import config

from normkit.callers import level_of_the_user
from normkit.errors import ThreadsWarning
from normkit.threads import forked, wished

from . import limits
from .shares import LINE, TOOK, WAITED

PARALLEL_LAYERS = ("tbb", "omp")
TEAMS = 4

AWAKE = 50e-6  # seconds after a call in which threads still look for the next one
# So often GNU OpenMP's threads look for work before they sleep: for 30 to 130 µs, where its own 300,000 take 5 to 15 ms of a
# core that somebody else may need. Where pausing is not an instruction of its own, a look is short
SPINS = 2_000 if platform.machine().lower() in ("x86_64", "amd64", "i686") else 50_000

LONG = 500e-6  # seconds of waiting that are noticed, if they are also more than a part of the launch:
PART = 8  # threads with cores of their own wait for a piece of 16 at most
REST = 20  # times as long as was waited calls are serial: then waiting takes a twentieth of the time at most


class _Sharing:
    """`with sharing as n:` around each large call: n threads are its to use, 1 if another call is running.

    Threads that call all the time thus find each other, and each does its own work: no more threads are busy than call.
    A list needs no lock, so neither a fork nor a signal handler can find one held. A thread that enters again has either been
    interrupted by Ctrl-C before it could leave, or is in a signal handler: its former call does not run now.
    """

    def __init__(self) -> None:
        self._running: list[int] = []
        self._left = self._resting = 0.0  # when the last call ended, and until when calls are serial, by `perf_counter`
        self.awake = False  # whether the threads of the last launch may still look for the next

    def __enter__(self) -> int:
        me = threading.get_ident()
        if me not in self._running:
            self._running.append(me)
        if len(self._running) > 1:
            return 1
        now = perf_counter()
        self.awake = now - self._left < AWAKE
        return available() if now >= self._resting and _may_launch() else 1

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        if me in self._running:
            self._running.remove(me)
        self._left = perf_counter()

    def judge(self, launched: float, waited: float) -> None:
        """After a launch of so many seconds, of which threads that were through waited some for others: is the next worth it?

        On one thread less is left for others to take, and trying again costs one such wait.
        """
        if waited > max(LONG, launched / PART):
            self._resting = perf_counter() + REST * waited


sharing = _Sharing()


def worthwhile(threads: int, nbytes: int) -> int:
    """So many threads, or 1 for a call on so many bytes, in and out together, that takes one no longer than to have more."""
    if nbytes < limits.PARALLEL_BYTES:
        return 1
    if threads == 1:
        _tell_if_serial()
        return 1
    return threads if nbytes >= limits.WAKING_BYTES or sharing.awake else 1


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
    names = by_wish.get(asked, [asked])
    if asked in ("tbb", "safe"):
        _preload_tbb()
    first = _first(names)
    if first not in PARALLEL_LAYERS and "tbb" in names and _preload_tbb():  # now Numba will find it, too
        first = _first(names)
    return first


def _first(names: list[str]) -> str:
    return next((name for name in names if _loads(name)), "none")


def _loads(name: str) -> bool:
    modules = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    try:
        if name == "tbb":
            from numba.np.ufunc.parallel import _check_tbb_version_compatible

            _check_tbb_version_compatible()  # type: ignore[no-untyped-call]
        with _short_spinning():
            __import__(f"numba.np.ufunc.{modules[name]}")
    except (ImportError, KeyError):
        return False
    return True


@contextmanager
def _short_spinning() -> Iterator[None]:
    """Have GNU OpenMP, which reads its variables as it is loaded, look for work SPINS times, unless the user has said how."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def _preload_tbb() -> bool:
    """pip puts the library where the dynamic linker does not look; once loaded it is found by name."""
    names = {"linux": "lib/libtbb.so.12", "darwin": "lib/libtbb.12.dylib", "win32": "Library/bin/tbb12.dll"}
    library = Path(sys.prefix, names.get(sys.platform, ""))
    if not library.is_file():
        return False
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False  # Numba will say what is wrong with it
    return True


def available() -> int:
    """Threads that a launch may have: 1 means that no parallel region may be entered."""
    if forked() or config.DISABLE_JIT or layer() not in PARALLEL_LAYERS:
        return 1
    return min(wished(), int(config.NUMBA_NUM_THREADS))


def launch(kernel: Callable[..., None], n: int, sweeps: int, *args: Any) -> None:
    """Run a parallel kernel on n threads, which write down how much of each share is taken in each sweep, see `shares`."""
    taken = np.zeros(sweeps * n * LINE, np.int64)
    began = perf_counter()
    kernel(*args, n, taken)
    seconds = perf_counter() - began
    if seconds > LONG and (took := int(taken[TOOK])) > 0:
        sharing.judge(seconds, seconds * int(taken[WAITED]) / took)


_told = False


def _tell_if_serial() -> None:
    """Once in a process: large calls use one thread, as Numba has no threading layer that can be used."""
    global _told
    if _told or forked() or config.DISABLE_JIT or layer() in PARALLEL_LAYERS or wished() == 1:
        return
    _told = True
    text = f"normkit uses 1 of {wished()} threads: Numba's threading layer here, {_unusable()}"
    text += ". Or nk.set_num_threads(1), if one will do"
    warnings.warn(text, ThreadsWarning, stacklevel=level_of_the_user())


def _unusable() -> str:
    """What is wrong with the layer that there is, and what would help."""
    return f"{layer()}, cannot be used, as it aborts when two threads launch at once; {cure()}"


def cure() -> str:
    """What to install for a threading layer that can be used here."""
    if sys.platform == "darwin":
        return "conda install -c conda-forge numba (pip's has no such layer on macOS)"
    pip = platform.machine().lower() in ("x86_64", "amd64") and find_spec("numba.np.ufunc.tbbpool") is not None
    system = "install libgomp (apt install libgomp1, dnf install libgomp, apk add libgomp)" if os.name == "posix" else ""
    return ", or ".join(filter(None, ["pip install tbb" if pip else "", system]))


def describe() -> str:
    """The threading layer and what it means, for `normkit doctor`."""
    if config.DISABLE_JIT:
        return "none: NUMBA_DISABLE_JIT is set"
    if forked():
        return "none: this process was forked, which GNU OpenMP does not survive"
    name = layer()
    return name if name in PARALLEL_LAYERS else _unusable()

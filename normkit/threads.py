"""How many threads a call may use: a setting of the process or of a `using` block, or what the machine grants this process."""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar
from time import monotonic

from normkit.arguments import guarded, integer, shown
from normkit.control_groups import folders, words
from normkit.errors import InputTypeError, InputValueError

RENEWED = 1.0  # seconds after which calls look again at what is granted

_setting: int | None = None
block: ContextVar[int | None] = ContextVar("normkit.threads", default=None)  # what `using` has set
_born = os.getpid()


def wished() -> int:
    """Threads that a call may use, if the backend can: the setting, or else what this process is granted."""
    setting = block.get()
    if setting is None:
        setting = _setting
    return granted() if setting is None else min(setting, granted())


@guarded("set_num_threads")
def set_num_threads(n: int | None) -> None:
    """Set how many threads a call may use, in this process. None: as many as the machine grants.

    The results do not depend on it. More than granted is taken as granted. `nk.using(threads=n)` sets it for a block.

    Parameters
    ----------
    n : int or None
        1 or more.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.set_num_threads(1)
    >>> nk.get_num_threads()
    1
    >>> nk.set_num_threads(None)
    """
    global _setting
    _setting = None if n is None else checked("set_num_threads", "n", n, "as many as the machine grants")


@guarded("threads")
def checked(function: str, argument: str, n: object, none: str) -> int:
    """`n`, if it is a number of threads; `none` says what None would mean as that argument."""
    expected = f"an int, or None for {none}"
    if isinstance(n, bool):
        raise InputTypeError(f"{function}: {argument} is {n}, expected {expected}")
    number = integer(function, f"{argument} is", n, expected)
    if number < 1:
        raise InputValueError(f"{function}: {argument} is {shown(number)}, expected 1 or more, or None for {none}")
    return number


def forked() -> bool:
    """Whether this process was forked from one that had imported normkit: that process's threads are not here."""
    return os.getpid() != _born


def granted() -> int:
    """Cores that this process may keep busy, as of a second ago at most: an affinity or a quota may change."""
    if monotonic() - _looked > RENEWED:
        look()
    return _granted


_looked, _granted = float("-inf"), 1


def look() -> None:
    """Find out what is granted now."""
    global _looked, _granted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [cores, _cgroup_quota(), _variable("OMP_NUM_THREADS"), _variable("NUMBA_NUM_THREADS"), _torch_worker()]
    _granted = max(1, min(n for n in limits if n is not None))
    _looked = monotonic()


def _torch_worker() -> int | None:
    """1 in a worker of torch's DataLoader, as torch itself has it there: there are as many workers as are to be busy."""
    data = sys.modules.get("torch.utils.data")
    return 1 if data is not None and data.get_worker_info() is not None else None


def _variable(name: str) -> int | None:
    """The first number of a variable; OMP_NUM_THREADS may hold one for each nesting level, as in 4,2."""
    text = os.environ.get(name, "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _cgroup_quota() -> int | None:
    """Whole cores that the CPU quotas of this process's control groups grant (cgroup v2, else v1); None without a quota."""
    v2 = [_cores(*words(f"{group}/cpu.max", 2)) for group in folders()]
    files = "cpu.cfs_quota_us", "cpu.cfs_period_us"
    v1 = [_cores(*(words(f"{group}/{file}", 1)[0] for file in files)) for group in folders("cpu")]
    quotas = [q for q in v2 if q is not None] or [q for q in v1 if q is not None]
    return min(quotas, default=None)


def _cores(quota: str, period: str) -> int | None:
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max", or -1: no quota
    return max(1, -(-int(quota) // int(period)))

"""How many threads a call may use: one process-wide setting, or what the machine grants this process."""

from __future__ import annotations

import os
from functools import lru_cache

from normkit.arguments import guarded, integer, shown
from normkit.control_groups import folders, words
from normkit.errors import InputTypeError, InputValueError

_setting: int | None = None
_born = os.getpid()


def get_num_threads() -> int:
    """Threads that a call may use: the setting, or else what this process is granted.

    Granted are the cores of its CPU affinity, no more than its cgroup's CPU quota, than NUMBA_NUM_THREADS, and than
    OMP_NUM_THREADS.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.get_num_threads() >= 1
    True
    """
    return granted() if _setting is None else _setting


@guarded("set_num_threads")
def set_num_threads(n: int | None) -> None:
    """Set how many threads a call may use, in this process. None: as many as the machine grants.

    The results do not depend on it. More than granted is taken as granted.

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
    expected = "an int, or None for as many as the machine grants"
    if isinstance(n, bool):
        raise InputTypeError(f"set_num_threads: n is {n}, expected {expected}")
    number = None if n is None else integer("set_num_threads", "n is", n, expected)
    if number is not None and number < 1:
        raise InputValueError(
            f"set_num_threads: n is {shown(number)}, expected 1 or more, or None for as many as the machine grants"
        )
    _setting = None if number is None else min(number, granted())


def forked() -> bool:
    """Whether this process was forked from one that had imported normkit: that process's threads are not here."""
    return os.getpid() != _born


@lru_cache(maxsize=1)
def granted() -> int:
    """Cores that this process may keep busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [cores, _cgroup_quota(), _variable("OMP_NUM_THREADS"), _variable("NUMBA_NUM_THREADS")]
    return max(1, min(n for n in limits if n is not None))


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

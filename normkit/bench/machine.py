"""Which machine this is, in the words that a table of times needs under it."""

from __future__ import annotations

import platform
from contextlib import suppress
from glob import glob
from pathlib import Path

from normkit import hardware
from normkit.threads import granted


def describe() -> dict[str, str]:
    """CPU model, cores, caches, memory, system and Python."""
    facts = {"cpu": cpu_model(), "cores": str(granted()), "caches": _caches(), "memory": _memory()}
    facts |= {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    return {name: fact for name, fact in facts.items() if fact}


def cpu_model() -> str:
    """The model's name, with family and model numbers where the name alone would not tell it."""
    name, family = hardware.cpu_model(), hardware.cpuinfo("cpu family")
    if not family:
        return name or platform.machine()
    return f"{name or '?'} (family {family}, model {hardware.cpuinfo('model') or '?'})"


def work_of_others(own: set[int]) -> dict[str, float]:
    """Seconds of CPU that each thread of each process but our own has had; empty where the system does not tell."""
    work = {}
    for file in glob("/proc/[0-9]*/task/[0-9]*/schedstat"):
        _, _, process, _, thread, _ = file.split("/")
        if int(process) not in own:
            with suppress(OSError):  # it has ended meanwhile
                work[thread] = int(Path(file).read_text(encoding="utf-8").split()[0]) / 1e9
    return work


def done_between(before: dict[str, float], after: dict[str, float]) -> float:
    """Seconds of CPU that others have had between two looks."""
    return sum(max(0.0, seconds - before.get(thread, 0.0)) for thread, seconds in after.items())


def _caches() -> str:
    return ", ".join(f"L{level} {size >> 10}K" for level, size in hardware.cache_sizes().items())


def _memory() -> str:
    size = hardware.memory()
    return f"{size / 2**30:.0f} GiB" if size else ""

"""Which machine this is, in the words that a table of times needs under it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from glob import glob
from pathlib import Path

from normkit.threads import granted


def describe() -> dict[str, str]:
    """CPU model, cores, caches, memory, system and Python."""
    facts = {"cpu": cpu_model(), "cores": str(granted()), "caches": _caches(), "memory": _memory()}
    facts |= {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    return {name: fact for name, fact in facts.items() if fact}


def cpu_model() -> str:
    """The model's name, with family and model numbers where the name alone would not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "cpu family" not in facts:
        return facts.get("model name") or platform.machine()
    return f"{facts.get('model name', '?')} (family {facts['cpu family']}, model {facts.get('model', '?')})"


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


def load_average() -> float:
    """Processes that want to run, the mean of the last minute; 0 where nothing tells."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return 0.0


def _caches() -> str:
    levels = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text(encoding="utf-8").strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            levels.append(f"L{level} {size}")
    return ", ".join(levels)


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return ""
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"

"""How much memory this process is granted, and what of that is left: by the machine, its control groups, and its own limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from normkit.control_groups import folders, text


class Scope(NamedTuple):
    """Something that bounds memory: what it grants in all, and what of it can still be had, in bytes."""

    name: str
    granted: int
    left: int


def scopes() -> list[Scope]:
    """All that bounds the memory of this process, as far as it can be seen: nothing where the system does not tell."""
    return [*_machine(), *_groups(), *_own_limits()]


def _machine() -> Iterator[Scope]:
    fields = _numbers(text("/proc/meminfo").replace(":", ""))
    if "MemTotal" in fields and "MemAvailable" in fields:
        yield Scope("machine", fields["MemTotal"] * 1024, fields["MemAvailable"] * 1024)
        return
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    yield Scope("machine", memory, memory)  # what is left is not told


def _groups() -> Iterator[Scope]:
    """Groups with a limit. Of what is in use, the system can take back what it keeps of files that nobody read lately."""
    v2 = [(folder, ("memory.max", "memory.high"), "memory.current", "inactive_file") for folder in folders()]
    files = ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"
    for folder, limits, usage, cached in [*v2, *((folder, *files) for folder in folders("memory"))]:
        granted = [int(limit) for limit in (text(f"{folder}/{name}").strip() for name in limits) if limit.isdecimal()]
        if not granted or min(granted) >= 1 << 60:  # how v1 says that there is none
            continue
        used = text(f"{folder}/{usage}").strip()
        if used.isdecimal():
            kept = _numbers(text(f"{folder}/memory.stat")).get(cached, 0)
            yield Scope("control group", min(granted), max(0, min(granted) - int(used) + kept))


def _own_limits() -> Iterator[Scope]:
    """`ulimit -v` and `ulimit -d`."""
    if sys.platform == "win32":
        return
    import resource

    for name, field in (("RLIMIT_AS", 0), ("RLIMIT_DATA", 5)):
        granted = resource.getrlimit(getattr(resource, name))[0]
        if granted != resource.RLIM_INFINITY:
            pages = text("/proc/self/statm").split()[field : field + 1]
            used = int(pages[0]) * resource.getpagesize() if pages else 0
            yield Scope(name, granted, max(0, granted - used))


def _numbers(lines: str) -> dict[str, int]:
    """name -> number of lines that begin with these two."""
    pairs = (line.split()[:2] for line in lines.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}

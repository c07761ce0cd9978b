"""What the system tells of its processor and memory: Linux in files, macOS by sysctl, Windows by two functions.

Nothing here raises, or guesses: what is not told is missing, as on virtual machines that list a cache without its size.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
RELATION_CACHE, INSTRUCTIONS = 2, 1  # in Windows' words


def cache_sizes() -> dict[int, int]:
    """Bytes of the data cache of each level, 1 is the nearest; the largest where the cores differ."""
    if sys.platform == "darwin":
        return _of_macos()
    if sys.platform == "win32":
        return _of_records(_records())
    sizes: dict[int, int] = {}
    for index in CACHES.glob("index*"):
        with suppress(OSError, ValueError):
            level, kind, size = (_line(index / name) for name in ("level", "type", "size"))
            if kind != "Instruction":
                sizes[int(level)] = int(size.rstrip("KMG")) * UNITS.get(size[-1:], 1)
    return dict(sorted(sizes.items()))


def _of_macos() -> dict[int, int]:
    """Of the fast cores, where there are two kinds. Apple's have no L3: a cluster shares its L2, which then is the last."""
    sizes = {}
    for level, name in ((1, "l1dcachesize"), (2, "l2cachesize"), (3, "l3cachesize")):
        if size := sysctl(f"hw.perflevel0.{name}") or sysctl(f"hw.{name}"):
            sizes[level] = int.from_bytes(size, "little")
    return {**sizes, 3: sizes.get(3) or sizes[2]} if 2 in sizes else sizes


def _of_records(records: bytes) -> dict[int, int]:
    """From the records of GetLogicalProcessorInformation, of 32 bytes on 64-bit Windows."""
    sizes: dict[int, int] = {}
    for start in range(0, len(records) - 31, 32):
        _, relation, level, _, _, size, kind = struct.unpack_from("<QI4xBBHII", records, start)
        if relation == RELATION_CACHE and kind != INSTRUCTIONS:
            sizes[level] = max(size, sizes.get(level, 0))
    return dict(sorted(sizes.items()))


def _records() -> bytes:
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009 - not an attribute elsewhere
    length = ctypes.c_ulong(0)
    kernel32.GetLogicalProcessorInformation(None, ctypes.byref(length))
    buffer = ctypes.create_string_buffer(length.value)
    return buffer.raw if kernel32.GetLogicalProcessorInformation(buffer, ctypes.byref(length)) else b""


def sysctl(name: str) -> bytes:
    """What macOS answers; empty if it does not know the name."""
    with suppress(OSError, AttributeError):
        ask = ctypes.CDLL(None).sysctlbyname
        length = ctypes.c_size_t(0)
        if ask(name.encode(), None, ctypes.byref(length), None, ctypes.c_size_t(0)) == 0:
            buffer = ctypes.create_string_buffer(length.value)
            if ask(name.encode(), buffer, ctypes.byref(length), None, ctypes.c_size_t(0)) == 0:
                return buffer.raw[: length.value]
    return b""


def cpu_model() -> str:
    """The model's name; empty where nothing tells."""
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string").rstrip(b"\0").decode(errors="replace")
    return cpuinfo("model name") or platform.processor()


def cpuinfo(field: str) -> str:
    """A field of the first processor in Linux's /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def memory() -> int | None:
    """Bytes of memory in this machine."""
    if sys.platform == "win32":
        status = ctypes.create_string_buffer(struct.pack("<I60x", 64), 64)
        known = getattr(ctypes, "windll").kernel32.GlobalMemoryStatusEx(status)  # noqa: B009
        return int(struct.unpack_from("<8xQ", status.raw)[0]) if known else None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def load_average() -> float:
    """Processes that want to run, the mean of the last minute; 0 where nothing tells."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return 0.0


def _line(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()

"""What normkit finds on this machine: versions, processor, cores, backends and why each can or cannot be used."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

import normkit
from normkit import registry, threads
from normkit.bench.machine import done_between, work_of_others
from normkit.errors import InstallationError
from normkit.hardware import cpu_model, cpuinfo, load_average
from normkit.memory_limits import scopes

PACKAGES = {
    "numpy": "needed",
    "numba": "needed",
    "llvmlite": "needed",
    "rich": "pip install 'normkit[cli]'",
    "matplotlib": "pip install 'normkit[demo]'",
    "ml_dtypes": "for bfloat16: pip install 'normkit[half]'",
    "asv": "for make bench: pip install 'normkit[bench]'",
}
TESTED = {"numpy": (2, 5), "numba": (0, 68)}  # the newest that the tests have passed with; pyproject.toml has the oldest
TRY = "import sys; from normkit import doctor; print(doctor.tried(sys.argv[1]))"
FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "neon")
VARIABLES = ("OMP_", "NUMBA_", "NORMKIT_", "KMP_", "MALLOC_")


class Section(NamedTuple):
    """A heading and its lines of (what, text)."""

    title: str
    lines: list[tuple[str, str]]


def examine() -> list[Section]:
    """Everything the doctor looks at. Loads every backend, and runs a row through each that can be used."""
    versions, before, start = _versions(), work_of_others({os.getpid()}), perf_counter()
    try:
        table = registry.backends()
    except InstallationError as error:
        told = [Section("backends", [("", f"BROKEN: {error}")])]
    else:
        told = [Section("backends", _backends(table)), *_described(table)]
    busy = done_between(before, work_of_others({os.getpid()})) / (perf_counter() - start)
    processor = Section("processor", [*_processor(), ("busy", _busy(busy))])
    return [Section("versions", versions), processor, *told, Section("environment", _environment())]


def show(sections: list[Section]) -> None:
    """Print, with colour if rich is installed and this is a terminal."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ModuleNotFoundError:
        print("\n".join(what + text for what, text in _lines(sections)))
        return
    console = Console(highlight=False, soft_wrap=True)
    for what, text in _lines(sections):
        bad = text.startswith(("no:", "BROKEN", "but "))
        console.print(Text.assemble((what, "cyan" if text else "bold"), (text, "yellow" if bad else "")))


def _lines(sections: list[Section]) -> Iterator[tuple[str, str]]:
    for title, rows in sections:
        yield title, ""
        width = max([12, *(len(what) for what, _ in rows)])
        for what, text in rows:
            yield f"  {what:<{width}}  ", text


def _versions() -> list[tuple[str, str]]:
    core, backends = Path(normkit.__file__).resolve().parent, _engines()
    lines = [("normkit", f"{normkit.__version__} in {core}")]
    if backends is not None and backends not in (core / "backends", core.parent / "backends"):
        lines.append(("", f"but its backends are in {backends}: two copies are mixed; reinstall one of them"))
    lines.append(("python", f"{platform.python_version()} {platform.python_implementation()} in {sys.prefix}"))
    lines.append(("system", platform.platform()))
    return lines + [(name, _version(name, cure)) for name, cure in PACKAGES.items()]


def _engines() -> Path | None:
    """The folder of the backends; None if there is none, of which the section on backends tells."""
    try:
        return Path(import_module("normkit.backends").__path__[0]).resolve()
    except ModuleNotFoundError:
        return None


def _version(name: str, cure: str) -> str:
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"not installed ({cure})"
    if not _newer(name, found):
        return found
    newest = ".".join(map(str, TESTED[name]))
    return f"{found}, newer than what this normkit is tested with; if it fails: pip install '{name}=={newest}.*'"


def _newer(name: str, found: str) -> bool:
    """Whether a version is of a release that came after the tests."""
    return name in TESTED and tuple(int(part) for part in re.findall(r"\d+", found)[:2]) > TESTED[name]


def _processor() -> list[tuple[str, str]]:
    features = cpu_features()
    present = [name for name in FEATURES if name in features]
    absent = [name for name in ("avx2", "fma", "f16c", "avx512f") if name not in features]
    found = ", ".join(present) or "unknown"
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    granted = threads.granted()
    why = "" if granted == affinity else ", by a CPU quota, OMP_NUM_THREADS or NUMBA_NUM_THREADS"
    return [
        ("model", f"{cpu_model() or 'unknown'} ({platform.machine()})"),
        ("features", found + (f"; not {', '.join(absent)}" if features and absent else "")),
        ("cores", f"{granted} granted of {os.cpu_count()} present{why}"),
        ("threads", f"{threads.wished()} for a large call, where the backend can"),
        ("memory", _memory()),
    ]


def _busy(others: float) -> str:
    """Whether what is timed now says much: who else had the cores while the doctor looked."""
    load, cores = load_average(), os.cpu_count() or 1
    if others < 0.2 and load <= cores:
        return "other processes are not: a good time to measure"
    told = f"other processes kept {others:.1f} cores busy" if others >= 0.2 else f"the load is {load:.1f} on {cores} cores"
    return f"but {told}: what is timed now says little"


def cpu_features() -> set[str]:
    """Instruction sets of this processor, by the names that /proc/cpuinfo and LLVM use; empty if nothing tells."""
    flags = cpuinfo("flags") or cpuinfo("Features")
    if flags:
        return {flag.replace("sse4_2", "sse4.2").replace("asimd", "neon") for flag in flags.split()}
    try:
        from llvmlite.binding import get_host_cpu_features
    except ImportError:
        return set()
    return {name for name, there in get_host_cpu_features().items() if there}


def _memory() -> str:
    found = [f"{s.name} {s.granted / 2**30:.1f} GiB, {s.left / 2**30:.1f} GiB available" for s in scopes()]
    return "; ".join(found).removeprefix("machine ") or "unknown"


def _backends(table: registry.BackendTable) -> list[tuple[str, str]]:
    lines = []
    for info in table:
        what = f"{info.family} arrays, {info.source}"
        lines.append((info.name, f"{_tried(info.name, info.family)}; {what}" if info.usable else f"no: {info.why}; {what}"))
    return lines


def _tried(name: str, family: str) -> str:
    """One row through a backend. Where that may end the process, as with a Numba that is not tested, another process tries."""
    if family != "numpy":
        return "yes"
    if name not in registry.BUILT_IN or not any(_newer(package, _version(package, "")) for package in TESTED):
        return tried(name)
    done = subprocess.run([sys.executable, "-c", TRY, name], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip().splitlines()[-1]
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    return f"BROKEN: a row of 64 float32 ended the process with status {done.returncode}: {last}"


def tried(name: str) -> str:
    """One row through a backend, here, against sums that are exact."""
    x = np.linspace(1, 2, 64, dtype=np.float32)
    values = x.tolist()
    mean = math.fsum(values) / 64
    var = math.fsum((v - mean) ** 2 for v in values) / 64
    expected = [(v - mean) / math.sqrt(var + 1e-5) for v in values]
    try:
        y = normkit.layer_norm(x, backend=name)
    except Exception as error:  # noqa: BLE001 - a stranger's backend may raise anything, and the doctor has to say so
        return f"BROKEN: a row of 64 float32 raised {type(error).__name__}: {' '.join(str(error).split())}"
    wrong = max(abs(a - b) for a, b in zip(y.tolist(), expected, strict=True))
    return (
        f"yes, a row of 64 float32 is right to {wrong:.0e}" if wrong < 1e-6 else f"BROKEN: a row of 64 is wrong by {wrong:.0e}"
    )


def _described(table: registry.BackendTable) -> list[Section]:
    """What each usable backend says about itself."""
    sections = []
    for info in table:
        if info.usable:
            backend = registry.get_backend(info.name)
            sections.append(Section(f"backend {info.name}", [(what, str(text)) for what, text in backend.describe().items()]))
    return sections


def _environment() -> list[tuple[str, str]]:
    found = [(name, value) for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    return found or [("", f"no variable {', '.join(prefix + '*' for prefix in VARIABLES)} is set")]

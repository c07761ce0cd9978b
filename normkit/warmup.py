"""`normkit warmup`: every backend compiles what calls will need, and keeps it for later processes."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from normkit import registry
from normkit.errors import CacheWarning
from normkit.validation import FLOATS

DTYPES = ("float32", "float64")  # unless others are asked for

Task = tuple[str, Callable[[], object]]  # what is made ready, and what does so


def run(dtypes: Sequence[str], everything: bool, into: str | None) -> None:
    """Make kernels ready, those that most calls need or all; kept in the folder `into`, if not in the user's own."""
    dtypes = dtypes or (_all_dtypes() if everything else DTYPES)
    engines: list[Any] = [registry.get_backend(info.name) for info in registry.backends() if info.usable]
    engines = [engine for engine in engines if hasattr(engine, "warmup")]
    tasks = [(f"{engine.name}: {what}", do) for engine in engines for what, do in engine.warmup(dtypes, everything, into)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)  # what is not kept has been made for nothing
        _work(tasks)
    for engine in engines:
        print(f"{engine.name}: kept in {engine.kept()}")
    if into is not None and engines:
        print(f"NORMKIT_CACHE_DIR={into} has processes load them; those of other users, if the folder is root's")


def _all_dtypes() -> list[str]:
    return [name for name in FLOATS if name != "bfloat16" or importlib.util.find_spec("ml_dtypes") is not None]


def _work(tasks: list[Task]) -> None:
    """Do all, with a bar where rich is installed and this is a terminal, and else a line for each."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            all_of_them = bar.add_task("", total=len(tasks))
            for what, ready in tasks:
                bar.update(all_of_them, description=what)
                ready()
                bar.advance(all_of_them)
        return
    for number, (what, ready) in enumerate(tasks, 1):
        before = time.perf_counter()
        ready()
        print(f"{number:3d}/{len(tasks)}  {time.perf_counter() - before:6.2f} s  {what}", flush=True)

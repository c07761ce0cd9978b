"""One call after the other, each timed by itself, on a machine that somebody else keeps busy: for the busy bench and for asv.

This file imports nothing of normkit: asv loads it beside whichever revision is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter, sleep
from typing import Any, NamedTuple

CASES = ("layer_norm/512x768", "layer_norm/12608x768", "instance_norm/8x256x64x64", "instance_norm/1x3x600x512")
# Ends with the process that started it
SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(100_000): pass"


class Way(NamedTuple):
    """How calls follow each other: what a process does between two of them."""

    title: str
    pause: float = 0.0  # seconds of sleep
    product: str = ""  # the package whose matrix product comes before each call, and is a part of it


WAYS = (Way("one after the other"), Way("every 5 ms", pause=0.005))


@contextmanager
def another(wanted: bool) -> Iterator[None]:
    """Another process that does nothing but keep a core busy, if it is wanted."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())]) as spinning:
        try:
            yield
        finally:
            spinning.kill()


def sample_call(run: Callable[[], Any], seconds: float, pause: float) -> dict[str, float]:
    """Mean, median and 95th percentile of the seconds that a call takes, each by itself, with a pause before each."""
    start = perf_counter()
    while perf_counter() - start < min(seconds / 4, 0.02):
        run()
    samples: list[float] = []
    start = perf_counter()
    while perf_counter() - start < seconds or not samples:
        if pause:
            sleep(pause)
        begin = perf_counter()
        run()
        samples.append(perf_counter() - begin)
    samples.sort()
    return {"mean": sum(samples) / len(samples), "median": median(samples), "p95": samples[len(samples) * 95 // 100]}

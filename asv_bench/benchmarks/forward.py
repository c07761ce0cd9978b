"""How long does a call take, and how much of that is the floor?"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from .common import Prepared, calls_per_sample, cases, contenders, floors, prepare

BACKENDS = ["numba", "numpy"]
SPECS = sorted({*cases.STANDARD, *cases.GROUPS["float64"], *cases.GROUPS["layouts"]}, key=lambda s: cases.Case.parse(s).nbytes)
LARGE = [spec for spec in cases.STANDARD if cases.Case.parse(spec).nbytes > 20_000_000]


class Forward(Prepared):
    """Time per op, shape, dtype, layout and backend, with a new output and with a given one."""

    version = "2"  # large inputs take turns
    params = (SPECS, BACKENDS)
    param_names = ("case", "backend")

    def make(self, spec: str, backend: str) -> None:
        inputs, self.run = prepare(spec, backend)
        _, self.run_out = prepare(spec, backend, out=np.zeros_like(inputs.x))
        self.number = calls_per_sample(self.run_out)

    def time_forward(self, spec: str, backend: str) -> None:
        self.run()

    def time_forward_out(self, spec: str, backend: str) -> None:
        self.run_out()


class CopyFraction(Prepared):
    """The time of the fastest copy of the same bytes on all cores, over the op's: 1 is the speed of memory."""

    version = "2"  # large inputs take turns
    params = (LARGE, ["new output", "out="])
    param_names = ("case", "output")
    unit = "of the copy's speed"
    timeout = 300

    def make(self, spec: str, output: str) -> None:
        inputs, run = prepare(spec)
        self.run = run if output == "new output" else prepare(spec, out=np.zeros_like(inputs.x))[1]
        sources = [floors.aligned_copy(inputs.x) for _ in range(cases.Case.parse(spec).alike)]
        self.copy = contenders.in_turns(floors.fastest_copy(inputs.x)[1], sources)

    def track_fraction(self, spec: str, output: str) -> float:
        return median(_seconds(self.copy) / _seconds(self.run) for _ in range(15))


def _seconds(run: Any) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start

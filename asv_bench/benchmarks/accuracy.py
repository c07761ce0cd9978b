"""How far from the truth are the results, on the inputs that break other libraries?"""

from __future__ import annotations

import numpy as np

from .common import Prepared, cases, oracle, prepare

SPECS = ["layer_norm/512x768", "layer_norm/512x768/float64", *cases.GROUPS["hard"]]
HALF = [f"layer_norm/512x768/{dtype}" for dtype in ("float16", "bfloat16")]


class Accuracy(Prepared):
    """The largest error, in units of the last place of 1.0: outputs have unit variance."""

    version = "1"
    params = (SPECS, ["numba", "numpy"])
    param_names = ("case", "backend")
    unit = "ulp of 1"
    timeout = 300

    def make(self, spec: str, backend: str) -> None:
        self.case = cases.Case.parse(spec)
        self.inputs, self.run = prepare(spec, backend)

    def track_error(self, spec: str, backend: str) -> float:
        error = oracle.Oracle(self.case, self.inputs).max_error(self.run())
        return error / float(np.spacing(np.ones((), self.case.dtype)))


class AccuracyOfHalf(Prepared):
    """The largest error, in units of the last place of the right answer: 0.5 is perfect."""

    version = "1"
    params = (HALF, ["numba", "numpy"])
    param_names = ("case", "backend")
    unit = "ulp"

    def make(self, spec: str, backend: str) -> None:
        self.case = cases.Case.parse(spec)
        self.inputs, self.run = prepare(spec, backend)

    def track_error(self, spec: str, backend: str) -> float:
        return oracle.Oracle(self.case, self.inputs).max_ulps(self.run())

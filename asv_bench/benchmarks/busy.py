"""What does a call take beside another process that keeps a core busy, and beside another pool of threads in its own?

Means and 95th percentiles, which asv's own timing, of batches by their median, does not show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import normkit as nk

from .common import Prepared, cases, prepare, sampling

SPECS = list(sampling.CASES)
PAUSES = {way.title: way.pause for way in sampling.WAYS}
SECONDS = 0.3


class Busy(Prepared):
    """Over the mean, or the 95th percentile, of one thread that nobody disturbs."""

    version = "1"
    params = (SPECS, list(PAUSES), ["quiet", "busy"])
    param_names = ("case", "calls", "machine")
    unit = "of one thread's, undisturbed"
    timeout = 120

    def make(self, spec: str, calls: str, machine: str) -> None:
        self.run = prepare(spec)[1]

    def track_mean(self, spec: str, calls: str, machine: str) -> float:
        return self._over("mean", calls, machine)

    def track_p95(self, spec: str, calls: str, machine: str) -> float:
        return self._over("p95", calls, machine)

    def _over(self, what: str, calls: str, machine: str) -> float:
        nk.set_num_threads(1)
        alone = sampling.sample_call(self.run, SECONDS, PAUSES[calls])[what]
        nk.set_num_threads(None)
        with sampling.another(machine == "busy"):
            return float(sampling.sample_call(self.run, SECONDS, PAUSES[calls])[what] / alone)


class Products(Prepared):
    """A loop of matrix products and norms, on all threads over one: 1 or less, or the pools are in each other's way."""

    version = "1"
    params = (["layer_norm/32x24x384", "layer_norm/512x768", "layer_norm/64x197x768"],)
    param_names = ("case",)
    unit = "of one thread's"
    timeout = 120

    def make(self, spec: str) -> None:
        inputs = cases.make_inputs(cases.Case.parse(spec))
        matrix, features = np.eye(inputs.x.shape[-1], dtype=np.float32), inputs.x.shape[-1:]
        self.run: Callable[[], Any] = lambda: nk.layer_norm(inputs.x @ matrix, features, inputs.weight, inputs.bias)

    def track_products(self, spec: str) -> float:
        times = {1: [0.0], 0: [0.0]}
        for _ in range(5):
            for threads in times:
                nk.set_num_threads(threads or None)
                times[threads].append(sampling.sample_call(self.run, SECONDS / 5, 0.0)["mean"])
        nk.set_num_threads(None)
        return sum(times[0]) / sum(times[1])

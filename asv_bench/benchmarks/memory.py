"""How much memory does a call need beside its output?"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np

import normkit as nk

from .common import cases, prepare

SPECS = ["layer_norm/2048x4096", "instance_norm/8x256x64x64", "instance_norm/8x64x64x256/channel_axis=-1"]


class PeakMemory:
    """The peak of the process (with its imports and inputs), and the growth during one call over the output's bytes, to 1%."""

    version = "1"
    params = (SPECS, ["new output", "out="])
    param_names = ("case", "output")

    def setup(self, spec: str, output: str) -> None:
        prepare(f"{spec.partition('/')[0]}/{'x'.join('4' * len(cases.Case.parse(spec).shape))}")  # compiles something smaller
        case = cases.Case.parse(spec)
        self.nbytes = case.nbytes
        inputs = cases.make_inputs(case)
        extra: dict[str, Any] = {"out": np.zeros_like(inputs.x)} if output == "out=" else {}
        self.inputs, self.run = prepare(spec, alike=1, **extra)

    def peakmem_forward(self, spec: str, output: str) -> Any:
        return self.run()

    def track_growth(self, spec: str, output: str) -> float:
        gc.collect()
        nk.empty_cache()  # what is kept of earlier outputs would hide the growth
        before = _reset_peak()
        y = self.run()
        growth = _status("VmHWM") - before
        assert y is not None
        return round(growth / self.nbytes, 2)  # else some pages more than none would be many times as much

    track_growth.unit = "of the output's bytes"  # type: ignore[attr-defined]


def _reset_peak() -> int:
    """Bytes resident now; from here on the kernel records a new peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        raise NotImplementedError("needs Linux's /proc/self/clear_refs") from None
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

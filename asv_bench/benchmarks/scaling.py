"""How does time grow with size, and shrink with threads?"""

from __future__ import annotations

import os

import numpy as np

import normkit as nk

from .common import Prepared, calls_per_sample, prepare


class Size(Prepared):
    """From one row to memory-sized arrays, in steps of four."""

    version = "2"  # large inputs take turns
    params = ([4**k for k in range(8)], ["layer_norm", "instance_norm"])
    param_names = ("rows of 1024", "op")

    def make(self, rows: int, op: str) -> None:
        spec = f"layer_norm/{rows}x1024" if op == "layer_norm" else f"instance_norm/1x{rows}x32x32"
        inputs, _ = prepare(spec)
        self.run = prepare(spec, out=np.zeros_like(inputs.x))[1]
        self.number = calls_per_sample(self.run)

    def time_forward(self, rows: int, op: str) -> None:
        self.run()


class Threads(Prepared):
    """Where the rows are many, and where one row has to be split."""

    version = "2"  # large inputs take turns
    params = (
        sorted({1, 2, os.cpu_count() or 1}),
        ["layer_norm/512x768", "layer_norm/2048x4096", "layer_norm/1x33554432", "instance_norm/1x3x2160x3840"],
    )
    param_names = ("threads", "case")

    def make(self, threads: int, spec: str) -> None:
        nk.set_num_threads(threads)
        inputs, _ = prepare(spec)
        self.run = prepare(spec, out=np.zeros_like(inputs.x))[1]
        self.number = calls_per_sample(self.run)

    def time_forward(self, threads: int, spec: str) -> None:
        self.run()

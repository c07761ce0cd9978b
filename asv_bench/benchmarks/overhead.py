"""What does a call cost before any arithmetic, and what do a layer, a named backend or a policy add?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import normkit as nk

from .common import Prepared, calls_per_sample, cases, prepare

TINY = {"layer_norm": "layer_norm/1x64", "instance_norm": "instance_norm/1x3x8x8"}


class Overhead(Prepared):
    """A call on a tiny array, in each of the ways to make it."""

    version = "1"
    params = (list(TINY),)
    param_names = ("op",)

    def make(self, op: str) -> None:
        self.x = cases.make_inputs(cases.Case.parse(TINY[op])).x
        self.function = prepare(TINY[op])[1]
        self.named = _named(op)
        self.policy = prepare(TINY[op], policy=nk.FallbackPolicy.onnx())[1]
        self.layer: Callable[[Any], Any] = nk.LayerNorm(64) if op == "layer_norm" else nk.InstanceNorm2d(3, affine=True)
        self.layer(self.x)
        self.number = calls_per_sample(self.function)

    def time_function(self, op: str) -> None:
        self.function()

    def time_layer(self, op: str) -> None:
        self.layer(self.x)

    def time_named_backend(self, op: str) -> None:
        self.named()

    def time_policy(self, op: str) -> None:
        self.policy()

    def time_ambient_policy(self, op: str) -> None:
        with nk.using(policy=nk.FallbackPolicy.onnx()):
            self.function()


def _named(op: str) -> Callable[[], Any]:
    try:
        return prepare(TINY[op], "numba")[1]
    except NotImplementedError:
        return prepare(TINY[op], "numpy")[1]

"""A small network with norms in it, for `chains`: outputs are taken by the next norm, added to, multiplied, or kept."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

import normkit as nk

NORMS = 6  # of a pass
Norm = Callable[[Any, Any, Any], Any]


def normed(h: Any, weight: Any, bias: Any) -> Any:
    """A norm as normkit has it."""
    return nk.layer_norm(h, weight.shape, weight, bias)


def formula(h: Any, weight: Any, bias: Any) -> Any:
    """A norm in four lines of NumPy."""
    mean = h.mean(axis=-1, keepdims=True)
    deviation = h - mean
    var = (deviation * deviation).mean(axis=-1, keepdims=True)
    return deviation / np.sqrt(var + 1e-5) * weight + bias


class Network:
    """Passes of a network with norms in it, in each of the ways in which outputs are used."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng, n = np.random.default_rng(0), shape[-1]
        self.x = rng.standard_normal(shape).astype(np.float32)
        self.norm = np.linspace(0.5, 1.5, n, dtype=np.float32), np.linspace(-1, 1, n, dtype=np.float32)
        self.mixed, self.up, self.down = (
            (rng.standard_normal(sizes) / sizes[0] ** 0.5).astype(np.float32) for sizes in ((n, n), (n, 4 * n), (4 * n, n))
        )

    def alone(self, norm: Norm) -> None:
        for _ in range(NORMS):
            norm(self.x, *self.norm)

    def own_output(self, norm: Norm) -> None:
        h = self.x
        for _ in range(NORMS):
            h = norm(h, *self.norm)

    def kept_outputs(self, norm: Norm) -> None:
        outputs = [self.x]
        for _ in range(NORMS):
            outputs.append(norm(outputs[-1], *self.norm))

    def sums(self, norm: Norm) -> None:
        h = self.x
        for _ in range(NORMS):
            h = h + norm(h, *self.norm)

    def products(self, norm: Norm) -> None:
        """As the layers of a small transformer, but for the attention."""
        h = self.x
        for _ in range(NORMS // 2):
            h = norm(h + h @ self.mixed, *self.norm)
            h = norm(h + np.maximum(h @ self.up, 0) @ self.down, *self.norm)


class Timed:
    """A norm that adds up the seconds that its calls take."""

    def __init__(self, norm: Norm) -> None:
        self.norm, self.seconds = norm, 0.0

    def __call__(self, h: Any, weight: Any, bias: Any) -> Any:
        start = perf_counter()
        y = self.norm(h, weight, bias)
        self.seconds += perf_counter() - start
        return y

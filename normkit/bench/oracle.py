"""How far a result is from the truth: statistics with residuals fed back, block by block, so that big cases stay quick.

Float64 for narrower input, long double for float64. It uses nothing of normkit, and asv loads it beside whichever revision
is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from .cases import EPS, Case, Inputs

Array = np.ndarray[Any, Any]
BLOCK = 1 << 18  # elements: a block and its temporaries stay in cache


class Oracle:
    """The right answer to one case."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = case
        self.wide: Any = np.longdouble if case.dtype == "float64" else np.float64
        self.x = self._rows(inputs.x)
        self.mask = None if inputs.mask is None else self._rows(inputs.mask)
        self.weight = self._affine(inputs.weight)
        self.bias = self._affine(inputs.bias)
        self.center, self.residue, self.std = self._moments()

    def max_error(self, y: Array) -> float:
        """The largest absolute error of a result; infinity if it holds a NaN that it should not."""
        return self._worst(y, ulps=False)

    def max_ulps(self, y: Array) -> float:
        """The largest error in units of the last place of the right answer: 0.5 is perfect."""
        return self._worst(y, ulps=True)

    def _worst(self, y: Array, ulps: bool) -> float:
        rows, worst = self._rows(y), 0.0
        for block in self._blocks():
            expected = self._expected(block)
            error = np.abs(rows[block].astype(self.wide) - expected)
            if ulps:
                error /= ulp(expected, self.case.dtype)
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max(initial=0.0)))
        return worst

    def _expected(self, block: tuple[slice, slice]) -> Array:
        rows = block[0]
        deviation = (self.x[block].astype(self.wide) - self.center[rows]) - self.residue[rows]
        scaled = deviation / self.std[rows] * self.weight[block].astype(self.wide)
        return np.asarray(scaled + self.bias[block].astype(self.wide))

    def _moments(self) -> tuple[Array, Array, Array]:
        count = np.zeros((len(self.x), 1), np.int64)
        center, residue, square = (np.zeros((len(self.x), 1), self.wide) for _ in range(3))
        for block in self._blocks():
            values, chosen = self._values(block)
            count[block[0]] += chosen.sum(1, keepdims=True)
            center[block[0]] += np.sum(values, axis=1, keepdims=True, where=chosen)
        center /= count
        for block in self._blocks():
            values, chosen = self._values(block)
            deviation = values - center[block[0]]
            residue[block[0]] += np.sum(deviation, axis=1, keepdims=True, where=chosen)
            square[block[0]] += np.sum(deviation * deviation, axis=1, keepdims=True, where=chosen)
        residue /= count
        return center, residue, np.sqrt(square / count - residue**2 + EPS)

    def _values(self, block: tuple[slice, slice]) -> tuple[Array, Array]:
        values = self.x[block].astype(self.wide)
        return values, np.ones(values.shape, bool) if self.mask is None else self.mask[block]

    def _rows(self, array: Array) -> Array:
        """(sets of statistics, elements of each): the reduced axes moved to the end."""
        kept = [a for a in range(array.ndim) if a not in self.case.axes]
        count = prod(self.case.shape[a] for a in self.case.axes)
        return array.transpose(*kept, *self.case.axes).reshape(-1, count)

    def _affine(self, values: Array) -> Array:
        """Weight or bias in the shape of `_rows`: along the elements of a row for layer_norm, one for each row else."""
        along_row = self.case.op == "layer_norm"
        column = values.reshape(1, -1) if along_row else np.tile(values, self.case.shape[0]).reshape(-1, 1)
        return np.broadcast_to(column, self.x.shape)

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = self.x.shape
        width = min(columns, BLOCK)
        height = max(1, BLOCK // width)
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                yield slice(top, top + height), slice(left, left + width)


def ulp(values: Array, dtype: str) -> Array:
    """Spacing of a dtype's numbers at the values."""
    digits, smallest = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}[dtype]
    exponent = np.frexp(np.abs(values))[1] - 1
    return np.asarray(np.ldexp(np.ones_like(values), np.maximum(exponent, smallest) - digits))

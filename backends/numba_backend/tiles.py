"""Calls on arrays that no kernel takes where they lie: block by block through a buffer that fits in cache, never all at once.

NumPy copies a block in, in the order of its elements; the rows kernels normalize it in place; NumPy copies it out. All on
the calling thread: Python's threads cannot be had everywhere (at exit, where a limit forbids more), and did not pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.problem import Operands, Problem, native

from . import kernels, limits
from .compiling import kernel
from .launches import serial
from .sets import Sets, rows_shape

TILE_BYTES = 1 << 18


def run(problem: Problem, operands: Operands, mask: NDArray[Any] | None) -> None:
    """Normalize x through a buffer."""
    kept = tuple(a for a in range(len(problem.shape)) if a not in problem.axes)
    if problem.op != "instance_norm":  # no parameter depends on the number of a row: neighbours in memory share cache lines
        kept = tuple(sorted(kept, key=lambda a: -abs(operands.x.strides[a])))
    sets = Sets(problem, kept)
    mean, var = sets.statistics(operands)
    tiled = _Tiled(sets, operands, mask, mean, var)
    if problem.count * problem.dtype.itemsize <= TILE_BYTES:
        tiled.rows()
    else:
        for r in range(sets.number):
            tiled.row(r)
    sets.keep(operands, mean, var)


class _Tiled:
    """A call, with x, out and mask as arrays of (kept axes, reduced axes): a row is n elements of that in C order."""

    def __init__(self, sets: Sets, operands: Operands, mask: NDArray[Any] | None, mean: Any, var: Any) -> None:
        self.sets, self.problem, self.n, self.mean, self.var = sets, sets.problem, sets.problem.count, mean, var
        self.dtype = native(self.problem.dtype)
        self.x, self.out = operands.x.transpose(sets.order), operands.out.transpose(sets.order)
        self.mask = None if mask is None else mask.transpose(sets.order)
        self.weight, self.bias = sets.parameters(operands)
        self.shape = rows_shape(sets, 1, operands)
        if mask is None:
            runs, inner = self.shape[[kernels.RUNS, kernels.INNER]].tolist()
            self.shape[kernels.GROUP] = limits.rows_at_once(self.problem, runs, inner)
        capacity = min(TILE_BYTES // self.dtype.itemsize, operands.x.size)
        self.buffer = np.empty(capacity, self.dtype)
        self.flags = None if mask is None else np.empty(capacity, np.bool_)

    def rows(self) -> None:
        """Whole rows at a time."""
        many, number = self.buffer.size // self.n, self.sets.number
        for first in range(0, number, many):
            last = min(first + many, number)
            x, yes = self._read(first * self.n, last * self.n)
            shape, n = self.shape.copy(), last - first
            shape[kernels.ROWS], shape[kernels.GIVEN] = n, n if self.sets.given else 0
            weight, bias = self.weight, self.bias
            if not self.sets.apart and weight.size > 1:
                weight, bias, shape[kernels.PERIOD] = weight[first:last], bias[first:last], n
            mean, var = (self.mean[first:last], self.var[first:last]) if self.mean.size > 1 else (self.mean, self.var)
            serial(self.dtype, yes is not None)(x, x, yes, weight, bias, mean, var, shape, self.problem.eps)
            self._write(x, first * self.n)

    def row(self, r: int) -> None:
        """A row that is larger than the buffer: moments of its pieces, then apply to its pieces."""
        scratch, at = np.empty((-(-self.n // kernels.BLOCK), 5)), r * self.n
        step = self.buffer.size // kernels.BLOCK * kernels.BLOCK
        pieces = [(start, min(start + step, self.n)) for start in range(0, self.n, step)]
        if self.sets.given:
            scratch[0, :3] = self.mean[r], 0.0, self.var[r]
        else:
            name = "tile_moments" if self.mask is None else "masked_tile_moments"
            for start, stop in pieces:
                x, yes = self._read(at + start, at + stop)
                kernel(name, self.dtype)(x, yes, scratch, start, stop)
            kernel("tile_merge", self.dtype)(scratch)
            if self.mean.size > 1 or self.shape[kernels.WANTED]:
                self.mean[r], self.var[r] = scratch[0, 0] + scratch[0, 1], scratch[0, 2]
        weight, bias = self.weight, self.bias
        if not self.sets.apart and weight.size > 1:
            weight, bias = weight[r : r + 1], bias[r : r + 1]
        for start, stop in pieces:
            x, _ = self._read(at + start, at + stop, masked=False)
            kernel("tile_apply", self.dtype)(x, weight, bias, scratch, self.shape, self.problem.eps, start, stop)
            self._write(x, at + start)

    def _read(self, start: int, stop: int, masked: bool = True) -> tuple[Any, Any]:
        buffer, flags, at = self.buffer, self.flags if masked else None, 0
        for box in boxes(self.x.shape, start, stop):
            part = self.x[box]
            buffer[at : at + part.size].reshape(part.shape)[...] = part
            if flags is not None and self.mask is not None:
                flags[at : at + part.size].reshape(part.shape)[...] = self.mask[box]
            at += part.size
        return buffer[:at], None if flags is None else flags[:at]

    def _write(self, y: NDArray[Any], start: int) -> None:
        at = 0
        for box in boxes(self.out.shape, start, start + y.size):
            part = self.out[box]
            part[...] = y[at : at + part.size].reshape(part.shape)
            at += part.size


def boxes(shape: tuple[int, ...], start: int, stop: int, where: tuple[slice, ...] = ()) -> Iterator[tuple[slice, ...]]:
    """Parts of an array of that shape that hold its elements start .. stop, in C order, one after another."""
    inner = prod(shape[1:])
    (first, into), (last, rest) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        yield from boxes(shape[1:], into, rest, (*where, slice(first, first + 1)))
        return
    if into:
        yield from boxes(shape[1:], into, inner, (*where, slice(first, first + 1)))
        first += 1
    if first < last:
        yield (*where, slice(first, last))
    if rest:
        yield from boxes(shape[1:], 0, rest, (*where, slice(last, last + 1)))

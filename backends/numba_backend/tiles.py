"""Calls on arrays that no kernel takes where they lie: block by block through a buffer that fits in cache, never all at once.

NumPy copies a block in, in the order of its elements; the rows kernels normalize it in place; NumPy copies it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.problem import Operands, Problem

from . import kernels, limits, threads
from .compiling import kernel
from .sets import Sets, rows_shape

TILE_BYTES = 1 << 18


def run(problem: Problem, operands: Operands, mask: NDArray[Any] | None) -> None:
    """Normalize x through buffers, one for each thread."""
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
        self.dtype = self.problem.dtype.newbyteorder("=")
        self.x, self.out = operands.x.transpose(sets.order), operands.out.transpose(sets.order)
        self.mask = None if mask is None else mask.transpose(sets.order)
        self.weight, self.bias = sets.parameters(operands)
        self.shape = rows_shape(sets, 1, operands)
        self.capacity = TILE_BYTES // self.dtype.itemsize
        self.size = self.dtype.itemsize * operands.x.size

    def rows(self) -> None:
        """Whole rows at a time."""
        many, number = max(1, self.capacity // self.n), self.sets.number
        self._share([(r, min(r + many, number)) for r in range(0, number, many)], self._some_rows)

    def _some_rows(self, tiles: list[tuple[int, int]]) -> None:
        buffer, flags = self._buffers()
        for first, last in tiles:
            x, yes = self._read(first * self.n, last * self.n, buffer, flags)
            shape, n = self.shape.copy(), last - first
            shape[kernels.ROWS], shape[kernels.GIVEN] = n, n if self.sets.given else 0
            weight, bias = self.weight, self.bias
            if not self.sets.apart and weight.size > 1:
                weight, bias, shape[kernels.PERIOD] = weight[first:last], bias[first:last], n
            mean, var = (self.mean[first:last], self.var[first:last]) if self.mean.size > 1 else (self.mean, self.var)
            name = "rows_serial" if yes is None else "masked_rows_serial"
            kernel(name, self.dtype)(x, x, yes, weight, bias, mean, var, shape, self.problem.eps)
            self._write(x, first * self.n)

    def row(self, r: int) -> None:
        """A row that is larger than a buffer: moments of its pieces, then apply to its pieces."""
        self.scratch, self.r = np.empty((-(-self.n // kernels.BLOCK), 5)), r
        step = self.capacity // kernels.BLOCK * kernels.BLOCK
        pieces = [(at, min(at + step, self.n)) for at in range(0, self.n, step)]
        if self.sets.given:
            self.scratch[0, :3] = self.mean[r], 0.0, self.var[r]
        else:
            self._share(pieces, self._moments)
            kernel("tile_merge", self.dtype)(self.scratch)
            if self.mean.size > 1 or self.shape[kernels.WANTED]:
                self.mean[r], self.var[r] = self.scratch[0, 0] + self.scratch[0, 1], self.scratch[0, 2]
        self._share(pieces, self._apply)

    def _moments(self, pieces: list[tuple[int, int]]) -> None:
        buffer, flags = self._buffers()
        for start, stop in pieces:
            x, yes = self._read(self.r * self.n + start, self.r * self.n + stop, buffer, flags)
            kernel("tile_moments" if yes is None else "masked_tile_moments", self.dtype)(x, yes, self.scratch, start, stop)

    def _apply(self, pieces: list[tuple[int, int]]) -> None:
        buffer, _ = self._buffers()
        weight, bias = self.weight, self.bias
        if not self.sets.apart and weight.size > 1:
            weight, bias = weight[self.r : self.r + 1], bias[self.r : self.r + 1]
        for start, stop in pieces:
            x, _ = self._read(self.r * self.n + start, self.r * self.n + stop, buffer, None)
            apply = kernel("tile_apply", self.dtype)
            apply(x, weight, bias, self.scratch, self.shape, self.problem.eps, start, stop)
            self._write(x, self.r * self.n + start)

    def _share(self, tiles: list[tuple[int, int]], work: Callable[[list[tuple[int, int]]], None]) -> None:
        """Some of the tiles on each thread."""
        with threads.sharing as chunks:
            n = 1 if 2 * self.size < limits.PARALLEL_BYTES else min(chunks, len(tiles))
            if n == 1:
                work(tiles)
                return
            with ThreadPoolExecutor(n) as pool:
                list(pool.map(work, [tiles[len(tiles) * i // n : len(tiles) * (i + 1) // n] for i in range(n)]))

    def _buffers(self) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        size = max(self.capacity, self.n) if self.n <= self.capacity else self.capacity
        return np.empty(size, self.dtype), None if self.mask is None else np.empty(size, np.bool_)

    def _read(self, start: int, stop: int, buffer: NDArray[Any], flags: NDArray[np.bool_] | None) -> tuple[Any, Any]:
        at = 0
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

"""The canonical problem: what every backend receives, whatever public op was called.

A Problem holds shapes, dtypes and axes but no arrays: it is hashable, so a prepared call can be kept, and a shape alone
can be explained. The arrays travel beside it, in Operands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

Array = Any  # an array of whichever family the call is about: numpy.ndarray, cupy.ndarray, ...


class Rows(NamedTuple):
    """x viewed as (rows, runs, inner), C-contiguous; a row shares statistics, and row r uses ``weight[r % period]``.

    A run is a stretch of `inner` neighbours that share one weight and bias: weight has shape (period, runs).
    """

    rows: int
    runs: int
    inner: int
    period: int


class Columns(NamedTuple):
    """x viewed as (outer, length, lanes), C-contiguous; a lane of one outer block shares statistics: all of length."""

    outer: int
    length: int
    lanes: int
    affine: Literal["length", "lanes"]  # which of the two weight and bias are indexed by


@dataclass(frozen=True, slots=True)
class Problem:
    """A validated call, without its arrays.

    `axes` are reduced (one set of statistics covers all of them), `affine_axes` index weight and bias; both ascending.
    """

    op: str
    family: str  # the package of the array type: "numpy", "cupy"
    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # of x and of the output
    axes: tuple[int, ...]
    affine_axes: tuple[int, ...]
    eps: float
    weight: np.dtype[Any] | None = None
    bias: np.dtype[Any] | None = None
    statistics: Literal["input", "given"] = "input"
    masked: bool = False
    strides: tuple[int, ...] = ()  # of x, in bytes
    operands: Operands | None = None  # only when a policy's callable is asked to answer

    @property
    def count(self) -> int:
        """Elements that share one set of statistics."""
        return prod(self.shape[a] for a in self.axes)

    @property
    def stats_shape(self) -> tuple[int, ...]:
        """Shape of mean and variance: x's, with reduced axes kept as 1."""
        return tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))

    @property
    def affine_shape(self) -> tuple[int, ...]:
        """Shape in which weight and bias broadcast against x."""
        return tuple(n if a in self.affine_axes else 1 for a, n in enumerate(self.shape))

    @property
    def degenerate(self) -> bool:
        """Whether the statistics come from one element each, so that they would erase the input."""
        return self.count == 1 and self.statistics == "input"

    @property
    def batched(self) -> bool:
        """Whether axis 0 is one of instances; a layer may be given one instance without it, whose channels come first."""
        return self.op != "instance_norm" or self.affine_axes != (0,)

    @property
    def contiguous(self) -> bool:
        """Whether x is C-contiguous."""
        expected, step = [], self.dtype.itemsize
        for n in reversed(self.shape):
            expected.append(step)
            step *= n
        pairs = zip(self.shape, self.strides, reversed(expected), strict=True)
        return prod(self.shape) == 0 or all(n == 1 or s == e for n, s, e in pairs)

    @property
    def layout(self) -> Rows | Columns | None:
        """The canonical view of a C-contiguous x, or None if the axes are interleaved and fit neither."""
        has_affine = self.weight is not None or self.bias is not None
        return _layout(self.shape, self.axes, self.affine_axes if has_affine else ())

    @property
    def x(self) -> Array:
        """The input array; there only while a policy's callable runs."""
        if self.operands is None:
            raise AttributeError("this Problem describes a call without its arrays")
        return self.operands.x


@dataclass(slots=True)
class Operands:
    """The arrays of one call, in the caller's shapes, None where absent; weight and bias have the axes of `affine_axes`."""

    x: Array
    weight: Array = None
    bias: Array = None
    out: Array = None
    mean: Array = None  # float64, broadcastable to Problem.stats_shape: read if statistics are given, else written
    var: Array = None  # likewise: the biased variance
    mask: Array = None


class Kind(NamedTuple):
    """All of an array but its elements and where they are; of None, its type alone."""

    type: type
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def kind(a: Any) -> Kind:
    """The kind of an array, or of None."""
    return Kind(type(a), None, (), ()) if a is None else Kind(type(a), a.dtype, a.shape, a.strides)


def of_kind(a: Any, k: Kind) -> bool:
    """Whether a thing is an array of that kind, or None."""
    return type(a) is k.type and kind(a) == k


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """NumPy's own dtype object for these numbers, in this machine's byte order.

    ``newbyteorder("=")`` makes an object that equals it and is another: all arrays made of that one would bear it too.
    """
    return np.dtype(dtype.type)


@runtime_checkable
class Backend(Protocol):
    """What an engine has to offer. Third parties implement this and announce it under `normkit.backends`.

    `prepare` is called once per kind of call, the function it returns once per call; that function must not raise,
    writes every element of ``out`` and, where they are not None and not given, ``mean`` and ``var``.
    """

    name: str
    family: str

    def why_not(self, problem: Problem) -> list[str]:
        """Every reason why this backend cannot run the problem; empty if it can."""

    def prepare(self, problem: Problem) -> Callable[[Operands], None]:
        """A function that runs the problem on operands whose `out` is set."""

    # A backend may also have `replay(problem, operands, out)`: a plan, a function of (x, weight, bias, out) that repeats the
    # run on other arrays of the same kinds (those in `operands`, but out as it was given), makes the
    # output where out is None, and returns it. It returns None for any other arrays, and where out may not be written as it
    # is. Of a run with a mask or statistics it is a function of (x, weight, bias, out, mask, mean, var): it returns None where
    # the mask leaves fewer than two elements of some set; mean and var are as in `operands`, C-contiguous, to be read or
    # written, or None if nobody wants them. It holds no array of the size of x or weight, and none of those in `operands`.
    # `replay` returns None if there is no plan for such a run. Small calls gain by it. Only for NumPy arrays it is asked about
    # runs with statistics; and those that it has no plan for are then repeated without the validation. And
    # `describe_layout(problem)`: how it takes x where that is not in C order, what it copies, and why, for `explain`; None
    # if there is nothing to say. And `threads()`: how many threads a large call uses, for `get_num_threads`; without it, one.

    def empty_like(self, x: Array) -> Array:
        """An uninitialized output: shape, dtype and memory order of x."""

    def empty_stats(self, shape: tuple[int, ...]) -> Array:
        """An uninitialized float64 array for mean or variance."""

    def describe(self) -> dict[str, str]:
        """What `normkit doctor` prints about this backend: versions, threads, devices."""


@lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], axes: tuple[int, ...], affine_axes: tuple[int, ...]) -> Rows | Columns | None:
    groups: list[tuple[bool, bool, int]] = []  # (reduced, affine, size) of neighbouring axes of the same kind
    for a, n in enumerate(shape):
        kind = (a in axes, a in affine_axes)
        if n == 1:
            continue
        if groups and groups[-1][:2] == kind:
            groups[-1] = (*kind, groups[-1][2] * n)
        else:
            groups.append((*kind, n))
    kinds = [g[:2] for g in groups]
    size = {g[:2]: g[2] for g in groups}
    kept, kept_affine, reduced, reduced_affine = (False, False), (False, True), (True, False), (True, True)
    if _is_subsequence(kinds, [kept, kept_affine, reduced_affine, reduced]):
        period = size.get(kept_affine, 1)
        return Rows(size.get(kept, 1) * period, size.get(reduced_affine, 1), size.get(reduced, 1), period)
    outer = groups[0][2] if kinds[0] == kept else 1
    inside = groups[1:] if kinds[0] == kept else groups
    if [g[:2] for g in inside] == [reduced, kept_affine]:
        return Columns(outer, inside[0][2], inside[1][2], "lanes")
    plain = [reduced, kept] if not affine_axes else None  # a weight of one element is not one of length
    if [g[:2] for g in inside] in ([reduced_affine, kept], plain):
        return Columns(outer, inside[0][2], inside[1][2], "length")
    return None


def _is_subsequence(kinds: list[tuple[bool, bool]], order: list[tuple[bool, bool]]) -> bool:
    position = iter(order)
    return all(kind in position for kind in kinds)

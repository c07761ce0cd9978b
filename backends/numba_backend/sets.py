"""What belongs to the sets of statistics (mean, variance, weight and bias), in the order in which a kernel counts them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.constants import constant
from normkit.problem import Operands, Problem

from . import kernels
from .compiling import MAX_NDIM, is_half, kernel, parameter_dtype
from .objects import end_to_end

Floats = NDArray[np.float64]
UNUSED = np.zeros(1)


class Sets:
    """The sets of a problem, counted along the kept axes in the order given."""

    def __init__(self, problem: Problem, order: tuple[int, ...]) -> None:
        self.problem = problem
        self.number = prod(problem.stats_shape)
        self.order = (*order, *problem.axes)
        self.given = problem.statistics == "given"
        self.parameter = parameter_dtype(problem.dtype)
        affine = problem.weight is not None or problem.bias is not None
        long = [[a for a in axes if problem.shape[a] > 1] for axes in (problem.affine_axes, problem.axes)]
        self.apart = affine and len(long[0]) > 0 and set(long[0]) <= set(long[1])  # a parameter for each element of a set

    def spread(self, a: NDArray[Any], dtype: Any) -> NDArray[Any]:
        """One number for each set, of an array that broadcasts to the statistics."""
        full = np.broadcast_to(a, self.problem.stats_shape).transpose(self.order)
        return converted(full, dtype).reshape(-1)

    def parameters(self, operands: Operands) -> tuple[NDArray[Any], NDArray[Any]]:
        """Weight and bias: of each element of a set if `apart`, else one for each set, or only one if there are none."""
        return self._parameter(operands.weight, 1), self._parameter(operands.bias, kernels.NO_BIAS)

    def _parameter(self, given: NDArray[Any] | None, default: float) -> NDArray[Any]:
        if given is None:
            both = self.problem.weight is None and self.problem.bias is None
            size = 1 if both else self.problem.count if self.apart else self.number
            return constant(default, size, self.parameter)
        given = given.reshape(self.problem.affine_shape)
        if not self.apart:
            return self.spread(given, self.parameter)
        full = np.broadcast_to(given, [n if a in self.problem.axes else 1 for a, n in enumerate(self.problem.shape)])
        return converted(full, self.parameter).reshape(-1)

    def as_given(self, lanes: int) -> bool:
        """Whether kernels may read weight and bias as the caller has them.

        That is one for each element of a set if `apart`, else one for each of so many sets and the same again for the next.
        """
        numbers = np.arange(prod(self.problem.affine_shape))
        if (
            len(numbers) != (self.problem.count if self.apart else lanes) or len(numbers) > 1 << 24
        ):  # float32 tells no more apart
            return False
        return bool((self._parameter(numbers, 0).reshape(-1, len(numbers)) == numbers).all())

    def statistics(self, operands: Operands) -> tuple[Floats, Floats]:
        """Mean and variance, as given or to be written by a kernel."""
        if self.given:
            return self.spread(operands.mean, np.float64), self.spread(operands.var, np.float64)
        if operands.mean is None:
            return UNUSED, UNUSED
        return np.empty(self.number), np.empty(self.number)

    def handed(self, mean: Floats, var: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of a run that is repeated, as `normkit.plans` has them: those given, or room for them in order."""
        if self.given:
            return self.spread(mean, np.float64), self.spread(var, np.float64)
        return end_to_end(mean), end_to_end(var)

    @property
    def in_order(self) -> bool:
        """Whether a kernel counts the sets as the caller's statistics lie."""
        kept = [a for a in self.order if self.problem.stats_shape[a] > 1]
        return kept == sorted(kept)

    def keep(self, operands: Operands, mean: Floats, var: Floats) -> None:
        """Hand to the caller what a kernel has written."""
        if self.given or operands.mean is None:
            return
        shape = [self.problem.stats_shape[a] for a in self.order]
        operands.mean.transpose(self.order)[...] = mean.reshape(shape)
        operands.var.transpose(self.order)[...] = var.reshape(shape)


def rows_shape(sets: Sets, rows: int, operands: Operands) -> NDArray[np.int64]:
    """What the rows kernels are told of so many rows that lie end to end, less where their weights are."""
    shape = np.zeros(kernels.SHAPE, np.int64)
    n = sets.problem.count
    shape[kernels.ROWS], shape[kernels.PERIOD] = rows, 1
    shape[kernels.RUNS], shape[kernels.INNER] = (n, 1) if sets.apart else (1, n)
    shape[kernels.GIVEN], shape[kernels.WANTED] = rows if sets.given else 0, operands.mean is not None
    for at in (kernels.X_ROWS, kernels.OUT_ROWS, kernels.M_ROWS):
        shape[at + 2] = n
    shape[kernels.M_STEP] = 1
    return shape


def converted(a: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """As the kernels read it. What is too large for that is inf, without NumPy's warning."""
    if is_half(a.dtype) and dtype == np.float32 and a.flags.c_contiguous and a.size > 0 and a.ndim <= MAX_NDIM:
        wide = np.empty(a.shape, dtype)  # by the CPU's instructions, which NumPy does not use
        kernel("widened", a.dtype)(a, wide, a.size)
        return wide
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(a, dtype)

"""Calls on the rows layout: what the kernels are told is worked out once for each kind of call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit import pool
from normkit.constants import constant
from normkit.problem import Operands, Problem, Rows, native

from . import kernels, limits, strided
from .compiling import MAX_NDIM, parameter_dtype
from .guard import Parameters, recognizer, repeating
from .launches import launcher, tell_limits
from .objects import by_address, end_to_end
from .sets import converted

UNUSED = np.zeros((1,) * MAX_NDIM)


class RowsCall:
    """One kind of call on the rows layout: what the kernels are told, worked out once."""

    def __init__(self, problem: Problem) -> None:
        layout = problem.layout
        assert isinstance(layout, Rows)
        self.problem = problem
        self.parameter = parameter_dtype(problem.dtype)
        self.rows, self.runs, self.inner, self.period = layout
        self.n = self.runs * self.inner
        self.nbytes = self.rows * self.n * problem.dtype.itemsize

    def __call__(self, operands: Operands) -> None:
        x, out = operands.x, operands.out
        if self.nbytes == 0:
            self._nothing(operands)
            return
        if not out.flags.c_contiguous or not out.dtype.isnative:
            strided.run(self.problem, operands)
            return
        if x.ndim > MAX_NDIM:
            x, out = x.reshape(-1), out.reshape(-1)
        weight, bias = self._parameter(operands.weight, 1), self._parameter(operands.bias, kernels.NO_BIAS)
        mean, var = self._statistics(operands)
        shape = self._shape(mean, operands)
        launcher(self.problem, self.rows, masked=False)(x, out, None, weight, bias, mean, var, shape, self.problem.eps)

    def replay(self, operands: Operands, given_out: NDArray[Any] | None) -> Callable[..., NDArray[Any] | None] | None:
        """What repeats a run, see `normkit.plans`; None if x or out would have to be copied."""
        x, out = operands.x, operands.out
        if self.nbytes == 0 or not (by_address() or x.ndim <= MAX_NDIM) or not out.flags.c_contiguous or not out.dtype.isnative:
            return None
        run = launcher(self.problem, self.rows, masked=False)
        shape, eps = self._shape(UNUSED if operands.mean is None else operands.mean, operands), self.problem.eps
        size = self.period * self.runs
        if operands.mean is not None:

            def run_for_statistics(x: Any, out: Any, weight: Any, bias: Any, mask: Any, mean: Any, var: Any) -> None:
                run(x, out, None, weight, bias, end_to_end(mean), end_to_end(var), shape, eps)

            return repeating(operands, given_out, self.parameter, size, run_for_statistics)
        parameters = Parameters(operands, self.parameter, size)
        if not parameters.kept:
            return None
        ones, zeros, convert = parameters.weight, parameters.bias, parameters.convert
        alike, known, kinds = recognizer(x, operands.weight, operands.bias, given_out)
        empty = np.empty if self.nbytes < pool.SMALLEST else pool.empty
        sizes, dtype = x.shape, native(x.dtype)

        # As `guard.repeating` has it, with one call of Python less: a small call is little else
        def as_given(x: Any, weight: Any, bias: Any, out: Any, kinds: Any = kinds) -> Any:
            if not alike(x, weight, bias, out, known):
                return None
            if out is None:
                out = empty(sizes, dtype)
            run(x, out, None, weight, bias, UNUSED, UNUSED, shape, eps)
            return out

        def again(x: Any, weight: Any, bias: Any, out: Any, kinds: Any = kinds) -> Any:
            if not alike(x, weight, bias, out, known):
                return None
            weight, bias = ones if weight is None else weight, zeros if bias is None else bias
            if convert:
                weight, bias = parameters.converted(weight, bias)
            if out is None:
                out = empty(sizes, dtype)
            run(x, out, None, weight, bias, UNUSED, UNUSED, shape, eps)
            return out

        return as_given if ones is None and zeros is None and not convert else again

    def _shape(self, mean: NDArray[Any], operands: Operands) -> NDArray[np.int64]:
        shape = np.zeros(kernels.SHAPE, np.int64)
        shape[kernels.ROWS], shape[kernels.RUNS], shape[kernels.INNER], shape[kernels.PERIOD] = (
            self.rows, self.runs, self.inner, self.period,
        )  # fmt: skip
        shape[kernels.GIVEN] = mean.size if self.problem.statistics == "given" else 0
        shape[kernels.WANTED] = operands.mean is not None
        tell_limits(shape, self.problem, self.n, limits.rows_at_once(self.problem, self.runs, self.inner))
        shape[kernels.X_ROWS + 2] = shape[kernels.OUT_ROWS + 2] = self.n
        return shape

    def _parameter(self, given: NDArray[Any] | None, default: float) -> NDArray[Any]:
        """weight or bias as the kernels read it: contiguous, in the dtype of the arithmetic, all of its (period, runs)."""
        if given is None:
            return constant(default, self.period * self.runs, self.parameter)
        parameter = converted(given, self.parameter)
        return parameter if parameter.ndim <= MAX_NDIM else parameter.reshape(-1)

    def _statistics(self, operands: Operands) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if operands.mean is None:
            return UNUSED, UNUSED
        if self.problem.statistics == "input":
            return operands.mean.reshape(-1), operands.var.reshape(-1)
        return np.ascontiguousarray(operands.mean).reshape(-1), np.ascontiguousarray(operands.var).reshape(-1)

    def _nothing(self, operands: Operands) -> None:
        """x is empty: there may still be statistics to write, of no elements each."""
        if operands.mean is not None and self.problem.statistics == "input":
            operands.mean[...] = operands.var[...] = np.nan

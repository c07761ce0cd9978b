"""What calls on rows have in common, wherever the rows lie: which kernel runs them, and what it is told of the caches."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.problem import Problem

from . import kernels, limits, threads
from .compiling import kernel, soon


def launcher(problem: Problem, rows: int, masked: bool) -> Callable[..., None]:
    """What runs a kernel on (x, out, mask, weight, bias, mean, var, shape, eps) of so many rows: on one thread, or on all."""
    dtype, name = problem.dtype, "masked_rows" if masked else "rows"
    nbytes = 2 * rows * problem.count * dtype.itemsize
    if nbytes < limits.PARALLEL_BYTES:
        return serial(dtype, masked)
    splits = limits.splitting(problem)

    def run(*args: Any) -> None:
        with threads.sharing as granted:
            chunks = threads.worthwhile(granted, nbytes)
            split = chunks > 1 and splits(rows, chunks)
            many = soon(f"{name}_split" if split else f"{name}_parallel", dtype, f"{name}_first") if chunks > 1 else None
            if many is None:
                serial(dtype, masked)(*args)
            elif not split:
                threads.launch(many, chunks, 1, *args)
            else:
                scratch = np.empty((-(-problem.count // kernels.BLOCK), 5))
                threads.launch(many, chunks, rows + 1, *args, scratch)

    return run


def serial(dtype: np.dtype[Any], masked: bool) -> Callable[..., None]:
    """What runs on one thread: until that is compiled, a kernel that is slower on short rows alone."""
    name = "masked_rows" if masked else "rows"
    return soon(f"{name}_serial", dtype, f"{name}_first") or kernel(f"{name}_first", dtype)


def tell_limits(shape: NDArray[np.int64], problem: Problem, step: int, group: int) -> None:
    """Write down how rows are grouped, streamed and fetched ahead, which begin so many elements apart in x."""
    nbytes, n, itemsize = prod(problem.shape) * problem.dtype.itemsize, problem.count, problem.dtype.itemsize
    shape[kernels.GROUP] = group
    shape[kernels.STREAMED] = limits.streamed_share(nbytes, n, group, itemsize)
    shape[kernels.AHEAD] = limits.fetched_ahead(nbytes, n, step, group, itemsize)

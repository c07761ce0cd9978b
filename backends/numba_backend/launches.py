"""What calls on rows have in common, wherever the rows lie: which kernel runs them, and what it is told of the caches."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.problem import Problem

from . import kernels, limits, threads
from .compiling import kernel


def launcher(problem: Problem, rows: int, masked: bool) -> Callable[..., None]:
    """What runs a kernel on (x, out, mask, weight, bias, mean, var, shape, eps) of so many rows: on one thread, or on all."""
    dtype, name = problem.dtype, "masked_rows" if masked else "rows"
    serial, parallel, split = f"{name}_serial", f"{name}_parallel", f"{name}_split"
    nbytes = 2 * rows * problem.count * dtype.itemsize
    if nbytes < limits.PARALLEL_BYTES:
        return kernel(serial, dtype)
    splits = limits.splitting(problem)

    def run(*args: Any) -> None:
        with threads.sharing as granted:
            chunks = threads.worthwhile(granted, nbytes)
            if chunks == 1:
                kernel(serial, dtype)(*args)
            elif not splits(rows, chunks):
                threads.launch(kernel(parallel, dtype), chunks, 1, *args)
            else:
                scratch = np.empty((-(-problem.count // kernels.BLOCK), 5))
                threads.launch(kernel(split, dtype), chunks, rows + 1, *args, scratch)

    return run


def tell_limits(shape: NDArray[np.int64], problem: Problem, step: int, group: int) -> None:
    """Write down how rows are grouped, streamed and fetched ahead, which begin so many elements apart in x."""
    nbytes, n, itemsize = prod(problem.shape) * problem.dtype.itemsize, problem.count, problem.dtype.itemsize
    shape[kernels.GROUP] = group
    shape[kernels.STREAMED] = limits.streamed_share(nbytes, n, group, itemsize)
    shape[kernels.AHEAD] = limits.fetched_ahead(nbytes, n, step, group, itemsize)

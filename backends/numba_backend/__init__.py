"""The Numba engine: canonical problems to kernels, serial or parallel. Compiles on first use, for the dtype at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from normkit import pool
from normkit.problem import Operands, Problem, Rows, native

from . import cache, columns, layouts, limits, strided, threads
from .compiling import MOST, ONCE, SELDOM, is_half, kernel
from .rows import RowsCall

Task = tuple[str, Callable[[], object]]  # what is made ready, and what does so


class NumbaBackend:
    """Fused kernels on one thread or all."""

    name = "numba"
    family = "numpy"

    def why_not(self, problem: Problem) -> list[str]:
        return []

    def prepare(self, problem: Problem) -> Callable[[Operands], None]:
        if _plain(problem) and not problem.masked:
            return RowsCall(problem)
        return partial(strided.run, problem)

    def replay(
        self, problem: Problem, operands: Operands, out: NDArray[Any] | None
    ) -> Callable[..., NDArray[Any] | None] | None:
        """A function of (x, weight, bias, out) that repeats this run on other arrays of the same kind."""
        call = self.prepare(problem)
        again = call.replay(operands, out) if isinstance(call, RowsCall) else None
        return again or columns.replay(problem, operands, out) or strided.replay(problem, operands, out)

    def empty_like(self, x: NDArray[Any]) -> NDArray[Any]:
        """An output in native byte order whose axes lie in the order of x's: C order if x repeats its elements."""
        dtype = native(x.dtype)
        if x.flags.c_contiguous:
            return pool.empty(x.shape, dtype)
        order = layouts.order(x.strides)
        return pool.empty(tuple(x.shape[a] for a in order), dtype).transpose(np.argsort(order))

    def describe_layout(self, problem: Problem) -> str | None:
        """How x is taken, what is copied, and why; None of what the problem itself can tell: rows that lie end to end."""
        return strided.describe(problem) if prod(problem.shape) > 0 and not _plain(problem) else None

    def empty_stats(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return np.empty(shape, np.float64)

    def describe(self) -> dict[str, str]:
        return {
            "version": numba.__version__,
            "threading layer": threads.describe(),
            "threads": str(threads.available()),
            "kernels kept in": cache.describe(),
            "outputs past the caches": f"from {limits.STREAM_BYTES / 2**20:.0f} MiB on",
            "outputs kept": f"{pool.held() / 2**20:.0f} MiB of at most {pool.get_cache_limit() / 2**20:.0f} MiB for reuse",
        }

    def threads(self) -> int:
        """How many threads a large call uses."""
        return threads.available()

    def warmup(self, dtypes: Iterable[str], everything: bool = False, into: str | None = None) -> list[Task]:
        """What has to be loaded or compiled for calls on these dtypes: those that most calls run on, or all there are.

        `into` is the folder to keep them in, for all users to read, instead of this user's.
        """
        if into is not None:
            cache.share(into)
        kinds = [(name, np.dtype(np.float32)) for name in ONCE]
        for dtype in map(_dtype, dtypes):
            names = [*MOST, *([*SELDOM, "widened"] if everything else ["widened"])]
            kinds += [(name, dtype) for name in names if name != "widened" or is_half(dtype)]
        return [(name if name in ONCE else f"{name} {dtype.name}", partial(kernel, name, dtype)) for name, dtype in kinds]

    def kept(self) -> str:
        """Where what `warmup` has made is kept."""
        return cache.describe()


def load() -> NumbaBackend:
    """The backend, for the registry."""
    return NumbaBackend()


def _plain(problem: Problem) -> bool:
    """Whether x is rows that lie end to end."""
    return isinstance(problem.layout, Rows) and problem.contiguous and problem.dtype.isnative


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        __import__("ml_dtypes")  # registers the name with NumPy
    return np.dtype(name)

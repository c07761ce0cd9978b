"""The optional GPU backend: CuPy arrays in, CuPy arrays out, on their device and the current stream.

`launch` cuts a problem into blocks, `engine` compiles the kernels and launches them, `reference` is the formula for what the
kernels do not serve. This module imports CuPy only when the registry asks for the backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import nan, prod
from typing import Any

import numpy as np

from normkit.errors import InputValueError
from normkit.problem import Array, Operands, Problem

from . import reference
from .engine import Engine


class CupyBackend:
    """Fused CUDA kernels; masks by way of CuPy's own functions."""

    name = "cupy"
    family = "cupy"

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._engine = Engine(cupy)
        self._prepared = lru_cache(maxsize=1024)(self._prepare)

    def why_not(self, problem: Problem) -> list[str]:
        return []

    def prepare(self, problem: Problem) -> Callable[[Operands], None]:
        return self._prepared(problem)

    def replay(self, problem: Problem, operands: Operands, out: Array | None) -> Callable[..., Array | None] | None:
        plan = self._engine.replay(problem, operands, out)
        if plan is None:
            return None

        def explained(x: Array, weight: Array, bias: Array, out: Array) -> Array | None:
            try:
                return plan(x, weight, bias, out)
            except self._errors() as error:
                self._explain(error, problem.op, x)
                raise

        return explained

    def empty_like(self, x: Array) -> Array:
        try:
            return self._engine.empty_like(x)
        except self._errors() as error:
            self._explain(error, "an output", x)
            raise

    def empty_stats(self, shape: tuple[int, ...]) -> Array:
        return self._cupy.empty(shape, np.float64)

    def describe(self) -> dict[str, str]:
        cuda = self._cupy.cuda
        device = cuda.Device()
        properties = cuda.runtime.getDeviceProperties(device.id)
        driver, runtime = (_cuda(v) for v in (cuda.runtime.driverGetVersion(), cuda.runtime.runtimeGetVersion()))
        free, total = device.mem_info
        return {
            "version": self._cupy.__version__,
            "device": f"{properties['name'].decode()}, compute capability {_dotted(device.compute_capability)}",
            "memory": f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free",
            "driver": f"CUDA {driver}; CuPy uses CUDA {runtime}",
        }

    def _prepare(self, problem: Problem) -> Callable[[Operands], None]:
        if prod(problem.shape) == 0:
            run = self._run_empty
        elif problem.masked:
            run = self._run_reference
        elif problem.layout is None:
            run = self._run_moved
        else:
            run = self._engine.run

        def on_device(operands: Operands) -> None:
            _same_device(problem, operands)
            try:
                with operands.x.device:
                    mean = operands.mean
                    if problem.statistics == "input" and mean is not None and mean.device != operands.x.device:
                        operands.mean, operands.var = (self.empty_stats(problem.stats_shape) for _ in range(2))
                    run(problem, operands)
            except self._errors() as error:
                self._explain(error, problem.op, operands.x)
                raise

        return on_device

    def _errors(self) -> tuple[type[BaseException], ...]:
        """Of CUDA. Work that is under way may still fail later, where CuPy next looks."""
        cuda = self._cupy.cuda
        return (
            cuda.compiler.CompileException,
            cuda.driver.CUDADriverError,
            cuda.memory.OutOfMemoryError,
            cuda.runtime.CUDARuntimeError,
        )

    @staticmethod
    def _explain(error: BaseException, what: str, x: Array) -> None:
        error.add_note(f"in normkit, {what} of x: {x.shape} {x.dtype.name}, on the backend 'cupy'")

    def _run_empty(self, problem: Problem, operands: Operands) -> None:
        if problem.statistics == "input" and operands.mean is not None:
            operands.mean[...] = operands.var[...] = nan

    def _run_reference(self, problem: Problem, operands: Operands) -> None:
        y, mean, var = reference.normalize(self._cupy, problem, operands)
        operands.out[...] = y.astype(problem.dtype)
        if problem.statistics == "input" and operands.mean is not None:
            operands.mean[...], operands.var[...] = mean, var

    def _run_moved(self, problem: Problem, operands: Operands) -> None:
        """With the reduced axes moved to the end: then x is rows, though only in a copy."""
        axes = sorted(range(len(problem.shape)), key=lambda a: _place(problem, a))
        moved = replace(
            problem,
            shape=tuple(problem.shape[a] for a in axes),
            axes=tuple(sorted(axes.index(a) for a in problem.axes)),
            affine_axes=tuple(sorted(axes.index(a) for a in problem.affine_axes)),
            strides=(),
        )
        back = [axes.index(a) for a in range(len(axes))]
        x, mean, var = (
            None if a is None else self._cupy.ascontiguousarray(a.transpose(axes))
            for a in (operands.x, operands.mean, operands.var)
        )
        out = self._cupy.empty(moved.shape, problem.dtype)
        self._engine.run(moved, Operands(x, operands.weight, operands.bias, out, mean, var))
        operands.out[...] = out.transpose(back)
        if problem.statistics == "input" and mean is not None and var is not None:
            operands.mean[...], operands.var[...] = mean.transpose(back), var.transpose(back)


def load() -> CupyBackend:
    """The backend, for the registry; an ImportError that says why not if no GPU answers."""
    import cupy

    try:
        cupy.zeros(1) + 1  # an import proves nothing: this asks driver, device, memory and compiler
    except (RuntimeError, MemoryError, OSError, cupy.cuda.compiler.CompileException) as error:
        raise ImportError(f"CuPy {cupy.__version__} is installed, but no GPU can be used: {error}", name="cupy") from error
    return CupyBackend(cupy)


def _same_device(problem: Problem, operands: Operands) -> None:
    x = operands.x
    for name in ("weight", "bias", "out", "mask") + (("mean", "var") if problem.statistics == "given" else ()):
        array = getattr(operands, name)
        if array is not None and array.device != x.device:
            raise InputValueError(
                f"{problem.op}: {name} is on {array.device}, expected {x.device} as x; "
                f"with x.device: {name} = cupy.asarray({name})"
            )


def _place(problem: Problem, axis: int) -> int:
    """Where an axis goes in rows: kept, kept with a weight, reduced with a weight, reduced."""
    affine = axis in problem.affine_axes
    return (3 - affine) if axis in problem.axes else int(affine)


def _dotted(capability: str) -> str:
    return f"{capability[:-1]}.{capability[-1]}"


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"

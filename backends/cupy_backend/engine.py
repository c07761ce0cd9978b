"""From a canonical problem to launches: which kernels, compiled when first used, with which arguments.

Everything goes on CuPy's current stream and nothing waits for it. What CuPy needs of the machine it is handed as a module,
so that a test can hand over a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import gcd, prod
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from normkit.errors import UnsupportedError
from normkit.problem import Array, Columns, Operands, Problem, Rows

from . import launch
from .launch import APPLY, FUSED, MOMENTS, VECTOR_BYTES, Grid

HERE = Path(__file__).parent
SOURCES = ("device.cuh", "common.cuh", "rows.cu", "columns.cu")  # one text, in this order
OPTIONS = ("--std=c++17", "--fmad=false", "-default-device")  # no contraction: the bits are those of the formulas as written
HELD_BYTES = 1 << 16  # of the ones or zeros that a plan holds: there may be a thousand plans
C_TYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "float", "float64": "double"}
POINTERS = Struct("7Q")  # with which RowsCall and ColumnsCall begin, Arrays in common.cuh
MERGED = Struct("3Q")  # MergeCall: moments, mean, var
ROWS, COLUMNS, MERGE = Struct("4q qd qd 4d 2i"), Struct("7q qd 2d 6i"), Struct("5q")  # what follows in each


@lru_cache(maxsize=1)
def source() -> str:
    """The kernels' text."""
    return "".join((HERE / name).read_text(encoding="utf-8") for name in SOURCES)


def specializations(clusters: bool) -> list[str]:
    """Every kernel that a problem can ask for, as C++ names it."""
    names = ["merge"]
    for kind, element in C_TYPES.items():
        for parameter in dict.fromkeys((element, "double" if kind == "float64" else "float")):
            types = f"{element}, {parameter}"
            for ragged in ("false", "true"):
                names += [f"rows<{types}, {held}, {FUSED}, {ragged}>" for held in (1, 2, 4, 8, 16)]
                names += [f"rows<{types}, 8, {MOMENTS}, {ragged}>", f"rows<{types}, 4, {APPLY}, {ragged}>"]
                names += [f"rows_in_{n}<{types}, {launch.MOST_HELD}, {ragged}>" for n in launch.CLUSTERS if clusters]
            for vector in (1, 2, 4, 8)[: {"float64": 2, "float32": 3}.get(kind, 4)]:
                for step in (FUSED, MOMENTS, APPLY):
                    names += [f"columns<{types}, {vector}, {held}, {step}>" for held in launch.COLUMN_HELD[step]]
    return names


class Step(NamedTuple):
    """A launch, less its pointers."""

    kernel: str
    grid: Grid
    constants: bytes
    chunks: int = 1  # of a set of statistics

    @property
    def merges(self) -> bool:
        return self.kernel == "merge"

    def launch(self, function: Callable[..., None], pointers: tuple[int, ...]) -> None:
        """Hand the kernel its one argument, a struct by value, which for CuPy is an array of one element."""
        argument = (MERGED if self.merges else POINTERS).pack(*pointers) + self.constants
        blocks, threads, shared = self.grid
        function((blocks,), (threads,), (np.frombuffer(argument, f"V{len(argument)}"),), shared_mem=shared)


class Parameters(NamedTuple):
    """Weight and bias as the kernels take them: contiguous, of one type."""

    weight: Array
    bias: Array
    kind: str  # in C++


class Engine:
    """Runs problems that have a layout, on operands of one device, which is the current one."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._kernel = lru_cache(maxsize=None)(self._compiled)
        self._clusters = lru_cache(maxsize=None)(self._has_clusters)

    def run(self, problem: Problem, operands: Operands) -> None:
        """Write `out`, and `mean` and `var` if the statistics are those of x and wanted."""
        layout = problem.layout
        assert layout is not None
        device = operands.x.device
        x, out = self._aligned(operands.x, operands.out, layout)
        parameters = self._parameters(problem, operands, layout)
        sets = layout.rows if isinstance(layout, Rows) else layout.outer * layout.lanes
        mean, var, given = self._statistics(problem, operands, sets)
        steps = self._steps(problem, parameters, given, device.id)
        self._launch(steps, x, out, parameters, mean, var, sets, device.id)
        if out is not operands.out:
            operands.out[...] = out

    def replay(self, problem: Problem, operands: Operands, out: Array | None) -> Callable[..., Array | None] | None:
        """A plan: the same launch for other arrays of the same kind, if there is but one and it takes them as they are."""
        layout = problem.layout
        x, arrays = operands.x, (operands.weight, operands.bias)
        if layout is None or problem.statistics == "given" or problem.masked or x.size == 0:
            return None
        if any(a.data.ptr % VECTOR_BYTES or not a.flags.c_contiguous for a in (x, operands.out)):
            return None
        parameters = self._parameters(problem, operands, layout)
        own = (parameters.weight, parameters.bias)
        if any(a is not None and a is not b for a, b in zip(arrays, own, strict=True)):
            return None  # converted, or moved
        instead = [b if a is None else None for a, b in zip(arrays, own, strict=True)]  # a plan keeps none of the caller's
        if any(b is not None and b.nbytes > HELD_BYTES for b in instead):
            return None
        device: int = x.device.id
        sets = layout.rows if isinstance(layout, Rows) else layout.outer * layout.lanes
        (step, *more) = self._steps(problem, parameters, sets, device)
        if more:
            return None
        array, shape, strides, dtype, nbytes = self._cupy.ndarray, x.shape, x.strides, x.dtype, x.nbytes
        current, kernel, launch = self._cupy.cuda.runtime.getDevice, self._kernel(step.kernel, device), step.launch
        kinds = [None if a is None else (a.shape, a.strides, a.dtype, a.nbytes) for a in arrays]
        makes_out = out is None

        def place(a: Any, kind: Any, instead: Any) -> int:
            """Where a weight or bias is, or what stands for one that is not given; -1 if it is of another kind."""
            if kind is None:
                return -1 if a is not None else 0 if instead is None else instead.data.ptr
            fits = type(a) is array and (a.shape, a.strides, a.dtype) == kind[:3] and a.data.device_id == device
            return a.data.ptr if fits and a.data.ptr % VECTOR_BYTES == 0 else -1

        def plan(x: Array, weight: Array, bias: Array, out: Array) -> Array | None:
            if type(x) is not array or x.dtype != dtype or x.shape != shape or x.strides != strides or current() != device:
                return None
            at = x.data.ptr
            weights, biases = place(weight, kinds[0], instead[0]), place(bias, kinds[1], instead[1])
            if weights < 0 or biases < 0 or at % VECTOR_BYTES or x.data.device_id != device or (out is None) is not makes_out:
                return None
            if out is None:
                out = array(shape, dtype)
                to = out.data.ptr
            else:
                if type(out) is not array or out.dtype != dtype or out.shape != shape or out.strides != strides:
                    return None
                to = out.data.ptr
                if to % VECTOR_BYTES or out.data.device_id != device or (to != at and to < at + nbytes and at < to + nbytes):
                    return None
                for a, kind in ((weights, kinds[0]), (biases, kinds[1])):
                    if kind is not None and to < a + kind[3] and a < to + nbytes:
                        return None
            launch(kernel, (at, to, weights, biases, 0, 0, 0))
            return out

        return plan

    def _steps(self, problem: Problem, parameters: Parameters, given: int, device: int) -> list[Step]:
        layout = problem.layout
        kinds = (problem.dtype, parameters.kind, problem.eps, problem.statistics, given)
        if isinstance(layout, Rows):
            if parameters.weight is None and parameters.bias is None:
                layout = layout._replace(runs=1, inner=layout.runs * layout.inner, period=1)
            return _row_steps(layout, self._clusters(device), *kinds)
        assert layout is not None
        return _column_steps(layout, *kinds)

    def _launch(
        self, steps: list[Step], x: Array, out: Array, parameters: Parameters, mean: Array, var: Array, sets: int, device: int
    ) -> None:
        if any(step.grid.blocks > launch.MOST_BLOCKS for step in steps):
            raise UnsupportedError(
                f"x: {x.shape} needs more than {launch.MOST_BLOCKS} blocks in a launch; normalize it in parts"
            )
        moments = None
        if len(steps) > 1:  # moments, merge, apply
            moments = self._cupy.empty((sets, steps[0].chunks, 2), np.float64)
            if mean is None:
                mean, var = (self._cupy.empty(sets, np.float64) for _ in range(2))
        for step in steps:
            arrays = [moments, mean, var]
            if not step.merges:
                arrays = [x, out, parameters.weight, parameters.bias, *arrays[1:], moments]
            step.launch(self._kernel(step.kernel, device), tuple(0 if a is None else a.data.ptr for a in arrays))

    def _aligned(self, x: Array, out: Array, layout: Rows | Columns) -> tuple[Array, Array]:
        """x and out, or other arrays instead, that the kernels can read and write 16 bytes at a time.

        Both contiguous, as far from a 16-byte boundary as each other, and where every row can start with a whole vector.
        """
        itemsize = x.dtype.itemsize
        if isinstance(layout, Rows):
            step = itemsize if layout.runs * layout.inner * itemsize % VECTOR_BYTES else VECTOR_BYTES
        else:
            step = gcd(layout.lanes * launch.folds_of(layout, itemsize) * itemsize, VECTOR_BYTES)
        fits = out.flags.c_contiguous and out.data.ptr % step == 0
        if not x.flags.c_contiguous or x.data.ptr % step or (fits and (x.data.ptr - out.data.ptr) % VECTOR_BYTES):
            x = self._cupy.array(x, order="C")  # a copy; memory from CuPy lies on boundaries
        if not fits or (x.data.ptr - out.data.ptr) % VECTOR_BYTES:
            out = self.empty_like(x)
        return x, out

    def empty_like(self, x: Array) -> Array:
        """An uninitialized array like x, which lies as x does between 16-byte boundaries."""
        offset = x.data.ptr % VECTOR_BYTES
        with x.device:
            if offset == 0 or offset % x.dtype.itemsize or not x.flags.c_contiguous:
                return self._cupy.empty_like(x)
            start = offset // x.dtype.itemsize
            return self._cupy.empty(start + x.size, x.dtype)[start:].reshape(x.shape)

    def _parameters(self, problem: Problem, operands: Operands, layout: Rows | Columns) -> Parameters:
        """One for each run of a row where that is a whole row or a single element, else one for each element."""
        arrays = [operands.weight, operands.bias]
        kinds = {a.dtype.name for a in arrays if a is not None}
        kind = problem.dtype.name
        if not kinds <= {kind}:
            kind = "float64" if kind == "float64" else "float32"
        for n, a in enumerate(arrays):
            if a is None:
                continue
            a = self._cupy.ascontiguousarray(a if a.dtype.name == kind else a.astype(kind))
            if isinstance(layout, Rows) and layout.runs > 1 and layout.inner > 1:
                a = self._cupy.repeat(a.reshape(layout.period, layout.runs), layout.inner, axis=1)
            arrays[n] = a.copy() if a.data.ptr % VECTOR_BYTES else a
        weight, bias = arrays
        if isinstance(layout, Rows) and layout.runs > 1:  # the kernels know both or none of each element
            if weight is None and bias is not None:
                weight = self._cupy.ones_like(bias)
            elif bias is None and weight is not None:
                bias = self._cupy.full_like(weight, -0.0)  # + 0.0 would make 0.0 of -0.0
        return Parameters(weight, bias, C_TYPES[kind])

    def _statistics(self, problem: Problem, operands: Operands, sets: int) -> tuple[Array, Array, int]:
        """mean and var to read or write (None: nobody wants them), and how many there are before they repeat."""
        mean, var = operands.mean, operands.var
        if problem.statistics == "input":
            return mean, var, sets
        shape = problem.stats_shape
        kept = tuple(n if a in problem.affine_axes else 1 for a, n in enumerate(shape))
        repeats = mean.shape == kept and _last_kept(problem)
        if not repeats:
            mean, var = (self._cupy.broadcast_to(s, shape) for s in (mean, var))
        mean, var = (self._cupy.ascontiguousarray(s, np.float64) for s in (mean, var))
        return mean, var, max(1, int(mean.size))

    def _compiled(self, name: str, device: int) -> Callable[..., None]:
        options = (*OPTIONS, "-DCLUSTERS") if self._clusters(device) else OPTIONS
        module = self._cupy.RawModule(code=source(), options=options, name_expressions=(name,))
        function = module.get_function(name)
        result: Callable[..., None] = getattr(function, "kernel", function)  # what a RawKernel looks for in every call
        return result

    def _has_clusters(self, device: int) -> bool:
        return int(self._cupy.cuda.Device(device).compute_capability) >= 90


@lru_cache(maxsize=1024)
def _row_steps(
    layout: Rows, clusters: bool, dtype: np.dtype[Any], parameter: str, eps: float, statistics: str, given: int
) -> list[Step]:
    length = layout.runs * layout.inner
    runs = 1 if layout.runs == 1 else length  # weights of a row
    ragged = bool(length * dtype.itemsize % VECTOR_BYTES)

    def step(name: str, cut: launch.RowCut, *arguments: int) -> Step:
        last = length - (cut.chunks - 1) * cut.chunk
        constants = ROWS.pack(
            layout.rows, length, cut.chunk, runs, *_divisor(layout.period), *_divisor(given),
            eps, 1 / cut.chunk, 1 / last, 1 / length, cut.chunks, cut.group.bit_length() - 1,
        )  # fmt: skip
        kernel = _name(name, C_TYPES[dtype.name], parameter, cut.held, *arguments, "true" if ragged else "false")
        return Step(kernel, launch.row_grid(layout.rows, cut, dtype.itemsize, ragged), constants, cut.chunks)

    cut = launch.cut_apply(length, dtype.itemsize)
    apply = step("rows", cut, APPLY)
    if statistics == "given":
        return [apply]
    whole = launch.cut_row(length, dtype.itemsize, clusters)
    if whole is not None:
        return [step(f"rows_in_{whole.chunks}", whole) if whole.clustered else step("rows", whole, FUSED)]
    cut = launch.cut_moments(length, dtype.itemsize)
    return [step("rows", cut, MOMENTS), _merge_step(layout.rows, cut.chunks, cut.chunk, length), apply]


@lru_cache(maxsize=1024)
def _column_steps(layout: Columns, dtype: np.dtype[Any], parameter: str, eps: float, statistics: str, given: int) -> list[Step]:
    outer, length, unfolded, affine = layout
    folds = launch.folds_of(layout, dtype.itemsize)
    length, lanes = length // folds, unfolded * folds

    def step(what: int, cut: launch.ColumnCut) -> Step:
        sizes = (outer, length, lanes, unfolded, cut.chunk, cut.chunks, cut.tiles)
        flags = (cut.width, cut.height, cut.depth, cut.parts, folds, affine == "length")
        kernel = _name("columns", C_TYPES[dtype.name], parameter, cut.vector, cut.held, what)
        constants = COLUMNS.pack(*sizes, *_divisor(given), eps, 1 / cut.chunk, *flags)
        return Step(kernel, launch.column_grid(outer, cut, dtype.itemsize), constants, cut.chunks * folds)

    apply = step(APPLY, launch.cut_column_chunks(outer, length, lanes, dtype.itemsize, APPLY))
    if statistics == "given":
        return [apply]
    whole = launch.cut_columns(outer, length, lanes, dtype.itemsize) if folds == 1 else None
    if whole is not None:
        return [step(FUSED, whole)]
    cut = launch.cut_column_chunks(outer, length, lanes, dtype.itemsize, MOMENTS)
    moments = step(MOMENTS, cut)
    return [moments, _merge_step(outer * unfolded, moments.chunks, cut.chunk, length, folds), apply]


def _name(kernel: str, *arguments: object) -> str:
    return f"{kernel}<{', '.join(map(str, arguments))}>"


def _merge_step(sets: int, chunks: int, chunk: int, length: int, folds: int = 1) -> Step:
    constants = MERGE.pack(sets, chunks, chunk, length, folds.bit_length() - 1)
    return Step("merge", launch.merge_grid(sets), constants, chunks)


def _divisor(n: int) -> tuple[int, float]:
    return n, 1 / max(n, 1)


def _last_kept(problem: Problem) -> bool:
    """Whether statistics of the affine axes alone repeat one after the other over all sets."""
    kept = [a for a, n in enumerate(problem.stats_shape) if n > 1]
    affine = [a for a in kept if a in problem.affine_axes]
    return prod(problem.stats_shape) > 0 and kept[len(kept) - len(affine) :] == affine

"""`normkit bench --gpu`: kernels timed with CUDA events, against a device copy and the frameworks that are installed.

Before each timed call the L2 cache is overwritten and the output poisoned, while the queue is kept busy, so that neither the
cache nor the launch is part of a time. Every result is checked against float64 first. Launches are timed apart, on an
array that costs nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from math import prod
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

ROWS = [(32768, 1024), (16384, 4096), (8192, 8192), (4096, 65536), (32768, 1000), (32768, 1001)]
VOLUMES = [(64, 256, 128, 128), (2, 32, 128, 128, 128)]
LAST = [(64, 32, 32, 128), (64, 56, 56, 96), (64, 128, 128, 256)]  # channels-last
OVER_CHANNELS = [(64, 256, 56, 56), (32, 768, 14, 14), (64, 128, 128, 256)]  # layer_norm of channels-first
DTYPES = ("bfloat16", "float16", "float32")
REPEATS = 31
EPS = 1e-5
TOLERANCE = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2e-6}  # relative above 1, absolute below


class Case(NamedTuple):
    """An op on an array: layer_norm over one axis, or instance_norm with the channels on that axis."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    axis: int

    @property
    def nbytes(self) -> int:
        """Read and written."""
        return 2 * prod(self.shape) * (4 if self.dtype == "float32" else 2)

    @property
    def affine(self) -> int:
        """Elements of weight and of bias."""
        return self.shape[self.axis]

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes of a set of statistics."""
        own = self.axis % len(self.shape)
        return (own,) if self.op == "layer_norm" else tuple(a for a in range(1, len(self.shape)) if a != own)

    @property
    def rows(self) -> bool:
        """Whether a set of statistics is a row, neighbours in memory."""
        return self.reduced[-1] == len(self.shape) - 1

    def __str__(self) -> str:
        return f"{self.op}/{'x'.join(map(str, self.shape))}/{'' if self.rows else f'axis{self.axis}/'}{self.dtype}"


class Score(NamedTuple):
    """What a contender did: seconds on the device, and the largest error."""

    contender: str
    seconds: float
    error: float


class Contender(NamedTuple):
    """`prepare` takes cupy, a case, and x, weight, bias and out on the device; the call it returns writes what it returns.

    Some know rows alone.
    """

    name: str
    needs: tuple[str, ...]
    prepare: Callable[..., Callable[[], Any]]
    rows_alone: bool = False


CASES = [
    Case(op, shape, dtype, axis)
    for op, axis, shapes in (
        ("layer_norm", -1, ROWS),
        ("instance_norm", 1, VOLUMES),
        ("instance_norm", -1, LAST),
        ("layer_norm", 1, OVER_CHANNELS),
    )
    for shape in shapes
    for dtype in DTYPES
]


def _copy(cupy: Any, case: Case, x: Any, weight: Any, bias: Any, out: Any) -> Callable[[], Any]:
    def run() -> Any:
        out.data.copy_from_device_async(x.data, x.nbytes, cupy.cuda.get_current_stream())
        return out

    return run


def _normkit(cupy: Any, case: Case, x: Any, weight: Any, bias: Any, out: Any) -> Callable[[], Any]:
    import normkit as nk

    op = getattr(nk, case.op)
    axis = {"axis" if case.op == "layer_norm" else "channel_axis": case.axis}
    return lambda: op(x, weight=weight, bias=bias, eps=EPS, out=out, **axis)


def _torch(cupy: Any, case: Case, x: Any, weight: Any, bias: Any, out: Any) -> Callable[[], Any]:
    import torch

    x, weight, bias = (_to_torch(torch, a) for a in (x, weight, bias))
    functional = torch.nn.functional
    if case.op == "layer_norm":
        shape = (case.affine,)
        return lambda: functional.layer_norm(x.movedim(case.axis, -1), shape, weight, bias, EPS).movedim(-1, case.axis)
    return lambda: functional.instance_norm(x.movedim(case.axis, 1), weight=weight, bias=bias, eps=EPS).movedim(1, case.axis)


def _compiled(cupy: Any, case: Case, x: Any, weight: Any, bias: Any, out: Any) -> Callable[[], Any]:
    import torch

    compiled: Callable[[], Any] = torch.compile(_torch(cupy, case, x, weight, bias, out), dynamic=False)
    return compiled


def _triton(cupy: Any, case: Case, x: Any, weight: Any, bias: Any, out: Any) -> Callable[[], Any]:
    import torch

    from .gpu_triton import normalize

    x, weight, bias = (_to_torch(torch, a) for a in (x, weight, bias))
    return lambda: normalize(x, weight, bias, case.op == "layer_norm", EPS)


CONTENDERS = [
    Contender("copy", (), _copy),
    Contender("normkit", (), _normkit),
    Contender("torch", ("torch",), _torch),
    Contender("torch.compile", ("torch", "triton"), _compiled),
    Contender("triton", ("torch", "triton"), _triton, rows_alone=True),
]


def _to_torch(torch: Any, a: Any) -> Any:
    """The same memory as a tensor; bfloat16 by way of its bits, which every DLPack knows."""
    if a.dtype.name != "bfloat16":
        return torch.from_dlpack(a)
    return torch.from_dlpack(a.view(np.int16)).view(torch.bfloat16)


def _bits(a: Any) -> Any:
    """A contender's result as a CuPy array."""
    import cupy

    if isinstance(a, cupy.ndarray):
        return a
    import torch

    if a.dtype != torch.bfloat16:
        return cupy.from_dlpack(a)
    import ml_dtypes

    return cupy.from_dlpack(a.view(torch.int16)).view(ml_dtypes.bfloat16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--gpu", action="store_true", help="measure the CuPy backend on this machine's GPU instead")


def main(case: list[str] | None = None, only: str | None = None) -> int:
    """Measure and print. Returns the exit code; without a usable GPU, says why and returns 2."""
    import normkit as nk

    try:
        backend = nk.get_backend("cupy")
    except nk.NoBackendError as error:
        print(f"normkit bench --gpu: {error}")
        return 2
    import cupy

    print("\n".join(f"{what}: {text}" for what, text in backend.describe().items()))
    names = None if only is None else only.split(",")
    present = [c for c in CONTENDERS if all(map(find_spec, c.needs)) and (names is None or c.name in names)]
    chosen = [c for c in CASES if not case or any(part in str(c) for part in case)]
    for c in present:
        print(f"launch, {c.name}: {launch_seconds(cupy, c) * 1e6:.1f} us a call")
    print(f"{'case':<48}{'contender':<15}{'us':>10}{'TB/s':>8}{'of copy':>9}{'error':>10}")
    for one in chosen:
        scores = list(play(cupy, one, present))
        copy = next((s.seconds for s in scores if s.contender == "copy"), float("nan"))
        for s in scores:
            speed = one.nbytes / s.seconds / 1e12
            print(f"{one!s:<48}{s.contender:<15}{s.seconds * 1e6:10.1f}{speed:8.2f}{copy / s.seconds:9.2f}{s.error:10.1e}")
    return 0


def play(cupy: Any, case: Case, contenders: list[Contender]) -> Iterator[Score]:
    """Check and time each contender on one case."""
    x, weight, bias = inputs(cupy, case)
    out = cupy.empty_like(x)
    flush = cupy.empty(max(1, 4 * int(cupy.cuda.Device().attributes["L2CacheSize"])), cupy.uint8)
    for contender in contenders:
        if contender.rows_alone and not case.rows:
            continue
        run = contender.prepare(cupy, case, x, weight, bias, out)
        _poison(out)
        y = run()
        error = 0.0 if contender.name == "copy" else largest_error(cupy, case, x, weight, bias, _bits(y))
        if contender.name == "normkit" and not error <= TOLERANCE[case.dtype]:
            raise ArithmeticError(f"{case}: wrong by {error}, where NaN is what was not written")
        yield Score(contender.name, seconds(cupy, run, out, flush), error)


def inputs(cupy: Any, case: Case) -> tuple[Any, Any, Any]:
    """x, weight and bias on the device, of the case's dtype."""
    random = cupy.random.RandomState(0)
    dtype = _dtype(case.dtype)
    x = cupy.empty(case.shape, dtype)
    for part in x.reshape(case.shape[0], -1):  # in parts: float32 of it all need not fit
        part[...] = random.standard_normal(part.shape, dtype=cupy.float32).astype(dtype)
    weight, bias = (random.standard_normal(case.affine, dtype=cupy.float32).astype(dtype) for _ in range(2))
    return x, weight, bias


def largest_error(cupy: Any, case: Case, x: Any, weight: Any, bias: Any, y: Any) -> float:
    """Against float64, relative above 1 and absolute below; NaN if any of it is."""
    worst = 0.0
    affine = tuple(-1 if a == case.axis % len(case.shape) else 1 for a in range(len(case.shape)))
    weight, bias = (a.astype(np.float64).reshape(affine) for a in (weight, bias))
    axes = case.reduced
    step = max(1, case.shape[0] // 64)
    for first in range(0, case.shape[0], step):
        wide = x[first : first + step].astype(np.float64)
        wide -= wide.mean(axis=axes, keepdims=True)
        wide /= cupy.sqrt(cupy.square(wide).mean(axis=axes, keepdims=True) + EPS)
        wide = wide * weight + bias
        off = cupy.abs(y[first : first + step].astype(np.float64) - wide) / cupy.maximum(cupy.abs(wide), 1)
        worst = float(np.maximum(worst, float(off.max())))
    return worst


def seconds(cupy: Any, run: Callable[[], Any], out: Any, flush: Any, repeats: int = REPEATS) -> float:
    """The median time of a call on the device, its input in no cache and its output poisoned."""
    times: list[float] = []
    for n in range(repeats + 3):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        _poison(out)
        flush.fill(n % 255)  # keeps the device busy while the call is queued
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) * 1e-3)
    return median(times[3:])


def launch_seconds(cupy: Any, contender: Contender, calls: int = 1000) -> float:
    """What a call costs the CPU, on a row that costs the device next to nothing."""
    case = Case("layer_norm", (1, 1024), "float32", -1)
    x, weight, bias = inputs(cupy, case)
    run = contender.prepare(cupy, case, x, weight, bias, cupy.empty_like(x))
    best = float("inf")
    for _ in range(5):
        cupy.cuda.get_current_stream().synchronize()
        start = perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (perf_counter() - start) / calls)
    return best


def _poison(out: Any) -> None:
    out.data.memset_async(0xFF, out.nbytes)  # NaN in every floating dtype


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)

"""The floor under every time: the fastest copy of the same bytes that this machine makes, on all its cores.

Beyond the caches that is a copy whose stores bypass them (no read for ownership); within them, plain stores or one memcpy.
This file imports nothing of normkit: asv loads it beside whichever revision is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LINE = 64  # bytes: one cache line, two stores of 8 float32


def aligned_empty(nbytes: int) -> Array:
    """Uninitialized float32 storage of nbytes, rounded up to a line, that starts on a line."""
    lines = -(-nbytes // LINE) + 1
    raw = np.empty(lines * LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + (lines - 1) * LINE].view(np.float32)


def fastest_copy(x: Array) -> tuple[str, Callable[[], Array]]:
    """The quickest of the ways to copy x into a ready buffer, found by trying, and its name."""
    source, target = aligned_empty(x.nbytes), aligned_empty(x.nbytes)
    source.view(np.uint8)[: x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    target[...] = 0
    plain, streaming = compiled_copies()
    ways = {"memcpy": np.copyto, "plain stores": plain, "streaming stores": streaming}
    for copy in ways.values():
        copy(target, source)  # compiles
    rounds = [{way: _usual_time(copy, target, source) for way, copy in ways.items()} for _ in range(3)]
    name = min(ways, key=lambda way: min(times[way] for times in rounds))
    result = target.view(np.uint8)[: x.nbytes].view(x.dtype).reshape(x.shape)

    def run() -> Array:
        ways[name](target, source)
        return result

    return name, run


def _usual_time(copy: Callable[[Array, Array], None], target: Array, source: Array) -> float:
    times: list[float] = []
    deadline = perf_counter() + 0.05
    while perf_counter() < deadline or len(times) < 3:
        start = perf_counter()
        copy(target, source)
        times.append(perf_counter() - start)
    return median(times)


@lru_cache(maxsize=1)
def compiled_copies() -> tuple[Callable[[Array, Array], None], Callable[[Array, Array], None]]:
    """copy(target, source) on all cores, with plain and with streaming stores; both arrays from `aligned_empty`."""
    import numba

    streamed = _streaming_line()

    @numba.njit(parallel=True)
    def plain(target: Array, source: Array) -> None:
        size = (len(target) // numba.get_num_threads() + LINE) // LINE * LINE
        for part in numba.prange((len(target) + size - 1) // size):
            start = part * size
            target[start : start + size] = source[start : start + size]

    @numba.njit(parallel=True)
    def streaming(target: Any, source: Any) -> None:
        size = (len(target) // numba.get_num_threads() + LINE) // LINE * LINE
        for part in numba.prange((len(target) + size - 1) // size):
            start: Any = np.intp(part) * size  # prange counts unsigned
            for i in range(start, min(start + size, len(target)), 16):
                streamed(target, source, i)

    return plain, streaming


def _streaming_line() -> Any:
    """copy_line(target, source, i): sixteen float32 from i on, with stores that do not enter the cache."""
    from llvmlite import ir
    from numba.core import types
    from numba.core.extending import intrinsic

    eight = ir.VectorType(ir.FloatType(), 8)

    @intrinsic
    def copy_line(typing: Any, target: Any, source: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = zip(signature.args[:2], arguments[:2], strict=True)
            to, of = (context.make_array(kind)(context, builder, value).data for kind, value in arrays)
            for offset in (0, 8):
                place = builder.add(arguments[2], ir.Constant(arguments[2].type, offset))
                from_, into = (builder.bitcast(builder.gep(p, [place]), eight.as_pointer()) for p in (of, to))
                store = builder.store(builder.load(from_, align=32), into, align=32)
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return types.void(target, source, index), generate

    return copy_line

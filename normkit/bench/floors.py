"""The floor under every time: the fastest copy of the same bytes that this machine makes, on all its cores.

Beyond the caches that is a copy whose stores bypass them (no read for ownership); within them, plain stores or one memcpy.
Some layouts forbid such a copy: rows with gaps, and channels-last, of which an image is read before any of it can be written.
For these there is a floor of their own, without any arithmetic.
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
FETCHED = 1024  # float32 that a copy is ahead of itself, where that is quickest
LINE = 64  # bytes: one cache line, two stores of 8 float32
BACK = 1024  # lines that are copied forwards where a copy goes backwards


def aligned_empty(nbytes: int) -> Array:
    """Uninitialized float32 storage of nbytes, rounded up to a line, that starts on a line."""
    lines = -(-nbytes // LINE) + 1
    raw = np.empty(lines * LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + (lines - 1) * LINE].view(np.float32)


def aligned_copy(x: Array) -> Array:
    """The bytes of x in storage that starts on a line."""
    copy = aligned_empty(x.nbytes)
    copy.view(np.uint8)[: x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return copy


def _ready(x: Array) -> tuple[Array, Array]:
    """Storage for a copy of x, whose pages are there, and the copy as an array like x."""
    target = aligned_empty(x.nbytes)
    target[...] = 0
    return target, target.view(np.uint8)[: x.nbytes].view(x.dtype).reshape(x.shape)


def fastest_copy(x: Array) -> tuple[str, Callable[[Array], Array]]:
    """The quickest of the ways to copy into a ready buffer what `aligned_copy` made of x, found by trying, and its name."""
    source, (target, result) = aligned_copy(x), _ready(x)
    ways = {"memcpy": np.copyto, **compiled_copies()}
    for copy in ways.values():
        copy(target, source)  # compiles
    rounds = [{way: _usual_time(copy, target, source) for way, copy in ways.items()} for _ in range(3)]
    name = min(ways, key=lambda way: min(times[way] for times in rounds))

    def run(source: Array) -> Array:
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


def copy_of_rows(x: Array) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """(own, run): copies of the items of x along axis 0, whole cache lines each, which lie apart in what `own` makes of x."""
    size, step = x[0].nbytes // 4, x.strides[0] // 4
    target, result = _ready(x)

    def own(x: Array) -> Array:
        base = aligned_empty(len(x) * step * 4)
        rows = base.reshape(len(x), step)[:, :size].view(x.dtype)
        rows[...] = x.reshape(len(x), -1)
        return base

    def run(source: Array) -> Array:
        compiled_layouts()["rows"](target, source, size, step)
        return result

    return own, run


def read_then_copy(x: Array) -> Callable[[Array], Array]:
    """A copy of what `aligned_copy` made of x: each item along axis 0 is read, then copied."""
    target, result = _ready(x)

    def run(source: Array) -> Array:
        compiled_layouts()["twice"](target, source, source.view(np.int64), len(x))
        return result

    return run


@lru_cache(maxsize=1)
def compiled_layouts() -> dict[str, Callable[..., None]]:
    """What `copy_of_rows` and `read_then_copy` run, on all cores."""
    import numba

    copy_line = _streaming_line(0)

    @numba.njit(parallel=True)
    def rows(target: Any, source: Any, size: int, step: int) -> None:
        threads, n = numba.get_num_threads(), len(target) // size
        for part in numba.prange(threads):
            for row in range(n * part // threads, n * (part + 1) // threads):
                for i in range(0, size, 16):
                    copy_line(target, row * size + i, source, row * step + i)

    @numba.njit(parallel=True)
    def twice(target: Any, source: Any, words: Any, items: int) -> None:
        threads, lines = numba.get_num_threads(), len(target) // 16
        size, seen = lines // items, np.zeros(threads * LINE, np.int64)
        for part in numba.prange(threads):
            for item in range(items):
                first, last = item * size + size * part // threads, item * size + size * (part + 1) // threads
                total = 0
                for word in words[first * 8 : last * 8]:
                    total += word  # integers, which may be added in any order: in vectors
                seen[part * LINE] += total
                for end in range(last, first, -BACK):  # backwards, so that what was read last is still in cache
                    for i in range(max(end - BACK, first), end):
                        copy_line(target, i * 16, source, i * 16)

    return {"rows": rows, "twice": twice}


@lru_cache(maxsize=1)
def compiled_copies() -> dict[str, Callable[[Array, Array], None]]:
    """copy(target, source) on all cores, by the kind of stores and loads; both arrays from `aligned_empty`."""
    import numba

    @numba.njit(parallel=True)
    def plain(target: Array, source: Array) -> None:
        size = (len(target) // numba.get_num_threads() + LINE) // LINE * LINE
        for part in numba.prange((len(target) + size - 1) // size):
            start = part * size
            target[start : start + size] = source[start : start + size]

    def streaming(copy_line: Any) -> Any:
        @numba.njit(parallel=True)
        def copy(target: Any, source: Any) -> None:
            size = (len(target) // numba.get_num_threads() + LINE) // LINE * LINE
            for part in numba.prange((len(target) + size - 1) // size):
                start: Any = np.intp(part) * size  # prange counts unsigned
                for i in range(start, min(start + size, len(target)), 16):
                    copy_line(target, i, source, i)

        return copy

    return {
        "plain stores": plain,
        "streaming stores": streaming(_streaming_line(0)),
        "streaming stores, fetched ahead": streaming(_streaming_line(FETCHED)),
    }


def _streaming_line(ahead: int) -> Any:
    """copy_line(target, to, source, at): sixteen float32 from `at` on, with stores that do not enter the cache.

    What lies so many float32 ahead in the source, if not 0, is fetched into L2.
    """
    from llvmlite import ir
    from numba.core import types
    from numba.core.cgutils import get_or_insert_function
    from numba.core.extending import intrinsic

    eight = ir.VectorType(ir.FloatType(), 8)

    @intrinsic
    def copy_line(typing: Any, target: Any, to: Any, source: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = zip(signature.args[::2], arguments[::2], arguments[1::2], strict=True)
            places = [(context.make_array(kind)(context, builder, value).data, index) for kind, value, index in arrays]
            for offset in (0, 8):
                pointers = (builder.gep(p, [builder.add(i, ir.Constant(i.type, offset))]) for p, i in places)
                into, from_ = (builder.bitcast(p, eight.as_pointer()) for p in pointers)
                store = builder.store(builder.load(from_, align=32), into, align=32)
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            if ahead:
                data, index = places[1]
                place = builder.add(index, ir.Constant(index.type, ahead))
                line = builder.bitcast(builder.gep(data, [place]), ir.IntType(8).as_pointer())
                kinds = [ir.Constant(ir.IntType(32), n) for n in (0, 2, 1)]
                prefetch = ir.FunctionType(ir.VoidType(), [line.type, *(kind.type for kind in kinds)])
                function = get_or_insert_function(builder.module, prefetch, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
                builder.call(function, [line, *kinds])
            return context.get_dummy_value()

        return types.void(target, types.intp, source, types.intp), generate

    return copy_line

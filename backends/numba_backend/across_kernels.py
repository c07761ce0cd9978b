"""Short rows to an `out` that begins within a cache line: of the vectors that can be streamed, some lie across two rows."""

from __future__ import annotations

from typing import Any

from .kernels import affine, inline
from .memory import element, load, load_first, prefetch, store, store_first, stream
from .simd import WIDTH, fma, joined, one_by_one, splat

ENDS = 4 * WIDTH  # in factors, from here on: the last and first vector of weight, then of bias, as they follow each other


@inline
def factors_in(factors: Any, i: int, compute: Any) -> Any:
    """The factors of one row, in all lanes."""
    center, scale = splat(element(factors, i), compute), splat(element(factors, WIDTH + i), compute)
    return center, scale, splat(element(factors, 2 * WIDTH + i), compute), splat(element(factors, 3 * WIDTH + i), compute)


@inline
def rows_across(
    x: Any, xi: int, out: Any, oi: int, weight: Any, bias: Any, n: int, per_element: bool, rows: int, factors: Any, step: int,
    head: int, ahead: int, compute: Any,
) -> None:  # fmt: skip
    """Normalize rows that lie end to end, by fours, streamed from `head` on: a vector across two has the factors of both."""
    rest = WIDTH - head
    if per_element:
        store(factors, ENDS, load(weight, n - WIDTH, compute))
        store(factors, ENDS + WIDTH, load(weight, 0, compute))
        store(factors, ENDS + 2 * WIDTH, load(bias, n - WIDTH, compute))
        store(factors, ENDS + 3 * WIDTH, load(bias, 0, compute))
    for i, j, k in ((0, 0, head), (rows - 1, n - rest, rest)):
        y = affine(x, load_first(x, xi + i * n + j, k, compute), factors_in(factors, i, compute))
        if per_element:
            y = fma(y, load_first(weight, j, k, compute), load_first(bias, j, k, compute))
        store_first(out, oi + i * n + j, k, y)
    w, o = splat(1.0, compute), splat(0.0, compute)
    for q in range(0, rows, 4):
        one_by_one()
        i = q if step > 0 else rows - 4 - q
        at, to = xi + i * n, oi + i * n
        f0, f1 = factors_in(factors, i, compute), factors_in(factors, i + 1, compute)
        f2, f3 = factors_in(factors, i + 2, compute), factors_in(factors, i + 3, compute)
        j = head if step > 0 else n - WIDTH - rest
        for _ in range(n // WIDTH - 1):
            one_by_one()
            if per_element:
                w, o = load(weight, j, compute), load(bias, j, compute)
            four_streamed(x, at + j, out, to + j, n, True, w, o, per_element, f0, f1, f2, f3, ahead, compute)
            j += WIDTH * step
        if per_element:
            w, o = load(factors, ENDS + head, compute), load(factors, ENDS + 2 * WIDTH + head, compute)
        j = n - rest
        f4 = factors_in(factors, min(i + 4, rows - 1), compute)
        f0, f1, f2, f3 = both(f0, f1, rest), both(f1, f2, rest), both(f2, f3, rest), both(f3, f4, rest)
        four_streamed(x, at + j, out, to + j, n, i + 4 < rows, w, o, per_element, f0, f1, f2, f3, ahead, compute)


@inline
def four_streamed(
    x: Any, xi: int, out: Any, oi: int, n: int, all_four: bool, w: Any, o: Any, per_element: bool, f0: Any, f1: Any, f2: Any,
    f3: Any, ahead: int, compute: Any,
) -> None:  # fmt: skip
    """Normalize a vector of each of four rows that lie n apart, or of the first three."""
    a, b = affine(x, load(x, xi, compute), f0), affine(x, load(x, xi + n, compute), f1)
    c = affine(x, load(x, xi + 2 * n, compute), f2)
    if per_element:
        a, b, c = fma(a, w, o), fma(b, w, o), fma(c, w, o)
    prefetch(x, xi, ahead)
    prefetch(x, xi + n, ahead)
    prefetch(x, xi + 2 * n, ahead)
    stream(out, oi, a)
    stream(out, oi + n, b)
    stream(out, oi + 2 * n, c)
    if all_four:
        d = affine(x, load(x, xi + 3 * n, compute), f3)
        if per_element:
            d = fma(d, w, o)
        prefetch(x, xi + 3 * n, ahead)
        stream(out, oi + 3 * n, d)


@inline
def both(f: Any, g: Any, k: int) -> Any:
    """Factors of k elements of a row, and of the next row's."""
    return joined(f[0], g[0], k), joined(f[1], g[1], k), joined(f[2], g[2], k), joined(f[3], g[3], k)

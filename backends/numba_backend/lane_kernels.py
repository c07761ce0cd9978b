"""Sixteen sets at once, one in each lane of a vector: of sets with few elements, nothing is done set by set.

A column of few elements, or a row of three colours, costs little but what is done once for each set. So the elements of 16
sets are loaded element by element, neighbours or a step apart, and whatever a set needs is computed in its lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernels import LEAST_SCALE, MOST_SCALE, MOST_WEIGHT, affine, doubtful, inline, too_close
from .memory import element, load, load_apart, store_apart
from .moments import nearness
from .simd import WIDTH, above, any_of, cast, fma, is_double, itemsize, magnitude, one_by_one, pick, roots, splat

FEW = 8  # elements of a row, up to which it pays to load and store them one by one
SHORT = 32  # elements of a column, up to which it pays to keep no sums: more are more places of memory than are fetched ahead


@inline
def elements(x: Any, i: int, step: int, compute: Any) -> Any:
    """One element of each set, which are a step apart."""
    return load(x, i, compute) if step == 1 else load_apart(x, i, step, compute)


@inline
def one_lane(x: Any, at: int, step: int, k_step: int, k: int, n: int, shift: Any, few: bool) -> Any:
    """Sums and squares of elements k, k + 16, ... of each set: those of lane k of a row."""
    d = elements(x, at + k * k_step, step, np.float64) - shift
    s, q = d + splat(0.0, np.float64), d * d
    if not few:
        for i in range(k + WIDTH, n, WIDTH):
            one_by_one()
            d = elements(x, at + i * k_step, step, np.float64) - shift
            s, q = s + d, fma(d, d, q)
    return s, q


@inline
def lane_sums(x: Any, at: int, step: int, k_step: int, n: int, shift: Any, few: bool) -> Any:
    """`total` of the sums and the squares of x - shift, of n elements of each set that are `k_step` apart.

    The lanes of a row are added onto each other by halves, down to one. `few` is a constant: whether there are at most FEW.
    """
    s = q = zero = splat(0.0, np.float64)
    for one in range(min(n, 2)):
        s2 = q2 = zero
        for two in range(one, min(n, 4), 2):
            s4 = q4 = zero
            for k in range(two, min(n, 8), 4):
                one_by_one()
                s8, q8 = one_lane(x, at, step, k_step, k, n, shift, few)
                if not few and k + 8 < n:
                    more_s, more_q = one_lane(x, at, step, k_step, k + 8, n, shift, few)
                    s8, q8 = s8 + more_s, q8 + more_q
                s4, q4 = s4 + s8, q4 + q8
            s2, q2 = s2 + s4, q2 + q4
        s, q = s + s2, q + q2
    return s, q


@inline
def lane_moments(x: Any, at: int, step: int, k_step: int, n: int, few: bool) -> Any:
    """(first element, mean - first, M2) of WIDTH sets, as `block_moments` takes them of one."""
    zero, count, share = splat(0.0, np.float64), splat(float(n), np.float64), splat(1.0 / n, np.float64)
    first = elements(x, at, step, np.float64)
    shift = first if is_double(x) else zero
    delta = m2 = zero
    for sweep in range(2):
        s, q = lane_sums(x, at, step, k_step, n, shift, few)
        delta = s * share
        m2 = q - s * delta
        far = above(delta * delta * count, m2 * splat(nearness(x), np.float64))
        if sweep > 0 or not any_of(far):
            break
        shift = pick(far, shift + delta if is_double(x) else first, shift)
    return first, (shift - first) + delta, pick(above(zero, m2), zero, m2)


@inline
def lane_factors(x: Any, origin: Any, mean: Any, var: Any, n: int, eps: float, a: Any, b: Any) -> Any:
    """`factors_of` for WIDTH sets of weight a and bias b; first, 1 where they will do: of others they may not be those."""
    one, zero = splat(1.0, np.float64), splat(0.0, np.float64)
    biased = var + splat(eps, np.float64)
    scale = one / roots(biased) * a
    center = origin + mean
    center = pick(above(center * center, var), center, zero)
    spread = var * splat(float(n), np.float64) + center * splat(1e16, np.float64) * center
    if not is_double(x):
        center = cast(cast(center, np.float32), np.float64)
    below = scale
    if is_double(x):
        below = scale * splat(1.0 - 2.0**-52, np.float64)
    elif itemsize(x) > 2:
        below = cast(cast(scale * splat(1.0 - 2.0**-24, np.float64), np.float32), np.float64)
    missing = (origin - center) + mean
    offset, size = pick(missing, b - missing * scale, b), magnitude(scale)
    least, most, far = (LEAST_SCALE, MOST_SCALE, np.inf) if is_double(x) else (1e-30, 1e30, 1e38)
    fits = pick(a, above(size, splat(least, np.float64)) * above(splat(most, np.float64), size), one) * above(biased, zero)
    fits = fits * above(splat(far, np.float64), magnitude(offset))
    if is_double(x):
        fits = fits * above(splat(MOST_WEIGHT, np.float64), magnitude(a))
    else:
        fits = fits * above(splat(1e76, np.float64), spread)
    return fits, center, below, scale - below, offset


@inline
def factors_at(array: Any, at: int, field: int, compute: Any) -> Any:
    """(center, scale, rest, offset) of WIDTH sets, as `kernels.affine` takes them; each is a field of the array."""
    center, scale = load(array, at, compute), load(array, at + field, compute)
    return center, scale, load(array, at + 2 * field, compute), load(array, at + 3 * field, compute)


@inline
def apply_in_lanes(
    x: Any, xi: int, out: Any, oi: int, x_step: int, out_step: int, n: int, weight: Any, bias: Any, per_element: bool,
    factors: Any, wide: Any, compute: Any,
) -> None:  # fmt: skip
    """Normalize WIDTH rows of n elements, a step apart, with the `factors` of each in its lane; `wide` are those of float64."""
    own = factors_at(factors, 0, WIDTH, compute)
    for k in range(n):
        one_by_one()
        a, b = (element(weight, k), element(bias, k)) if per_element else (1.0, 0.0)
        y = affine(x, load_apart(x, xi + k, x_step, compute), own)
        if per_element:
            y = fma(y, splat(a, compute), splat(b, compute))
        if itemsize(x) == 2:
            again = doubtful(y, too_close(x, cast(own[3], np.float32), splat(a, np.float32), splat(b, np.float32)))
            if any_of(again):
                y64 = in_double(x, xi + k, x_step, wide, a, b, per_element)
                y = pick(cast(again, compute), cast(y64, compute), y)
        store_apart(out, oi + k, out_step, y)


@inline
def in_double(x: Any, xi: int, step: int, wide: Any, a: float, b: float, per_element: bool) -> Any:
    """An element of each of WIDTH rows, normalized in float64."""
    y = affine(x, load_apart(x, xi, step, np.float64), factors_at(wide, 0, WIDTH, np.float64))
    return fma(y, splat(a, np.float64), splat(b, np.float64)) if per_element else y

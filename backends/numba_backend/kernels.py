"""What the kernels are made of, with `moments`: what stands where in `shape`, and apply to a run.

Every array is C-contiguous or a set of contiguous rows; `element indices` count from its data pointer. No kernel raises,
allocates or checks: all of that has been done before. Sizes travel in `shape`, an int64 array.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .inlined import inline
from .memory import address, element, load, load_first, prefetch, store, store_first, store_normal, stream
from .simd import (
    WIDTH,
    above,
    any_of,
    cast,
    fma,
    forwards_from_memory,
    is_bfloat16,
    is_double,
    itemsize,
    magnitude,
    one_by_one,
    pick,
    root,
    splat,
)

# To a term of it: at most so much of its digits is left where float32 is not exact enough to round to within one unit
CLOSE_TO_FLOAT16, CLOSE_TO_BFLOAT16 = 2.0**-10, 2.0**-13
BLOCK = 4096  # elements whose moments are taken at once: they stay in L1, and any kernel can start at any block

PAYS = 4  # rows for each of weight and bias
UNKNOWN = (3.4028234663852886e38, 3.4028234663852886e38)  # see `bounds_of`: no weight or bias in float32 is larger
NO_BIAS = -0.0  # what stands for a bias that is not there: + -0.0 changes nothing, + 0.0 would make 0.0 of -0.0

# Weights, and their products with 1 / deviation, in which float64 goes from d to y at once: `factors_of` splits others
MOST_WEIGHT, LEAST_SCALE, MOST_SCALE = 1e300, 1e-290, 1e290

# What stands where in `shape`
ROWS, RUNS, INNER, PERIOD, GIVEN, WANTED, STREAMED, AHEAD = range(8)
X_ROWS, OUT_ROWS, M_ROWS = 8, 12, 16  # each (bundle, leap, step, start), see `place`; M of the mask
M_STEP, GROUP = 20, 21
SHAPE = 22


@inline
def rounded(value: float, single: bool) -> float:
    """value as the lanes will hold it."""
    return float(np.float32(value)) if single else value


@inline
def affine(x: Any, elements: Any, factors: Any) -> Any:
    """(elements - center) * scale + offset of lanes of x, by the factors of `factors_of`.

    What the scale lacks is added before the last rounding; a half does not show it.
    """
    center, scale, rest, offset = factors
    d = elements - center
    return fma(d, scale, offset if itemsize(x) == 2 else fma(d, rest, offset))


@inline
def too_close(x: Any, offset: Any, a: Any, b: Any) -> Any:
    """How small (... + offset) * a + b may be before a half shows that float32 has lost digits of it."""
    close = splat(CLOSE_TO_BFLOAT16 if is_bfloat16(x) else CLOSE_TO_FLOAT16, np.float32)
    return fma(magnitude(offset) * close, magnitude(a), magnitude(b) * close)


@inline
def doubtful(y: Any, least: Any) -> Any:
    """1 where y is below `least`, see `too_close`."""
    return above(least, magnitude(cast(y, np.float32)))


@inline
def either(a: Any, b: Any) -> Any:
    """Not 0 where one of two flags is not."""
    return pick(a, a, b)


@inline
def largest(array: Any, n: int, work: Any) -> float:
    """The largest finite magnitude among an array's first n elements; `work` is memory for WIDTH float32."""
    top, infinite = splat(0.0, np.float32), splat(np.inf, np.float32)
    for i in range(0, n, WIDTH):
        one_by_one()
        size = magnitude(lanes(array, i, min(WIDTH, n - i), np.float32))
        top = pick(above(size, top) * above(infinite, size), size, top)
    store(work, 0, top)
    most = 0.0
    for i in range(WIDTH):
        one_by_one()
        most = max(most, element(work, i))
    return most


@inline
def bounds_of(x: Any, weight: Any, bias: Any, shape: Any, rows: int, work: Any) -> Any:
    """Bounds of |weight| and |bias| of halves, if there is one of each for every element of a row.

    With them one comparison, to a number of the row, tells of most elements that they are not doubtful. They spare work, and
    change no result: what is doubtful, an element's own weight and bias say. A few rows do not pay for a look at all weights.
    """
    if itemsize(x) != 2 or shape[RUNS] == 1 or shape[INNER] > 1:
        return 1.0, 0.0
    if rows < PAYS * max(shape[PERIOD], 1):
        return UNKNOWN
    n = max(shape[PERIOD], 1) * shape[RUNS]
    return largest(weight, n, work), largest(bias, n, work)


@inline
def computed(
    x: Any, xi: int, k: int, weight: Any, bias: Any, w: int, per_element: bool, factors: Any, compute: Any
) -> Any:  # fmt: skip
    """k normalized elements; of half types, some may have to be `settled`."""
    y = affine(x, lanes(x, xi, k, compute), factors)
    if per_element:
        y = fma(y, lanes(weight, w, k, compute), lanes(bias, w, k, compute))
    return y


@inline
def settled(
    y: Any, x: Any, xi: int, k: int, weight: Any, bias: Any, w: int, per_element: bool, factors: Any, wide: Any, compute: Any
) -> Any:  # fmt: skip
    """What was `computed` of halves; in float64 where that is needed, as the element alone decides."""
    one_by_one()  # nothing of this is worth being done beforehand
    a, b = splat(1.0, np.float32), splat(0.0, np.float32)
    if per_element:
        a, b = lanes(weight, w, k, np.float32), lanes(bias, w, k, np.float32)
    again = doubtful(y, too_close(x, cast(factors[3], np.float32), a, b))
    if any_of(again):
        y64 = computed(x, xi, k, weight, bias, w, per_element, wide, np.float64)
        y = pick(cast(again, compute), cast(y64, compute), y)
    return y


@inline
def normalized(
    x: Any, xi: int, k: int, weight: Any, bias: Any, w: int, per_element: bool, factors: Any, wide: Any, least: Any,
    compute: Any,
) -> Any:  # fmt: skip
    """k normalized elements. None of halves at or above `least` has to be `settled`."""
    y = computed(x, xi, k, weight, bias, w, per_element, factors, compute)
    if itemsize(x) == 2 and any_of(doubtful(y, least)):
        y = settled(y, x, xi, k, weight, bias, w, per_element, factors, wide, compute)
    return y


@inline
def lanes(array: Any, i: int, k: int, compute: Any) -> Any:
    """k <= WIDTH elements."""
    return load(array, i, compute) if k == WIDTH else load_first(array, i, k, compute)


@inline
def apply_lanes(
    x: Any, xi: int, out: Any, oi: int, n: int, weight: Any, bias: Any, w: int, per_element: bool, factors: Any, wide: Any,
    bounds: Any, streamed: bool, back: bool, ahead: int, compute: Any,
) -> None:  # fmt: skip
    """Normalize n elements, from the last one back or not; streamed past the caches, while what lies `ahead` is fetched."""
    least = too_close(x, cast(factors[3], np.float32), splat(bounds[0], np.float32), splat(bounds[1], np.float32))
    if is_bfloat16(x):  # so that what is not doubtful is not subnormal either
        smallest = splat(2.0**-126, np.float32)
        least = pick(above(smallest, least), smallest, least)
    head = min(n, misaligned(out, oi)) if streamed else 0
    rest = (n - head) % WIDTH
    for i, k in ((0, head), (n - rest, rest)):
        if k > 0:
            y = normalized(x, xi + i, k, weight, bias, w + i, per_element, factors, wide, least, compute)
            store_first(out, oi + i, k, y)
    step, i = (-WIDTH, n - rest - WIDTH) if back else (WIDTH, head)
    whole = (n - head) // WIDTH
    if itemsize(x) == 2 and not is_double(factors[0]) and not streamed:  # by twos: to ask is a third of the work
        for _ in range(whole // 2):
            one_by_one()
            j = i + step
            y = computed(x, xi + i, WIDTH, weight, bias, w + i, per_element, factors, compute)
            z = computed(x, xi + j, WIDTH, weight, bias, w + j, per_element, factors, compute)
            if any_of(either(doubtful(y, least), doubtful(z, least))):
                y = settled(y, x, xi + i, WIDTH, weight, bias, w + i, per_element, factors, wide, compute)
                z = settled(z, x, xi + j, WIDTH, weight, bias, w + j, per_element, factors, wide, compute)
                store(out, oi + i, y)
                store(out, oi + j, z)
            else:
                store_normal(out, oi + i, y)
                store_normal(out, oi + j, z)
            i = j + step
        whole %= 2
    for _ in range(whole):
        one_by_one()
        y = normalized(x, xi + i, WIDTH, weight, bias, w + i, per_element, factors, wide, least, compute)
        if streamed:
            prefetch(x, xi + i, ahead)
            stream(out, oi + i, y)
        else:
            store(out, oi + i, y)
        i += step


@inline
def bypasses(out: Any, oi: int, shape: Any) -> bool:
    """Whether what begins at oi is streamed: so many sixteenths of out are, 2**16 elements at a time.

    An unaligned array has no place to stream to.
    """
    return (oi >> 16 & 15) < shape[STREAMED] and address(out) % itemsize(out) == 0


@inline
def misaligned(out: Any, oi: int) -> int:
    """Elements from oi to the first address at which lanes may be streamed."""
    grain = WIDTH if itemsize(out) > 2 else WIDTH // 2
    return (grain - (address(out) // itemsize(out) + oi) % grain) % grain


@inline
def leads(x: Any, xi: int, out: Any, oi: int, shape: Any) -> bool:
    """Whether out lies ahead of x in its page of 4 KiB, so that it is better to go backwards.

    A load waits for an earlier store to the same place of another page: so what is stored must be what has been loaded. Where
    it hardly waits, memory is read faster forwards.
    """
    gap = ((address(out) + oi * itemsize(out)) - (address(x) + xi * itemsize(x))) & 4095
    return 0 < gap < 2048 and not (forwards_from_memory(x) and shape[AHEAD] != 0)


@inline
def factors_of(x: Any, moments: Any, n: int, eps: float, a: float, b: float) -> Any:
    """(whether float32 will do, whether they are extreme, center, scale, rest, offset) of weight a and bias b.

    They are such that y = d * scale + (d * rest + offset) with d = x - center; extreme ones are those of `extreme`.
    Computed in float32 where float32 in and out allow it: d is exact where the mean is large, as center is the mean rounded to
    x's precision, and where it is small, center is 0; what center lacks of the mean is in the offset. What the scale lacks is
    in the rest, of the same sign and never 0, so that an infinite d stays what it is; of halves nothing is, see `affine`. n
    elements share the moments.
    """
    origin, mean, var = moments
    biased = var + eps
    rstd = 1.0 / root(biased) if biased != 0.0 else 0.0
    scale = rstd * a
    usual = scale != scale or rstd == 0.0 or (abs(a) < MOST_WEIGHT and (a == 0.0 or LEAST_SCALE < abs(scale) < MOST_SCALE))
    if biased == 0.0:
        return False, True, origin + mean, 0.0, a, b
    if not usual:
        share = root(rstd) * root(abs(a))
        return False, True, origin + mean, share, share if a > 0.0 else -share, b
    center = origin + mean if (origin + mean) ** 2 > var else 0.0
    fits = var * n + center * 1e16 * center < 1e76 and (1e-30 < abs(scale) < 1e30 or scale == 0.0)  # so d does not overflow
    short = rounded(center, not is_double(x))
    single = fits and abs(b - ((origin - short) + mean) * scale) < 1e38 and not is_double(x)
    center = short if single else center
    missing = (origin - center) + mean if center - center == 0.0 else 0.0  # nothing is, of a given mean of infinity
    below = scale
    if itemsize(x) > 2:
        below = rounded(scale * (1.0 - (2.0**-24 if single else 2.0**-52)), single)
    return single, False, center, below, scale - below, b - missing * scale if missing != 0.0 else b


@inline
def extreme(d: Any, scale: Any, rest: Any, offset: Any) -> Any:
    """y of lanes of float64 that scale * rest as one factor would take out of their range; a scale of 0 makes 0 of a finite d.

    Two factors of about the same size take d to y without a detour to infinity or 0. There is no scale where nothing deviates.
    """
    return fma(pick(scale, d * scale, d - d), rest, offset)


@inline
def apply_extreme(
    x: Any, xi: int, out: Any, oi: int, n: int, weight: Any, bias: Any, w: int, per_element: bool, factors: Any
) -> None:  # fmt: skip
    """Normalize n elements by `extreme` factors."""
    center, scale, rest, offset = factors
    for i in range(0, n, WIDTH):
        one_by_one()
        k = min(WIDTH, n - i)
        y = extreme(lanes(x, xi + i, k, np.float64) - center, scale, rest, offset)
        if per_element:
            y = fma(y, lanes(weight, w + i, k, np.float64), lanes(bias, w + i, k, np.float64))
        if k == WIDTH:
            store(out, oi + i, y)
        else:
            store_first(out, oi + i, k, y)


@inline
def apply(
    x: Any, xi: int, out: Any, oi: int, n: int, weight: Any, bias: Any, w: int, per_element: bool, moments: Any, eps: float,
    a: float, b: float, shape: Any, bounds: Any, ahead: int,
) -> None:  # fmt: skip
    """y = (x - mean) * rstd * a + b of a run, then * weight + bias if there is one of each for every element."""
    single, extremes, center, scale, rest, offset = factors_of(x, moments, shape[RUNS] * shape[INNER], eps, a, b)
    streamed, back = bypasses(out, oi, shape), leads(x, xi, out, oi, shape)
    wide = splat(center, np.float64), splat(scale, np.float64), splat(rest, np.float64), splat(offset, np.float64)
    if extremes:
        apply_extreme(x, xi, out, oi, n, weight, bias, w, per_element, wide)
    elif single:
        factors = splat(center, np.float32), splat(scale, np.float32), splat(rest, np.float32), splat(offset, np.float32)
        apply_lanes(x, xi, out, oi, n, weight, bias, w, per_element, factors, wide, bounds, streamed, back, ahead, np.float32)
    else:
        apply_lanes(x, xi, out, oi, n, weight, bias, w, per_element, wide, wide, bounds, streamed, back, ahead, np.float64)


@inline
def apply_span(
    x: Any, xi: int, out: Any, oi: int, start: int, stop: int, weight: Any, bias: Any, r: int, moments: Any, shape: Any,
    eps: float, bounds: Any, ahead: int,
) -> None:  # fmt: skip
    """Normalize elements start .. stop of row r: run by run, or as one run if weight and bias differ at every element.

    `bounds` are those of `bounds_of`.
    """
    runs, inner, period = shape[RUNS], shape[INNER], shape[PERIOD]
    w = r % period * runs if period > 1 else 0  # branches are cheaper than divisions, for rows of a few elements
    per_element = inner == 1 and runs > 1
    if per_element:
        runs, inner, w = 1, runs, w + start
    else:
        bounds = 1.0, 0.0
    first = start // inner if start > 0 else 0
    last = (stop + inner - 1) // inner if stop < runs * inner else runs
    for run in range(first, last):
        at = max(start, run * inner)
        n = min(stop, (run + 1) * inner) - at
        a = 1.0 if per_element else element(weight, w + run)
        b = NO_BIAS if per_element else element(bias, w + run)
        apply(x, xi + at, out, oi + at, n, weight, bias, w, per_element, moments, eps, a, b, shape, bounds, ahead)


@inline
def place(r: int, shape: Any, layout: int) -> int:
    """Index of the first element of row r. Rows lie a step apart from a start on, in bundles that lie a leap apart."""
    bundle, leap, step, start = shape[layout], shape[layout + 1], shape[layout + 2], shape[layout + 3]
    return start + (r * step if bundle == 0 else (r // bundle) * leap + (r % bundle) * step)

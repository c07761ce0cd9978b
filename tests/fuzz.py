"""Random and hostile calls: every outcome must be the right result or a documented exception, and no input may change.

`python fuzz.py SEED N` makes N calls, each from a generator of its own, so that `python fuzz.py SEED+i 1` repeats the i-th.
A crash shows which it was: the number is written to stderr before every call.
"""

import collections
import faulthandler
import os
import random
import sys
import warnings

import numpy as np

import normkit as nk
from normkit.arguments import shown

DOCUMENTED = (nk.NormkitError, MemoryError)
FLOATS = ["float32", "float32", "float32", "float64", "float64", "float16"]
try:
    import ml_dtypes

    FLOATS.append(ml_dtypes.bfloat16)
except ImportError:
    pass


class Odd:
    """Has some of an array's attributes."""

    shape, dtype, ndim, strides, size = (2, 3), np.dtype("float32"), 2, (12, 4), 6


class Listed(Odd):
    """Its shape is a list."""

    shape = [2, 3]  # noqa: RUF012


class Sub(np.ndarray):
    pass


class Evil(Exception):
    """What an evil argument raises."""


def evil(*names):
    """An object whose methods of these names raise."""

    def fail(self, *_):
        raise Evil(names)

    return type("Raises_" + "".join(names), (), dict.fromkeys(names, fail))()


class EvilName(str):
    __slots__ = ()

    def __hash__(self):
        raise Evil("__hash__")


class EvilNumber(float):
    def __float__(self):
        raise Evil("__float__")


class EvilTuple(tuple):
    __slots__ = ()

    def __iter__(self):
        raise Evil("__iter__")


class Raises:
    def __index__(self):
        raise nk.InputValueError("from __index__")

    def __float__(self):
        raise nk.InputValueError("from __float__")


with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)
    MATRIX = np.matrix([[1.0, 2.0]])

# What nobody should pass, for every argument
HOSTILE = [
    None, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, True, 0.5, -0.0, float("nan"), float("inf"), -float("inf"), 1e-400,
    5e-324, 1e308, 1j, "", "numba", "numpy", "nonsense", b"x", (), (0,), (-1,), (1, 1), (2**62, 4), [1], [[1]], {}, {1},
    ..., slice(None), object(), Odd(), Odd, Raises(), lambda: None, int, np.float32(1), np.int64(1), np.bool_(True),
    np.datetime64("2000"), range(3), np.array(1.0), np.array([]), np.zeros((0, 4), np.float32), np.zeros((4, 0),
    np.float32), np.ones((2, 3), np.int32), np.ones(4, complex), np.array(["a"]), np.array([None, 1]), np.ones(3, [("a",
    "f4")]), np.ma.masked_array([1.0, 2.0], [0, 1]), np.ones((2, 2)).view(Sub), np.ones(2, np.longdouble), np.ones(3,
    "M8[s]"), np.ones(4, bool), np.ones((1,) * 33, np.float32), np.broadcast_to(np.float32(1), (3, 4)), np.ones((2, 3),
    ">f4"), np.void(b"abc"), np.errstate(), nk, nk.FallbackPolicy.onnx(),
    np.timedelta64(1), np.timedelta64(1, "s"), np.timedelta64("NaT"), 10**5000, [[1], [2, 3]], [("a", 1)],
    MATRIX, MATRIX > 1, Listed(), evil("__hash__"), evil("__eq__", "__hash__"), evil("__repr__"), evil("__bool__"),
    evil("__len__"), evil("__getattribute__"), evil("__getattr__"), evil("__index__"), evil("__array__"),
    evil("__iter__", "__getitem__"), EvilName("numpy"), EvilNumber(1), EvilTuple((1,)),
]  # fmt: skip


def is_array(value):
    """Told by the type alone, as an evil value raises if it is asked."""
    return issubclass(type(value), np.ndarray)


def shape(rng):
    ndim = rng.choice([0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 7, 9])
    sizes = [rng.choice([0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100]) for _ in range(ndim)]
    if rng.random() < 0.02 and ndim:
        sizes[rng.randrange(ndim)] = rng.choice([1000, 4095, 4096, 4097, 70_000])
    while np.prod([n or 1 for n in sizes], dtype=float) > 200_000:  # not 0: a weight may have all sizes but that
        sizes[sizes.index(max(sizes))] = 2
    return tuple(sizes)


def values(rng, size, dtype):
    generator = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choice(["normal"] * 6 + ["offset", "constant", "huge", "tiny", "special", "zeros", "integers", "outlier"])
    x = np.asarray(generator.normal(size=size))
    with np.errstate(all="ignore"):
        if kind == "offset":
            x = x + rng.choice([1e2, 1e4, -1e6])
        elif kind == "constant":
            x = np.full(size, rng.choice([0.1, 1234.0, -3e4, 1e-30]))
        elif kind == "huge":
            x = x * rng.choice([1e4, 1e30, 1e38, 1e300])
        elif kind == "tiny":
            x = x * rng.choice([1e-5, 1e-38, 1e-45, 1e-310])
        elif kind == "zeros":
            x = x * 0
        elif kind == "integers":
            x = np.round(x * 3)
        elif kind in ("special", "outlier") and x.size:
            bad = [np.nan, np.inf, -np.inf, -0.0] if kind == "special" else [1e4, 3e19]
            x.flat[generator.integers(x.size, size=1 + x.size // 50)] = rng.choice(bad)
        return np.asarray(x).astype(dtype)


def laid_out(rng, x):
    """The same values in some layout."""
    kind = rng.choice(
        ["C"] * 6 + ["F", "sliced", "transposed", "negative", "broadcast", "unaligned", "read-only", "swapped", "memmap"]
    )
    if kind == "F":
        return np.asfortranarray(x)
    if kind == "sliced" and 0 < x.ndim < 6:
        wide = np.zeros(tuple(2 * n + 1 for n in x.shape), x.dtype)
        inner = wide[tuple(slice(1, None, 2) for _ in x.shape)]
        inner[...] = x
        return inner
    if kind == "transposed" and x.ndim > 1:
        order = list(range(x.ndim))
        rng.shuffle(order)
        return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    if kind == "negative" and x.ndim:
        return np.ascontiguousarray(np.flip(x))[(slice(None, None, -1),) * x.ndim]
    if kind == "broadcast" and x.ndim and x.size:
        axis = rng.randrange(x.ndim)
        return np.broadcast_to(x.take([0], axis), x.shape)
    if kind == "unaligned" and not x.dtype.hasobject:
        raw = np.empty(x.nbytes + 8, np.uint8)[rng.choice([1, 2, 3]) :][: x.nbytes]
        there = np.frombuffer(raw.data, x.dtype, x.size).reshape(x.shape)
        there[...] = x
        return there
    if kind == "read-only":
        x = x.copy()
        x.flags.writeable = False
    elif kind == "swapped" and x.dtype.kind == "f":
        return x.astype(x.dtype.newbyteorder())
    return x


def array(rng, size, dtype=None):
    if rng.random() < 0.03:
        return rng.choice(HOSTILE)
    return laid_out(rng, values(rng, size, rng.choice(FLOATS) if dtype is None else dtype))


def out_for(rng, x, others):
    """An out that fits, overlaps, or neither."""
    kind = rng.choice(
        ["new"] * 4 + ["x", "part of x", "same place", "weight", "read-only", "other shape", "other dtype", "repeats"]
    )
    if kind == "new" and rng.random() < 0.5:
        return laid_out(rng, np.empty(x.shape, x.dtype.newbyteorder("=")))
    if kind == "x":
        return x
    if kind == "part of x" and x.ndim and x.shape[0]:
        double = np.empty((x.shape[0] + 1, *x.shape[1:]), x.dtype)
        double[:-1] = x
        return "overlap", double[:-1], double[1:]
    if kind == "same place":
        return x[...]
    if kind == "weight" and others:
        return rng.choice(others)
    if kind == "read-only":
        return np.broadcast_to(x, x.shape)
    if kind == "other shape":
        return np.empty((*x.shape, 1), x.dtype)
    if kind == "other dtype":
        return np.empty(x.shape, np.float64 if x.dtype != np.float64 else np.float32)
    if kind == "repeats":
        return np.lib.stride_tricks.as_strided(x.copy(), x.shape, (0,) * x.ndim)
    return np.empty(x.shape, x.dtype.newbyteorder("="))


def some(rng, chance, make):
    return make() if rng.random() < chance else None


def call(rng):
    """An op, its x, and its keyword arguments."""
    op = rng.choice(["layer_norm", "instance_norm"])
    size = shape(rng)
    x = array(rng, size)
    options = {}
    if not is_array(x):
        size = (2, 3)
    if op == "layer_norm":
        axes = tuple(range(len(size)))[rng.randrange(len(size)) if size else 0 :]
        how = rng.choice(["default", "shape", "axis", "weight", "hostile"])
        if how == "shape":
            options["normalized_shape"] = tuple(size[a] for a in axes)
        elif how == "axis" and size:
            axes = tuple(rng.sample(range(len(size)), rng.randint(1, len(size))))
            options["axis"] = tuple(a - len(size) if rng.random() < 0.3 else a for a in axes)
        elif how == "default":
            axes = axes[-1:]
        elif how == "hostile":
            options[rng.choice(["normalized_shape", "axis"])] = rng.choice(HOSTILE)
        affine = tuple(size[a] for a in axes)
        for name in ("weight", "bias"):
            if rng.random() < 0.4 or (how == "weight" and name == "weight"):
                options[name] = array(rng, affine if rng.random() < 0.95 else shape(rng))
    else:
        channel = 1
        if len(size) > 1 and rng.random() < 0.4:
            channel = rng.randrange(1, len(size))
            options["channel_axis"] = channel if rng.random() < 0.5 else channel - len(size)
        elif rng.random() < 0.03:
            options["channel_axis"] = rng.choice(HOSTILE)
        channels = (size[channel],) if len(size) > 1 else (3,)
        names = ["weight", "bias"] + (["running_mean", "running_var"] if rng.random() < 0.2 else [])
        for name in names:
            if "running" in name or rng.random() < 0.4:
                options[name] = array(rng, channels if rng.random() < 0.97 else shape(rng))
        if "running_var" in options and is_array(options["running_var"]) and options["running_var"].dtype.kind == "f":
            options["running_var"] = np.abs(options["running_var"])
        if rng.random() < 0.2:
            options["use_input_stats"] = rng.choice([True, False, False])
        if rng.random() < 0.1:
            options["momentum"] = rng.choice([0.0, 0.5, 1.0, -1.0, *HOSTILE])
        if rng.random() < 0.5:
            options["policy"] = nk.FallbackPolicy(
                single_element=rng.choice(["bias", "identity", "layer_norm", "running", "raise"])
            )
    if rng.random() < 0.5:
        options["eps"] = rng.choice([0, 0.0, 1e-12, 1e-5, 1e-3, 1.0, 1e30, *(HOSTILE if rng.random() < 0.2 else [])])
    if rng.random() < 0.15:
        generator = np.random.default_rng(rng.getrandbits(32))
        full = generator.random(tuple(n if rng.random() < 0.7 else 1 for n in size)) < rng.choice([0, 0.1, 0.5, 1.0])
        options["mask"] = full if rng.random() < 0.95 else rng.choice(HOSTILE)
    if rng.random() < 0.25:
        options["return_stats"] = True
    if rng.random() < 0.3 and is_array(x):
        others = [v for k, v in options.items() if k in ("weight", "bias") and is_array(v)]
        options["out"] = out_for(rng, x, others)
        if type(options["out"]) is tuple:
            _, x, options["out"] = options["out"]
    elif rng.random() < 0.03:
        options["out"] = rng.choice(HOSTILE)
    if rng.random() < 0.3:
        options["backend"] = rng.choice(["numba", "numba", "numpy", *(HOSTILE if rng.random() < 0.1 else [])])
    if rng.random() < 0.02:
        options["policy"] = rng.choice(HOSTILE)
    return op, x, options


def arrays_of(x, options):
    named = {"x": x, **options}
    return {name: value for name, value in named.items() if is_array(value)}


def expected(op, x, options):
    """The result by the formula in long double, how far off it may be, elements and variance of a set; None by another rule."""
    wide = x.astype(np.longdouble)
    if op == "layer_norm":
        axis, shape_, weight = options.get("axis"), options.get("normalized_shape"), options.get("weight")
        if axis is not None:
            axes = tuple(a % x.ndim for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
        else:
            given = shape_ if shape_ is not None else (x.shape[-1:] if weight is None else weight.shape)
            axes = tuple(range(x.ndim - (len(given) if isinstance(given, (tuple, list)) else 1), x.ndim))
        affine = axes
    else:
        channel = int(np.ravel(options.get("channel_axis", 1))[0]) % x.ndim
        axes, affine = tuple(a for a in range(1, x.ndim) if a != channel), (channel,)
    if x.size == 0 or options.get("use_input_stats") is False:
        return None
    answer = None
    if op == "instance_norm" and np.prod([x.shape[a] for a in axes]) == 1:
        answer = options["policy"].single_element
        if answer == "running":
            return None
        if answer == "layer_norm":
            axes = tuple(range(1, x.ndim))
    mask = options.get("mask")
    chosen = np.broadcast_to(True if mask is None else mask, x.shape)
    n = chosen.sum(axes, keepdims=True)
    with np.errstate(all="ignore"):
        mean = np.where(chosen, wide, 0).sum(axes, keepdims=True) / n
        var = np.where(chosen, (wide - mean) ** 2, 0).sum(axes, keepdims=True) / n
        if answer == "identity":
            mean, var, n, options = mean * 0, var * 0 + 1, n * 0 + 2, {**options, "eps": 0}
        std = np.sqrt(var + np.longdouble(options.get("eps", 1e-5)))
        y = np.where(std == 0, 0, (wide - mean) / np.where(std == 0, 1, std))
        doubt = (1 + np.abs(y)) * (2.0**-22 if x.dtype.itemsize < 8 else 2.0**-46) + np.abs(mean) / std * 2.0**-50
        for name in ("weight", "bias"):
            if options.get(name) is not None:
                p = options[name].astype(np.longdouble)
                if x.dtype.itemsize < 8:
                    p = np.where(np.abs(p) > 3.4e38, np.inf, p)  # the arithmetic is float32
                order = np.argsort(affine)
                p = p.transpose(order).reshape([x.shape[a] if a in affine else 1 for a in range(x.ndim)])
                y, doubt = (y * p, doubt * np.abs(p)) if name == "weight" else (y + p, doubt + np.abs(p) * 2.0**-23)
    return y, doubt, n, var


def right(y, op, x, options, before):
    """Whether y is what the formula gives for the operands as they were."""
    assert type(y) is np.ndarray or y is options.get("out"), type(y)
    assert y.shape == x.shape, y.shape
    assert y.dtype.newbyteorder("=") == x.dtype.newbyteorder("="), y.dtype
    operands = {name: before.get(name, value) for name, value in options.items()}
    reference = expected(op, before["x"], operands)
    if reference is None:
        return
    want, doubt, n, var = reference
    with np.errstate(all="ignore"):
        got = y.astype(np.longdouble)
        squares = (var > 1e-290) | (var == 0)  # float64 holds them no further down, nor above 1e308
        finite = squares & (var < 1e300) & np.isfinite(want) & np.isfinite(doubt)
        finite &= np.broadcast_to(n, x.shape) > (options.get("mask") is not None)  # what is less, the policy answers
        largest = float(np.finfo(x.dtype).max) if x.dtype.kind == "f" else 3.3e38
        finite &= np.abs(want) + 4 * doubt < largest * 0.99  # what is off by as much as it may be overflows too
        steps = {2: 2.0**-8 if x.dtype.kind == "V" or "bfloat16" in x.dtype.name else 2.0**-10, 4: 2.0**-22, 8: 2.0**-45}
        small = {2: 2.0**-24, 4: 2.0**-126, 8: 2.0**-1020}[x.dtype.itemsize]
        limit = np.abs(want) * steps[x.dtype.itemsize] + 4 * doubt + small
        wrong = finite & ~(np.abs(got - want) <= limit)
    assert not wrong.any(), (float(got[wrong][0]), float(want[wrong][0]), float(limit[wrong][0]))


def expected_of(error):
    """Whether an error was made where it was found: behind one of a stranger's own code, only that code's may stand."""
    cause = error.__cause__
    if isinstance(error, nk.NormkitError) and cause is not None:
        assert isinstance(cause, Evil) or any(name in str(cause) for name in ("'Odd'", "'Listed'")), repr(cause)


def one(rng):
    """One call, judged; returns what became of it."""
    op, x, options = call(rng)
    arrays = arrays_of(x, options)
    out = options.get("out")
    changing = {"out"} | ({"running_mean", "running_var"} if options.get("use_input_stats", True) else set())
    before = {name: value.copy() for name, value in arrays.items()}
    bits = {name: value.tobytes() for name, value in arrays.items() if value.dtype.kind != "O"}
    may_change = [arrays[name] for name in changing if name in arrays]
    try:
        result = getattr(nk, op)(x, **options)
    except DOCUMENTED as error:
        expected_of(error)
        outcome = type(error).__name__
        may_change = []  # nothing has been written
    else:
        outcome = "right"
        y = result[0] if options.get("return_stats") is True else result
        assert out is None or y is out
        right(y, op, x, options, before)
    for name, value in arrays.items():
        changed = name in bits and value.tobytes() != bits[name]
        assert not changed or any(np.may_share_memory(value, other) for other in may_change), f"{name} has changed"
    return outcome


def describe(seed):
    op, x, options = call(random.Random(seed))
    told = {
        name: f"{v.dtype} {v.shape} strides {v.strides}" if type(v) is np.ndarray else shown(v)
        for name, v in {"x": x, **options}.items()
    }
    return f"{op} {told}"


def main(seed, n):
    faulthandler.enable()
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", nk.FallbackWarning)
    warnings.simplefilter("ignore", nk.RunningStatsWarning)
    counts = collections.Counter()
    for i in range(seed, seed + n):
        os.write(2, b"%d\r" % i)
        try:
            counts[one(random.Random(i))] += 1
        except BaseException as error:
            print(f"\nseed {i}: {type(error).__name__}: {error}\n{describe(i)}", flush=True)
            counts["FAILED"] += 1
            if counts["FAILED"] >= int(os.environ.get("FUZZ_STOP", "1")):
                raise
    print(sum(counts.values()), "calls:", ", ".join(f"{count} {name}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

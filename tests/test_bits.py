"""The bits of a set depend on its own numbers alone: every kernel, threads, streams, buffers, layouts, neighbours, all dtypes.

Halves are computed in float32, and some elements again in float64: which ones must not depend on the way either. So the
numbers here are such that many elements are doubtful: they lie close together where y is nearly 0 beside its bias.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
from normkit.backends.numba_backend import kernels, limits, tiles

import normkit as nk
from normkit import plans

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
NEVER, ALWAYS = 1 << 60, 0
# Limits that send small arrays through each kernel, and threads
WAYS = {
    "serial": {"PARALLEL_BYTES": NEVER, "STREAM_BYTES": NEVER},
    "serial, streamed": {"PARALLEL_BYTES": NEVER, "STREAM_BYTES": ALWAYS},
    "parallel": {"PARALLEL_BYTES": ALWAYS, "SPLIT_BYTES": NEVER, "STREAM_BYTES": NEVER},
    "parallel, streamed": {"PARALLEL_BYTES": ALWAYS, "SPLIT_BYTES": NEVER, "STREAM_BYTES": ALWAYS},
    "split": {"PARALLEL_BYTES": ALWAYS, "SPLIT_BYTES": ALWAYS, "STREAM_BYTES": NEVER},
    "split, streamed": {"PARALLEL_BYTES": ALWAYS, "SPLIT_BYTES": ALWAYS, "STREAM_BYTES": ALWAYS},
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch, threads):
    for name, limit in WAYS[request.param].items():
        monkeypatch.setattr(limits, name, limit)
    plans.forget()  # which hold what the limits were
    threads(1 if "serial" in request.param else 2)
    yield request.param
    plans.forget()


def telling(dtype, shape, seed=0):
    """Sets whose elements lie around 0.01, half of them, or 6, where neither mean nor deviation is small."""
    rng = np.random.default_rng(seed)
    near, far = rng.normal(0.01, 0.002, shape), rng.normal(6, 2, shape)
    return np.where(rng.random(shape) < 0.5, near, far).astype(dtype)


def balanced(x, weight, axes):
    """The bias that leaves next to nothing of an x of 0.01."""
    x = x.astype(np.float64)
    mean, std = x.mean(axes), np.sqrt(x.var(axes) + 1e-5)
    return (mean - 0.01) / std * weight


def gapped(x):
    wide = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def every_other(x):
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def odd(x):
    memory = np.zeros(x.size + 1, x.dtype)[1:].reshape(x.shape)
    memory[...] = x
    return memory


LAYOUTS = {
    "C": np.array,
    "odd": odd,
    "gapped": gapped,
    "every other": every_other,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "channels last": lambda x: np.ascontiguousarray(np.moveaxis(x, 1, -1)).transpose(0, 2, 1),
    "a channel last": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
}


def one_by_one(x, weight, bias, given, mask, eps):
    """Each set by itself, where it lies in a row, as `instance_norm` has them."""
    y = np.empty_like(x)
    for n, c in np.ndindex(x.shape[:2]):
        one = slice(n, n + 1), slice(c, c + 1)
        options = {} if given is None else {"running_mean": given[0][one[1]], "running_var": given[1][one[1]]}
        options |= {"use_input_stats": given is None, "mask": None if mask is None else mask[one], "eps": eps}
        own = [None if p is None else p[one[1]] for p in (weight, bias)]
        y[one] = nk.instance_norm(x[one].copy(), weight=own[0], bias=own[1], backend="numba", **options)
    return y


def cases(dtype, shape):
    """(x, weight, bias, given statistics, mask, eps) of calls of instance_norm."""
    x = telling(dtype, shape)
    rng = np.random.default_rng(1)
    weight = rng.normal(1, 0.2, shape[1]).astype(np.float32)
    bias = balanced(x[0], weight, 1).astype(np.float32)
    given = balanced(x[0], 1.0, 1), rng.normal(1, 0.1, shape[1]) ** 2
    mask = rng.random(shape) > 0.3
    yield x, None, None, None, None, 1e-5
    yield x, weight, bias, None, None, 1e-5
    yield x, weight, bias, None, mask, 1e-5
    yield x, weight, bias, given, None, 1e-5
    yield x, None, bias, (given[0].astype(np.float32), given[1].astype(np.float32)), None, 1e-5
    some = x.copy()
    some[:, 1] = 3  # beside the others, a set without deviation, and one whose factors float32 cannot hold
    few = weight.copy()
    few[-1] = 1e-32
    yield some, few, bias, None, None, 0.0


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def expected(request):
    """(case, what `one_by_one` makes of it) for sets of one block and of several."""
    shapes = (9, 5, 70), (2, 3, 5003)
    return [(case, one_by_one(*case)) for shape in shapes for case in cases(request.param, shape)]


def test_sets_of_instance_norm(way, expected, same_bits, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", kernels.BLOCK * expected[0][1].itemsize)  # of one block
    for (x, weight, bias, given, mask, eps), alone in expected:
        options = {"weight": weight, "bias": bias, "mask": mask, "eps": eps, "backend": "numba"}
        if given is not None:
            options |= {"running_mean": given[0], "running_var": given[1], "use_input_stats": False}
        for name, put in LAYOUTS.items():
            if "serial" not in way and name in ("odd", "every other", "byte-swapped", "a channel last"):
                continue  # with threads no other kernel than "serial" or those of the other layouts
            there = put(x)
            same_bits(np.ascontiguousarray(nk.instance_norm(there, **options)), alone)
            if name in ("C", "channels last"):  # as a plan, and in place
                same_bits(np.ascontiguousarray(nk.instance_norm(there, **options)), alone)
                same_bits(np.ascontiguousarray(nk.instance_norm(there, out=there, **options)), alone)
        last = nk.instance_norm(np.ascontiguousarray(np.moveaxis(x, 1, -1)), channel_axis=-1, **options | {
            "mask": None if mask is None else np.moveaxis(mask, 1, -1)
        })  # fmt: skip
        same_bits(np.ascontiguousarray(np.moveaxis(last, -1, 1)), alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40, 70), (3, 5003)])
def test_sets_of_layer_norm(way, dtype, shape, same_bits, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", kernels.BLOCK * dtype.itemsize)
    x = telling(dtype, shape)
    rng = np.random.default_rng(1)
    weight = rng.normal(1, 0.2, shape[1]).astype(np.float32)
    bias = (balanced(x, 1.0, 1)[0] * weight).astype(np.float32)
    for affine, mask in itertools.product([(None, None), (weight, bias), (None, bias)], [None, rng.random(shape) > 0.3]):
        options = {"weight": affine[0], "bias": affine[1], "backend": "numba"}
        alone = np.concatenate([
            nk.layer_norm(x[i : i + 1].copy(), mask=None if mask is None else mask[i : i + 1], **options) for i in range(len(x))
        ])  # fmt: skip
        buffered = (odd, every_other, lambda x: x.astype(x.dtype.newbyteorder())) if "serial" in way else ()
        for put in (np.array, gapped, np.asfortranarray, *buffered):
            same_bits(np.ascontiguousarray(nk.layer_norm(put(x), mask=mask, **options)), alone)
        first = nk.layer_norm(np.ascontiguousarray(x.T), axis=0, mask=None if mask is None else mask.T, **options)
        same_bits(np.ascontiguousarray(first.T), alone)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_many_of_these_elements_are_doubtful(dtype, assert_close):
    """Or the above would say nothing: in float32 alone they differ. What is kept of them is exact to the unit."""
    x = telling(dtype, (3, 5003))
    bias = balanced(x, 1.0, 1)[:1].astype(np.float32)
    y = nk.instance_norm(x[:1, None], bias=bias, backend="numba")
    exact = nk.instance_norm(x[:1, None].astype(np.float64), bias=bias, backend="numpy")
    assert_close(y, exact)
    close = kernels.CLOSE_TO_BFLOAT16 if dtype.name == "bfloat16" else kernels.CLOSE_TO_FLOAT16
    assert (np.abs(exact) < close * np.abs(bias)).mean() > 0.05
    mean, var = x[0].astype(np.float64).mean(), x[0].astype(np.float64).var()
    rstd = 1 / np.sqrt(var + 1e-5)
    short = x[0].astype(np.float32) * np.float32(rstd) + (bias - np.float32(mean * rstd))
    assert (short.astype(dtype) != y[0, 0]).sum() > 10

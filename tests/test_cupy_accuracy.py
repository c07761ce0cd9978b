"""The kernels' arithmetic, step for step in NumPy's float32: that it holds design.md's figures for any input.

The model is a second writing of `guess`, `first_mean`, `moments_around` and `Scale` in rows.cu and common.cuh. Where there is a
compiler it is compared with them.
"""

import math

import fake_cupy
import numpy as np
import pytest
from normkit.backends.cupy_backend import CupyBackend, launch

import normkit as nk
from normkit import registry

F = np.float32
VECTOR = 4


def in_order(places):
    """(group, V) float32 sums of a thread's columns to one float32 a thread, pairwise."""
    while places.shape[1] > 1:
        places = places[:, ::2] + places[:, 1::2]
    return places[:, 0]


def group_sum(threads):
    """float64: a butterfly in each warp, then warps by twos."""
    wide = threads.astype(np.float64)
    width = min(len(wide), 32)
    warps = wide.reshape(-1, width)
    while warps.shape[1] > 1:
        warps = warps[:, ::2] + warps[:, 1::2]
    if len(warps) == 1:
        return warps[0, 0]
    total = 0.0
    for first, second in warps[:, 0].reshape(-1, 2):
        total = total + (first + second)
    return total


def guess(x):
    """The mean of four elements in front; the first of a row that may have no more."""
    if len(x) < VECTOR:
        return x[0]
    a, b, c, d = x[:VECTOR] * F(0.25)
    return (a + b) + (c + d)


def moments(x):
    """(mean, variance) of a float32 row."""
    cut = launch.cut_row(len(x), 4, clusters=False)
    held = np.zeros(cut.group * cut.held * VECTOR, F)
    held[: len(x)] = x
    there = (np.arange(held.size) < len(x)).reshape(cut.held, cut.group, VECTOR)
    held = held.reshape(cut.held, cut.group, VECTOR)

    def sums(terms):
        own = np.zeros((cut.group, VECTOR), F)
        for k in range(cut.held):
            own = np.where(there[k], terms[k] + own, own)
        return group_sum(in_order(own))

    shift = guess(x)
    mean = float(shift) + sums(held - shift) / len(x)
    hi = F(mean)
    d = (held - hi) - F(mean - float(hi))
    first, rest = sums(d), sums(d * d)
    return mean + first / len(x), (rest - first * (first / len(x))) / len(x)


def normalized(x, eps=1e-5):
    mean, var = moments(x)
    v = var + eps
    root = float(F(1) / np.sqrt(F(v)))
    root *= 1.5 - 0.5 * v * root * root
    hi, r = F(mean), F(root)
    low, rest = F(root - float(r)), -F(mean - float(hi)) * r
    d = (x - hi).astype(np.float64)
    small = (d * low + rest).astype(F)  # fused: the product is exact in float64
    return (d * r + small).astype(F)


def exact(x, eps=1e-5):
    wide = x.astype(np.longdouble)
    d = wide - math.fsum(map(float, x)) / len(x)
    d -= d.mean()
    return d / np.sqrt((d * d).mean() + np.longdouble(eps))


def rows():
    random = np.random.default_rng(0)
    for length in (2, 5, 64, 768, 1001, 4096, 16384):
        for offset in (0, 1, 1e2, 1e4, 1e6, -1e6):
            yield f"normal {length} {offset}", (random.standard_normal(length) + offset).astype(F)
        spread = random.uniform(-1, 1, length)
        yield f"wide {length}", (spread * 10.0 ** random.uniform(-6, 3, length)).astype(F)
        outlier = random.standard_normal(length)
        outlier[0] = 1e4
        yield f"outlier in front {length}", outlier.astype(F)
        yield f"ramp {length}", (np.arange(length) + 1e6).astype(F)
        yield f"alternating {length}", (1e6 + (-1.0) ** np.arange(length)).astype(F)
        yield f"periodic {length}", (0.1 * (np.arange(length) % 128) + 0.7).astype(F)


@pytest.mark.parametrize("x", [pytest.param(x, id=name) for name, x in rows()])
def test_the_figure_of_the_design(x):
    y, expected = normalized(x), exact(x)
    assert np.all(np.abs(y - expected) <= 1e-6 * np.maximum(1, np.abs(expected) / 4))
    mean, var = moments(x)
    wide = x.astype(np.longdouble)
    std = float(wide.std())
    assert abs(mean - float(wide.mean())) <= 1e-7 * std + 1e-15 * abs(mean)
    assert abs(var - std * std) <= 1e-6 * std * std


def test_a_plain_float32_computation_would_fail():
    x = (np.random.default_rng(1).standard_normal(768) + 1e6).astype(F)
    d = x - x.mean()
    assert np.max(np.abs(d / np.sqrt((d * d).mean() + F(1e-5)) - exact(x))) > 1e-3


@pytest.mark.skipif(fake_cupy.GXX is None, reason="needs g++ to run the kernels on the CPU")
@pytest.mark.parametrize("length", [5, 768, 1001, 5000])
def test_the_model_is_what_the_kernels_do(length, request, monkeypatch):
    compiler = fake_cupy.Compiler(request.config.cache.mkdir("cuda_on_cpu"))
    monkeypatch.setitem(registry._found, "cupy", CupyBackend(fake_cupy.module(compiler)))
    x = (np.random.default_rng(2).standard_normal(length) + 100).astype(F)
    y, mean, rstd = (a.get() for a in nk.layer_norm(fake_cupy.array(x[None]), return_stats=True))
    np.testing.assert_allclose(y[0], normalized(x), rtol=2e-7, atol=2e-7)
    assert mean.item() == pytest.approx(moments(x)[0], rel=1e-9)
    assert rstd.item() == pytest.approx(1 / math.sqrt(moments(x)[1] + 1e-5), rel=2e-7)

"""The figures of docs/design.md, "Figures to hold", against long double: what float32 arithmetic alone gets wrong by 1e-3.

Where long double is no wider than float64, the oracle's exactly rounded sums stand in: see test_oracle.
"""

import math

import numpy as np
import pytest

import normkit as nk

WIDE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


def long_double(x, axes, eps=1e-5):
    """The formula in long double, or with the mean in two parts of float64."""
    kept = {"axis": axes, "keepdims": True}
    if WIDE:
        x = x.astype(np.longdouble)
        deviation = x - x.mean(**kept)
        return deviation / np.sqrt(np.square(deviation).mean(**kept) + np.longdouble(eps))
    x = x.astype(np.float64)
    n = math.prod(x.shape[a] for a in axes)
    sets = np.moveaxis(x, axes, range(-len(axes), 0)).reshape(-1, n)
    mean = np.array([math.fsum(row) / n for row in sets])[:, None]
    rest = np.array([math.fsum(row) / n for row in sets - mean])[:, None]
    deviation = (sets - mean) - rest
    y = deviation / np.sqrt(np.array([math.fsum(row * row) / n for row in deviation])[:, None] + eps)
    shape = [n for a, n in enumerate(x.shape) if a not in axes] + [x.shape[a] for a in axes]
    return np.moveaxis(y.reshape(shape), range(-len(axes), 0), axes)


def error(y, expected):
    return float(np.abs(y.astype(expected.dtype) - expected).max())


def offset(mean, shape, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) + mean).astype(dtype)


MEANS = [0, 1, 100, -1e4, 1e4, 1e6]


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("n", [768, 5, 64, 4099, 70_000])
def test_layer_norm_float32(run, mean, n):
    x = offset(mean, (6, n))
    assert error(run("layer_norm", x), long_double(x, (1,))) <= 1e-6


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("shape", [(2, 3, 128, 128), (1, 1, 1024, 1024), (2, 2, 8, 16, 16), (4, 3, 50)])
def test_instance_norm_float32(run, mean, shape):
    x = offset(mean, shape)
    axes = tuple(range(2, x.ndim))
    assert error(run("instance_norm", x), long_double(x, axes)) <= 1e-6


def test_instance_norm_float32_of_a_large_image(run):
    x = offset(100, (1, 1, 2048, 2048))  # other engines are off by 3 on images like this
    expected = long_double(x, (2, 3))
    assert error(run("instance_norm", x), expected) <= 1e-6


@pytest.mark.parametrize("mean", [0, 1e4])
def test_channels_last_and_other_axes_float32(run, mean):
    x = offset(mean, (2, 64, 64, 3))
    assert error(run("instance_norm", x, channel_axis=-1), long_double(x, (1, 2))) <= 1e-6
    assert error(run("layer_norm", x, axis=(0, 2)), long_double(x, (0, 2))) <= 1e-6


@pytest.mark.parametrize("n", [5, 64, 768, 4099, 70_000])
def test_layer_norm_float64(run, n):
    x = offset(0, (6, n), np.float64)
    assert error(run("layer_norm", x), long_double(x, (1,))) <= 1e-13


@pytest.mark.parametrize("shape", [(2, 3, 128, 128), (1, 1, 512, 512), (4, 3, 50)])
def test_instance_norm_float64(run, shape):
    x = offset(0, shape, np.float64)
    assert error(run("instance_norm", x), long_double(x, tuple(range(2, x.ndim)))) <= 1e-13


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_float64_at_an_offset_is_limited_by_the_input(run, mean):
    x = offset(mean, (6, 768), np.float64)
    assert error(run("layer_norm", x), long_double(x, (1,))) <= max(1e-13, 2 * mean * np.finfo(np.float64).eps)


@pytest.mark.parametrize(("kind", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_types_are_within_one_unit_in_the_last_place(run, kind, bits):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    for mean in (0, 100):
        x = offset(mean, (6, 768), dtype)
        expected = long_double(x.astype(np.float64), (1,)).astype(np.float64)
        y = run("layer_norm", x).astype(np.float64)
        unit = np.ldexp(1.0, np.frexp(expected)[1] - bits)
        assert (np.abs(y - expected.astype(dtype).astype(np.float64)) <= unit).all()


def test_an_outlier_float32(run):
    x = offset(0, (3, 768))
    x[0, 7], x[1, 100], x[2, 767] = 3e19, -1e30, 1e38
    assert error(run("layer_norm", x), long_double(x, (1,))) <= 1e-5 * np.sqrt(768)


def test_nearly_constant_float32(run):
    x = np.full((2, 1000), 1234.0, np.float32)
    x[0, 0] = np.nextafter(np.float32(1234), np.float32(2000))
    assert error(run("layer_norm", x, eps=0)[:1], long_double(x[:1], (1,), eps=0)) <= 1e-5 * np.sqrt(1000)
    assert error(run("layer_norm", x), long_double(x, (1,))) <= 1e-6


def test_a_ramp_is_no_harder_than_noise(run):
    x = np.linspace(1e5, 1e5 + 7, 50_000, dtype=np.float32).reshape(5, -1)
    assert error(run("layer_norm", x), long_double(x, (1,))) <= 1e-6


@pytest.mark.parametrize("mean", [0, 1e4])
def test_statistics(run, mean):
    x = offset(mean, (6, 768))
    _, m, rstd = run("layer_norm", x, return_stats=True)
    wide = x.astype(np.longdouble)
    np.testing.assert_allclose(m, wide.mean(1, keepdims=True).astype(np.float64), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(rstd, (1 / np.sqrt(wide.var(1, keepdims=True) + 1e-5)).astype(np.float64), rtol=1e-12)


def test_numpy_alone_gets_this_wrong():
    """Why there is a float64 in the promise: the usual three lines, in float32."""
    x = offset(1e4, (6, 768))
    mean = x.mean(1, keepdims=True)
    plain = (x - mean) / np.sqrt(np.square(x - mean).mean(1, keepdims=True) + np.float32(1e-5))
    assert error(plain, long_double(x, (1,))) > 1e-5
    assert error(nk.layer_norm(x, backend="numpy"), long_double(x, (1,))) <= 1e-6

"""float16 and bfloat16: conversions of every value, with and without the CPU's instructions for it, and one rounding."""

import ml_dtypes
import numpy as np
import pytest
from normkit.backends.numba_backend import conversions
from normkit.backends.numba_backend.memory import element, load, store
from normkit.backends.numba_backend.sets import converted
from normkit.backends.numba_backend.simd import WIDTH
from numba import config, njit

import normkit as nk

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="this is about what is compiled")

HALVES = {"float16": (np.dtype(np.float16), np.uint16), "bfloat16": (np.dtype(ml_dtypes.bfloat16), np.int16)}
ALL = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


@njit
def _convert(a, b):
    for i in range(0, a.size, WIDTH):
        store(b, i, load(a, i, np.float32))


@njit
def _widen(a, b):
    for i in range(a.size):
        b[i] = element(a, i)


@pytest.fixture(scope="module", params=[True, False], ids=["instructions", "arithmetic"])
def convert(request):
    """(lanes from array to array, elements to float64), with the CPU's conversions and without."""
    has = conversions.converts_halves
    if request.param and not has():
        pytest.skip("this CPU has no conversions of float16")
    patch = pytest.MonkeyPatch()
    patch.setattr(conversions, "converts_halves", lambda: request.param)
    if not request.param:
        patch.setattr(conversions, "rounds_to_bfloat16", lambda: False)
    lanes, elements = njit(_convert.py_func), njit(_widen.py_func)
    for stored in (np.uint16, np.int16):  # compile while the patch holds
        lanes(np.zeros(16, stored), np.zeros(16, np.float32))
        lanes(np.zeros(16, np.float32), np.zeros(16, stored))
        elements(np.zeros(16, stored), np.zeros(16))
    patch.undo()
    return lanes, elements


@pytest.fixture(params=HALVES)
def half(request):
    return HALVES[request.param]


def test_every_value_is_widened_exactly(convert, half):
    dtype, stored = half
    with np.errstate(invalid="ignore"):
        expected = ALL.view(dtype).astype(np.float32)
    lanes, wide = np.empty(ALL.size, np.float32), np.empty(ALL.size)
    convert[0](ALL.view(stored), lanes)
    convert[1](ALL.view(stored), wide)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(lanes[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    np.testing.assert_array_equal(lanes[nan].view(np.uint32) | 1 << 22, expected[nan].view(np.uint32) | 1 << 22)  # the payload
    np.testing.assert_array_equal(wide, expected)


def test_every_rounding_is_to_nearest_even(convert, half):
    dtype, stored = half
    with np.errstate(all="ignore"):
        values = ALL.view(dtype).astype(np.float32)
        values = values[np.isfinite(values)]
        ties = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
        there = np.concatenate([values, ties, np.float32([65519.99, 65520, 3.4e38, np.inf, -np.inf, 1e-45, -0.0])])
        there = np.concatenate([there, np.nextafter(there, np.float32(np.inf)), np.nextafter(there, np.float32(-np.inf))])
        there = np.resize(there, there.size // WIDTH * WIDTH)
        expected = there.astype(dtype)
    actual = np.empty(there.size, stored)
    convert[0](there, actual)
    np.testing.assert_array_equal(actual.view(np.uint16), expected.view(np.uint16))


def test_nan_stays_nan_and_is_quiet(convert, half):
    dtype, stored = half
    nan = np.arange(0x7F800001, 0x7F800001 + (1 << 22), 1021, dtype=np.uint32)
    nan = np.concatenate([nan, nan | 1 << 31, [0x7FFFFFFF] * WIDTH]).astype(np.uint32)
    nan = nan[: nan.size // WIDTH * WIDTH].view(np.float32)
    actual = np.empty(nan.size, stored)
    convert[0](nan, actual)
    assert np.isnan(actual.view(dtype)).all()
    np.testing.assert_array_equal(np.signbit(actual.view(dtype).astype(np.float32)), np.signbit(nan))


def test_a_cpu_without_conversions_gives_the_same_bits(script):
    code = """
import numpy as np, normkit as nk
from normkit.backends.numba_backend import conversions
x = np.random.default_rng(0).normal(size=(7, 333)).astype(np.float16)
x[0, 0], x[1, 1] = 6e-8, 65504
print(nk.layer_norm(x, weight=np.ones(333, np.float16), backend="numba").tobytes().hex())
"""
    assert script(code, NUMBA_CPU_FEATURES="", NORMKIT_CACHE=0) == script(code)


@pytest.mark.parametrize("parameter", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_parameters_of_another_dtype(run, assert_close, half, parameter):
    dtype, _ = half
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, 64)).astype(dtype)
    weight, bias = rng.normal(size=(2, 64)).astype(parameter)
    wide = nk.layer_norm(x.astype(np.float64), 64, weight.astype(np.float64), bias.astype(np.float64), backend="numpy")
    y, mean, rstd = run("layer_norm", x, 64, weight, bias, return_stats=True)
    assert (y.dtype, mean.dtype, rstd.dtype) == (dtype, np.float64, np.float64)
    assert_close(y, wide)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("near", [1.0, 1 + 2.0**-9, 1 + 2.0**-14, 1 - 2.0**-20])
@pytest.mark.parametrize("offset", [0, 3, 500])
def test_where_the_bias_takes_nearly_all_of_it(half, near, offset, order, assert_close):
    """What is left of float32's digits would not be enough for a half: these elements are computed in float64."""
    dtype, _ = half
    x = (np.random.default_rng(3).normal(size=(40, 200)) + offset).astype(dtype)
    weight = np.linspace(0.5, 40, 200, dtype=np.float32)
    for r in (0, 7):
        wide = nk.layer_norm(x.astype(np.float64), 200, weight.astype(np.float64), backend="numpy")
        bias = (-near * wide[r]).astype(np.float32)
        y = nk.layer_norm(np.asarray(x, order=order), 200, weight, bias, backend="numba")
        assert_close(y, wide + bias)
        bias = np.full(1, -near * wide[r, 50] / weight[50], np.float32)
        y = nk.instance_norm(np.asarray(x[:, None], order=order), bias=bias, backend="numba")
        assert_close(y[:, 0], wide / weight + bias)


@pytest.mark.parametrize("mean", [0.0, 1e3, -3e38, 1e36, 2e37])
@pytest.mark.parametrize("var", [1e-4, 1.0, 1e20, 1e60])
def test_given_statistics_at_the_edges_of_the_range(half, mean, var):
    """What float32 cannot hold on the way is seen from the factors of a row, in rows as in columns."""
    dtype, _ = half
    for value in (0.0, 1.0, -5e4, 3e38, 1e-39, np.inf):
        for factor in (0.0, 1.0, 1e-30, 2e-3):
            with np.errstate(all="ignore"):
                x = np.full((1, 2, 33), value).astype(dtype)
                x[0, 0, 3] = 1
                weight, bias = np.full(2, factor).astype(dtype), np.full(2, 0.25).astype(dtype)
                given, rest = (np.full(2, mean), np.full(2, var), weight, bias, False), {"eps": 0.0}
                expected = nk.instance_norm(x, *given, backend="numpy", **rest)
                y = nk.instance_norm(x, *given, backend="numba", **rest)
                last = nk.instance_norm(np.moveaxis(x, 1, -1), *given, backend="numba", channel_axis=-1, **rest)
            np.testing.assert_array_equal(np.moveaxis(last, -1, 1).astype(np.float64), y.astype(np.float64))
            tolerance = {"rtol": 2.0**-6 if half is HALVES["bfloat16"] else 2.0**-9, "atol": 1e-7}
            np.testing.assert_allclose(y.astype(np.float64), expected.astype(np.float64), **tolerance)


@pytest.mark.parametrize("n", [1 << 16, 1000, 17, 1])
@pytest.mark.parametrize("half", HALVES)
def test_weights_become_float32_as_numpy_makes_them(half, n):
    every = ALL[-n:].view(HALVES[half][0])
    got = converted(every, np.dtype(np.float32))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, every.astype(np.float32))
    assert got.dtype == np.float32


@pytest.mark.parametrize("bias", [0.0, 1e-40])
@pytest.mark.parametrize("half", HALVES)
def test_outputs_that_are_zero_or_subnormal(half, bias):
    """The CPU's rounding to bfloat16 makes zeros of subnormal numbers."""
    dtype, bits = HALVES[half]
    x = np.random.default_rng(0).standard_normal((20, 640)).astype(dtype)
    x[3], x[7, ::2] = 5, 0  # all zeros, and many
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    weight = np.tile([1.0, smallest / 8, 0.0, smallest], 160).astype(np.float32)
    y = nk.layer_norm(x, 640, weight, np.full(640, bias, np.float32), backend="numba")
    expected = nk.layer_norm(x, 640, weight, np.full(640, bias, np.float32), backend="numpy")
    assert (np.abs(y.astype(np.float64)) < smallest).sum() > 20 * 160
    apart = np.abs(y.view(bits).astype(np.int64) - expected.view(bits).astype(np.int64))
    assert (apart[(y != 0) | (expected != 0)] <= 1).all()


def test_sums_of_bfloat16_are_those_of_the_same_float32():
    """Even elements and odd ones are summed in lanes of their own, and put in order in the end."""
    for rows in (1, 7):  # alone, and as a group
        x = np.random.default_rng(rows).normal(3, 1, (rows, 1037)).astype(ml_dtypes.bfloat16)
        *_, mean, rstd = nk.layer_norm(x, return_stats=True, backend="numba")
        *_, mean32, rstd32 = nk.layer_norm(x.astype(np.float32), return_stats=True, backend="numba")
        np.testing.assert_array_equal(mean, mean32)
        np.testing.assert_array_equal(rstd, rstd32)

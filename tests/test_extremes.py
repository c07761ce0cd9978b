"""The ends of the range: an engine gives what the formula gives, not what overflows on the way to it."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from normkit.backends import numpy_backend

import normkit as nk

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
TOLERANCE = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 4e-7, "float64": 2e-14}
ONNX = nk.FallbackPolicy.onnx()
LAYOUTS = {
    "rows": np.array,
    "columns": lambda x: np.ascontiguousarray(np.moveaxis(x, 1, -1)).transpose(0, 2, 1),
    "buffer": lambda x: np.repeat(x, 2, -1)[..., ::2],
}


def parameter(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def numbers(dtype):
    """Of either sign and every size that float32, or float64, knows, but for subnormal ones."""
    info = np.finfo(parameter(dtype))
    powers = 10.0 ** np.arange(-300 if dtype == np.float64 else -36, 309 if dtype == np.float64 else 38, 12)
    return np.concatenate([powers, [1, 0.1, 3, float(info.max), np.inf, 0]]) * np.array([[1], [-1]])


def expected(x, mean, var, weight, bias, eps):
    """The formula on (sets, elements), and how large its terms are, in more than float64 where long double is that."""
    with np.errstate(all="ignore"):
        d = (x.astype(np.float64) - mean).astype(np.longdouble)  # what overflows here, overflows everywhere
        biased = var.astype(np.longdouble) + eps
        y = np.where(biased == 0, d - d, d / np.where(biased == 0, 1, np.sqrt(biased))) * weight
        lost = np.where(biased == 0, 0, np.abs(mean) / np.where(biased == 0, 1, np.sqrt(biased))) * np.abs(weight)
        return y + bias, np.abs(y) + np.abs(bias) + np.where(np.isfinite(lost), lost, 0)


def check(y, exact, terms):
    """Equal to the precision of y's dtype, where its range ends too."""
    info, tolerance = ml_dtypes.finfo(y.dtype), TOLERANCE[y.dtype.name]
    got = y.astype(np.float64).astype(np.longdouble)
    most, least = float(info.max), 2 * float(info.smallest_subnormal)
    with np.errstate(all="ignore"):
        beyond = np.abs(exact) > most * (1 - tolerance)
        near = np.abs(got - exact) <= tolerance * np.where(np.isfinite(terms), terms, 0) + least
        fine = np.where(beyond, (np.sign(got) == np.sign(exact)) & (np.abs(got) >= most * (1 - 2 * tolerance)), near)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    bad = ~(fine | np.isnan(exact))
    assert not bad.any(), (got[bad], exact[bad], np.argwhere(bad))


def given_calls(dtype):
    """Random sets of x, mean, var, weight, bias, and eps, of which nothing fits together."""
    every = numbers(dtype).ravel()
    positive = np.abs(every)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sets = 8
        with np.errstate(over="ignore"):
            x = rng.choice(every, (sets, 19)).astype(dtype)
            x[:, ::3] = rng.normal(size=(sets, 7)).astype(dtype)
            if seed % 2:
                x[0, 0] = np.nan
        mean = rng.choice(every if seed % 3 else [0.0, 1e-3, 2.0, -1e35], (sets, 1))
        var = rng.choice(positive if seed % 4 else [4.0, 0.01], (sets, 1))
        weight, bias = (rng.choice(every if seed % k else [1.0, -2.0, 0.5], (sets, 1)) for k in (5, 7))
        for at, p in enumerate((mean, var, weight, bias)):
            p[at + 1] = np.nan if seed % 2 else p[at + 1]
        yield x, mean, var, weight.astype(parameter(dtype)), bias.astype(parameter(dtype)), rng.choice([0, 0, 1e-5, 1e30])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_statistics(dtype):
    for x, mean, var, weight, bias, eps in given_calls(dtype):
        y, terms = expected(x, mean, var, weight, bias, eps)
        for put in LAYOUTS.values():
            got = nk.instance_norm(
                put(x[None]), mean.ravel(), var.ravel(), weight.ravel(), bias.ravel(), False, eps=eps, backend="numba"
            )
            check(got[0], y, terms)


def sets_of_all_sizes(dtype, seed, sets=8, n=19):
    """x whose deviations differ from set to set, as far as float64 can tell their squares."""
    rng = np.random.default_rng(seed)
    powers = {"float16": range(-2, 3), "float64": range(-140, 150, 12)}.get(dtype.name, range(-30, 38, 4))
    sizes = 10.0 ** rng.choice(list(powers), (sets, 1))
    with np.errstate(over="ignore"):
        return (rng.uniform(-1, 1, (sets, n)) * sizes).astype(dtype)


@pytest.mark.parametrize("eps", [0, 1e-300, 1e-5, 1e30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_and_bias_of_a_set(dtype, eps):
    every = numbers(dtype).ravel()
    for seed in range(12):
        x = sets_of_all_sizes(dtype, seed)
        x[3] = x[3, 0]  # no deviation
        rng = np.random.default_rng(100 + seed)
        weight = rng.choice(every, (len(x), 1)).astype(parameter(dtype))
        bias = rng.choice(every if seed % 2 else [0.0, 1.0], (len(x), 1)).astype(parameter(dtype))
        mean, _, var = numpy_backend.moments(x.astype(np.float64), (1,))
        y, terms = expected(x, mean, var, weight, bias, eps)
        for put in LAYOUTS.values():
            got = nk.instance_norm(put(x[None]), weight=weight.ravel(), bias=bias.ravel(), eps=eps, backend="numba")
            check(got[0], y, terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_and_bias_of_an_element(dtype):
    every = numbers(dtype).ravel()
    for seed, eps in itertools.product(range(12), [0, 1e-5]):
        x = sets_of_all_sizes(dtype, seed)
        x[3] = x[3, 0]
        rng = np.random.default_rng(seed)
        weight = rng.choice(every, x.shape[1]).astype(parameter(dtype))
        bias = rng.choice(every if seed % 2 else [0.0, 1.0], x.shape[1]).astype(parameter(dtype))
        mean, _, var = numpy_backend.moments(x.astype(np.float64), (1,))
        y, terms = expected(x, mean, var, weight, bias, eps)
        for there in (x, np.asfortranarray(x), np.repeat(x, 2, -1)[:, ::2]):
            check(nk.layer_norm(there, x.shape[1], weight, bias, eps=eps, backend="numba"), y, terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_leaves_no_statistics_wherever_it_is(backend, dtype, value):
    for n, at in itertools.product([5, 33, 4099, 9000], [0, 1, -1, "middle"]):
        x = np.random.default_rng(0).normal(size=(5, n)).astype(dtype)
        x[2, n // 2 if at == "middle" else at] = value
        for there, axis in ((x, 1), (x[2:3], 1), (np.ascontiguousarray(x.T), 0)):
            y, mean, rstd = nk.layer_norm(there, axis=axis, return_stats=True, backend=backend)
            lost = [True] if there.shape[0] == 1 else [False, False, True, False, False]
            for a in (mean, rstd):
                assert np.isnan(a).ravel().tolist() == lost
            assert np.isnan(y).any(axis).tolist() == np.isnan(y).all(axis).tolist() == lost


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_deviation_and_no_eps_leave_0_and_what_is_no_number(run, same_bits, dtype):
    """Of what a mask hides, too: a deviation counts as 0 if it is finite, and 0 has the sign that the weight gives it."""
    x = np.array([[1, np.nan, np.inf, 1], [1, 2, 3, 4], [2, -np.inf, 7, 2], [5, 5, 5, 5]]).astype(dtype)
    mask = np.array([[1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1]], bool)
    weight, bias = np.array([1, -2, 3, 4.0]), np.array([0, 1, 2, 3.0])
    for affine in ({}, {"weight": weight}, {"bias": bias}, {"weight": weight, "bias": bias}):
        expected = nk.layer_norm(x, 4, **affine, eps=0, mask=mask, backend="numpy")
        assert np.isnan(expected).tolist() == (~np.isfinite(x)).tolist()
        for put in (np.array, np.asfortranarray, lambda x: np.repeat(x, 2, -1)[:, ::2]):
            y = np.array(run("layer_norm", put(x), 4, **affine, eps=0, mask=mask), order="C")
            assert np.isnan(y).tolist() == np.isnan(expected).tolist()
            for i in (0, 2, 3):
                same_bits(y[i][np.isfinite(x[i])], expected[i][np.isfinite(x[i])])
    given = np.ones(2), np.zeros(2), None, None, False
    y = run("instance_norm", np.array([[[1, np.nan], [np.inf, 2]]]).astype(dtype), *given, eps=0)
    np.testing.assert_array_equal(y.astype(np.float64), [[[0, np.nan], [np.nan, 0]]])


@pytest.mark.parametrize("weight", [None, 1.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identity_keeps_the_sign_of_zero(run, same_bits, dtype, weight):
    x = np.array([[-0.0, 0.0, 1.5, -2.0]] * 20).astype(dtype)
    policy = nk.FallbackPolicy(single_element="identity")
    affine = None if weight is None else np.full(4, weight)
    expected = x if weight is None else x * dtype.type(weight)
    for put in (np.array, np.asfortranarray, lambda x: np.repeat(x, 2, 0)[::2]):
        same_bits(np.array(run("instance_norm", put(x)[..., None], weight=affine, policy=policy)[..., 0], order="C"), expected)


SIGNALLING = {"float16": 0x7D00, "bfloat16": 0x7FA0, "float32": 0x7FA00000, "float64": 0x7FF4000000000000}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_signalling_nan_is_one_nan_more(run, dtype):
    signalling = np.full((3, 4, 6), SIGNALLING[dtype.name], f"u{dtype.itemsize}").view(dtype)
    x = np.arange(72).reshape(3, 4, 6).astype(dtype)
    x[1, 2:] = signalling[1, 2:]
    ones = np.ones(4)
    with np.errstate(all="raise"):
        for there in (x, np.asfortranarray(x), np.repeat(x.view(f"u{x.itemsize}"), 2, -1).view(dtype)[..., ::2]):
            for options in ({}, {"return_stats": True}, {"mask": np.arange(6) > 2}, {"weight": signalling[0, 0]}):
                run("layer_norm", there, **options)
            y = run("instance_norm", there, signalling[0, :, 0].copy(), ones.astype(dtype), use_input_stats=False)
            assert np.isnan(y).all()
            y = run("instance_norm", there, signalling[0, :, 0].copy(), ones.astype(dtype), signalling[0, :, 0], ones)
            assert np.isnan(y).all()

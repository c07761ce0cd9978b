"""The GPU backend's formula in array-API terms, on NumPy and on a library that refuses everything else."""

import numpy as np
import oracle
import pytest
from normkit.backends.cupy_backend import reference

from normkit import validation
from normkit.problem import Operands


@pytest.fixture(params=["numpy", "array_api_strict"])
def xp(request):
    if request.param == "array_api_strict":
        return pytest.importorskip("array_api_strict", reason="needs array-api-strict")
    if not hasattr(np, "astype"):
        pytest.skip("this NumPy is older than the array API's astype")
    return np


@pytest.fixture
def normalize(xp):
    """Validate on NumPy, compute with xp, return NumPy."""

    def normalize(op, x, **options):
        problem, operands, running = getattr(validation, op)(x, **options)
        if problem.statistics == "given":
            operands.mean, operands.var = (
                s.astype(np.float64).reshape(problem.affine_shape) for s in (running.mean, running.var)
            )
        names = ("x", "weight", "bias", "mean", "var", "mask")
        arrays = {name: getattr(operands, name) for name in names}
        moved = {name: None if a is None else xp.asarray(np.ascontiguousarray(a)) for name, a in arrays.items()}
        with np.errstate(all="ignore"):
            result = reference.normalize(xp, problem, Operands(**moved))
        return tuple(np.asarray(a) for a in result)

    return normalize


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2), (2, 0), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_layer_norm(normalize, axis, dtype, masked):
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 4, 5)).astype(dtype)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shape = tuple(x.shape[a] for a in axes)
    weight, bias = random.standard_normal(shape).astype(np.float32), random.standard_normal(shape)
    mask = random.random((4, 5)) > 0.4 if masked else None
    y, mean, var = normalize("layer_norm", x, axis=axis, weight=weight, bias=bias, mask=mask)
    expected, *stats = oracle.layer_norm(x, axes, weight, bias, mask=mask)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mean, stats[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(1 / np.sqrt(var + 1e-5), stats[1], rtol=1e-12)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("use_input_stats", [True, False])
def test_instance_norm(normalize, channel_axis, use_input_stats):
    random = np.random.default_rng(1)
    x = random.standard_normal((2, 3, 4, 3)).astype(np.float32)
    weight, mean, var = random.standard_normal(3), random.standard_normal(3), random.random(3)
    options = {} if use_input_stats else {"running_mean": mean, "running_var": var}
    y, *_ = normalize("instance_norm", x, weight=weight, channel_axis=channel_axis, use_input_stats=use_input_stats, **options)
    running = None if use_input_stats else (mean, var)
    expected, *_ = oracle.instance_norm(x, weight, channel_axis=channel_axis, running=running)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_a_constant_has_exactly_no_variance(normalize):
    y, mean, var = normalize("layer_norm", np.full((2, 7), 0.1, np.float32), eps=0.0)
    assert np.all(y == 0)
    assert np.all(var == 0)
    assert np.all(mean == np.float32(0.1))


def test_an_offset_costs_nothing(normalize):
    x = (np.random.default_rng(2).standard_normal((3, 1000)) + 1e6).astype(np.float32)
    y, *_ = normalize("layer_norm", x, eps=0.0)
    wide = x.astype(np.longdouble)
    wide -= wide.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(y, (wide / np.sqrt((wide**2).mean(axis=1, keepdims=True))).astype(float), rtol=0, atol=1e-9)


def test_bad_values_stay_in_their_own_row(normalize):
    x = np.ones((3, 4), np.float32)
    x[1, 2] = np.nan
    x[2, 0] = np.inf
    y, *_ = normalize("layer_norm", x)
    assert np.isnan(y).all(axis=1).tolist() == [False, True, True]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing(normalize, shape):
    y, mean, var = normalize("layer_norm", np.empty(shape))
    assert y.shape == shape
    assert mean.shape == var.shape == (shape[0], 1)


def test_nothing_under_the_mask(normalize):
    y, mean, _ = normalize("layer_norm", np.ones((2, 3)), mask=np.array([[True], [False]]))
    assert np.isnan(mean).ravel().tolist() == [False, True]
    assert np.isnan(y).all(axis=1).tolist() == [False, True]

"""layer_norm and instance_norm give the right numbers: NumPy against the oracle, every backend against NumPy and the oracle."""

import numpy as np
import oracle
import pytest
from numpy.testing import assert_array_equal

import normkit as nk
from normkit import validation

ROWS = [  # shape of x, normalized_shape, the axes that it means
    ((1, 2), None, (1,)),
    ((5,), 5, (0,)),
    ((3, 4), None, (1,)),
    ((2, 3, 4), (3, 4), (1, 2)),
    ((2, 3, 4), [2, 3, 4], (0, 1, 2)),
    ((4, 1, 3), (1, 3), (1, 2)),
    ((7, 64), 64, (1,)),
    ((3, 1001), None, (1,)),
    ((2, 2, 1, 3, 2), (3, 2), (3, 4)),
    ((2, 1, 2, 1, 2, 1, 2, 3), (2, 3), (6, 7)),
    ((0, 4), None, (1,)),
    ((2, 0, 4), 4, (2,)),
    ((3, 0), None, (1,)),
]
AXES = [
    ((4, 5), 0),
    ((3, 4), -1),
    ((2, 3, 4), 1),
    ((2, 3, 4), (0, 2)),
    ((2, 3, 4), (2, 0)),
    ((2, 3, 4, 2), [3, 1]),
    ((3, 2), (1, 0)),
]
INSTANCES = [
    (2, 3, 5),
    (1, 1, 2),
    (1, 3, 1, 2),
    (2, 3, 4, 5),
    (2, 3, 2, 2, 3),
    (2, 1, 1, 1, 2, 1, 1, 3),
    (2, 3, 1001),
    (0, 3, 4),
    (2, 0, 4),
    (2, 3, 0),
]
AFFINE = [(False, False), (True, False), (False, True), (True, True)]


def values(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(3, 2, shape).astype(dtype)


def parameters(shape, dtype, which=(True, True)):
    rng = np.random.default_rng(1)
    made = rng.uniform(0.5, 1.5, shape).astype(dtype), rng.uniform(-1, 1, shape).astype(dtype)
    return {name: p for name, p, there in zip(("weight", "bias"), made, which, strict=True) if there}


@pytest.mark.parametrize("which", AFFINE)
@pytest.mark.parametrize(("shape", "normalized_shape", "axes"), ROWS)
def test_layer_norm(run, assert_close, dtype, shape, normalized_shape, axes, which):
    x = values(shape, dtype)
    affine = parameters(tuple(shape[a] for a in axes), dtype, which)
    expected, *_ = oracle.layer_norm(x, axes, **affine)
    y = run("layer_norm", x, normalized_shape, **affine)
    assert y.dtype == dtype
    assert_close(y, expected)


@pytest.mark.parametrize("which", AFFINE)
@pytest.mark.parametrize(("shape", "axis"), AXES)
def test_layer_norm_over_any_axes(run, assert_close, dtype, shape, axis, which):
    x = values(shape, dtype)
    axes = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    affine = parameters(tuple(shape[a] for a in axes), dtype, which)
    expected, mean, rstd = oracle.layer_norm(x, axes, **affine)
    y, *stats = run("layer_norm", x, axis=axis, return_stats=True, **affine)
    assert_close(y, expected)
    for actual, wanted in zip(stats, (mean, rstd), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-12)


@pytest.mark.parametrize("which", AFFINE)
@pytest.mark.parametrize("shape", INSTANCES)
def test_instance_norm(run, assert_close, dtype, shape, which):
    x = values(shape, dtype)
    affine = parameters(shape[1], dtype, which)
    expected, *_ = oracle.instance_norm(x, **affine)
    y = run("instance_norm", x, **affine)
    assert y.dtype == dtype
    assert_close(y, expected)


@pytest.mark.parametrize("which", AFFINE)
@pytest.mark.parametrize("channel_axis", [-1, 2, 3])
def test_instance_norm_of_other_channel_axes(run, assert_close, dtype, channel_axis, which):
    x = values((2, 3, 4, 5), dtype)
    affine = parameters(x.shape[channel_axis], dtype, which)
    expected, mean, rstd = oracle.instance_norm(x, **affine, channel_axis=channel_axis)
    y, *stats = run("instance_norm", x, channel_axis=channel_axis, return_stats=True, **affine)
    assert_close(y, expected)
    for actual, wanted in zip(stats, (mean, rstd), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-12)


def test_weight_alone_gives_the_normalized_shape(run, same_bits):
    x, affine = values((2, 3, 4), np.float32), parameters((3, 4), np.float32)
    same_bits(run("layer_norm", x, **affine), run("layer_norm", x, (3, 4), **affine))


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
@pytest.mark.parametrize("eps", [0, 1e-12, 1e-5, np.float32(0.1), 10])
def test_eps(run, assert_close, dtype, op, eps):
    x = values((2, 3, 4), dtype)
    expected = oracle.layer_norm(x, (2,), eps=eps) if op == "layer_norm" else oracle.instance_norm(x, eps=eps)
    assert_close(run(op, x, eps=eps), expected[0])


def test_arguments_by_position_as_torch_has_them(run, same_bits):
    x, affine = values((2, 3, 4), np.float32), parameters(3, np.float32)
    mean, var = np.full(3, 0.5, np.float32), np.full(3, 2, np.float32)
    by_name = run(
        "instance_norm", x, running_mean=mean, running_var=var, use_input_stats=False, momentum=0.2, eps=0.1, **affine
    )
    same_bits(run("instance_norm", x, mean, var, affine["weight"], affine["bias"], False, 0.2, 0.1), by_name)
    row = parameters(4, np.float32)
    same_bits(run("layer_norm", x, (4,), row["weight"], row["bias"], 0.1), run("layer_norm", x, 4, eps=0.1, **row))


@pytest.mark.parametrize("parameter_dtype", ["float32", "float64", "float16", ">f4", ">f8"])
def test_weight_and_bias_of_another_dtype(run, assert_close, dtype, parameter_dtype):
    x = values((2, 3, 4), dtype)
    affine = parameters(3, parameter_dtype)
    assert_close(run("instance_norm", x, **affine), oracle.instance_norm(x, **affine)[0])
    affine = parameters((3, 4), parameter_dtype)
    assert_close(run("layer_norm", x, **affine), oracle.layer_norm(x, (1, 2), **affine)[0])
    mixed = {"weight": affine["weight"], "bias": affine["bias"].astype(np.float64)}
    assert_close(run("layer_norm", x, **mixed), oracle.layer_norm(x, (1, 2), **mixed)[0])


def test_every_layout(run, layout, assert_close, dtype):
    x = layout(values((4, 3, 5), dtype))
    before = x.tobytes()
    row, channel = parameters(5, dtype), parameters(3, dtype)
    for y, expected in (
        (run("layer_norm", x, **row), oracle.layer_norm(x, (2,), **row)),
        (run("layer_norm", x, (3, 5)), oracle.layer_norm(x, (1, 2))),
        (run("layer_norm", x, axis=0), oracle.layer_norm(x, (0,))),
        (run("instance_norm", x, **channel), oracle.instance_norm(x, **channel)),
    ):
        assert y.dtype == dtype  # of native byte order
        assert y.flags.writeable
        assert_close(y, expected[0])
    assert x.tobytes() == before


def test_parameters_of_every_layout(run, layout, assert_close, dtype):
    x = values((2, 3, 4), dtype)
    parts = {name: layout(p) for name, p in parameters((3, 4), dtype).items()}
    if parts["weight"].size:
        assert_close(run("layer_norm", x, **parts), oracle.layer_norm(x, (1, 2), **parts)[0])
    parts = {name: layout(p) for name, p in parameters(3, dtype).items()}
    if parts["weight"].size:
        assert_close(run("instance_norm", x, **parts), oracle.instance_norm(x, **parts)[0])


def test_the_result_has_the_memory_order_of_x(run):
    x = values((2, 3, 4), np.float32)
    assert run("layer_norm", x).flags.c_contiguous
    assert run("layer_norm", np.asfortranarray(x)).flags.f_contiguous
    memory = x.transpose(1, 2, 0)
    assert run("instance_norm", memory).strides == memory.strides


# out


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_out_receives_the_result_and_is_returned(run, same_bits, op, dtype):
    x = values((2, 3, 4), dtype)
    before, expected, out = x.copy(), run(op, x), np.empty_like(x)
    assert run(op, x, out=out) is out
    same_bits(out, expected)
    same_bits(x, before)


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_in_place(run, same_bits, op, dtype):
    x = values((3, 4, 50), dtype)
    expected = run(op, x)
    assert run(op, x, out=x) is x
    same_bits(x, expected)


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_in_place_through_another_view(run, same_bits, op, dtype):
    x = values((3, 4, 50), dtype)
    expected, view = run(op, x), x[:]
    assert run(op, x, out=view) is view
    same_bits(x, expected)


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
@pytest.mark.parametrize("by", [1, 3, 40, -1, -40])
def test_out_that_overlaps_x(run, same_bits, op, dtype, by):
    shape, n = (2, 3, 40), 240
    memory = values(n + abs(by), dtype)
    x = memory[max(-by, 0) : max(-by, 0) + n].reshape(shape)
    out = memory[max(by, 0) : max(by, 0) + n].reshape(shape)
    expected = run(op, x.copy())
    run(op, x, out=out)
    same_bits(out, expected)


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_out_that_is_x_reversed_or_transposed(run, same_bits, op, dtype):
    for view in (lambda x: x[::-1], lambda x: x.transpose(2, 1, 0), lambda x: x[..., ::-1]):
        x = values((4, 3, 4), dtype)
        expected = run(op, x.copy())
        out = view(x)
        run(op, x, out=out)
        same_bits(out, expected)


def test_out_that_overlaps_a_parameter(run, same_bits, dtype):
    for name in ("weight", "bias"):
        x, memory = values((3, 4), dtype), values((3, 4), dtype, 2)
        expected = run("layer_norm", x, 4, **{name: memory[1].copy()})
        run("layer_norm", x, 4, **{name: memory[1]}, out=memory)
        same_bits(memory, expected)
        square = values((3, 4), dtype)
        expected = run("layer_norm", square.copy(), 4, **{name: square[1].copy()})
        run("layer_norm", square, 4, **{name: square[1]}, out=square)
        same_bits(square, expected)


def test_out_that_overlaps_the_running_statistics(run, same_bits, dtype):
    x, memory = values((2, 3, 4), dtype), values((2, 3, 4), dtype, 2)
    mean, var = memory[0, :, 0], np.abs(memory[1, :, 0])
    expected = run("instance_norm", x, mean.copy(), var.copy(), use_input_stats=False)
    run("instance_norm", x, mean, var, use_input_stats=False, out=memory)
    same_bits(memory, expected)


def test_out_of_every_layout(run, layout, assert_close, dtype):
    x = values((4, 3, 5), dtype)
    out = layout(np.zeros_like(x))
    if out.size == 0:
        x = x[:0]
    for op, expected in (("layer_norm", oracle.layer_norm(x, (2,))), ("instance_norm", oracle.instance_norm(x))):
        if not out.flags.writeable:
            with pytest.raises(nk.InputValueError, match="out is read-only"):
                run(op, x, out=out)
            assert not out.any()
            continue
        assert run(op, x, out=out) is out
        assert_close(out.astype(dtype), expected[0])


def test_out_leaves_its_neighbours_alone(run, dtype):
    x, memory = values((4, 3, 5), dtype), np.full((6, 5, 9), 7, dtype)
    inner = (slice(1, 5), slice(1, 4), slice(2, 7))
    for op in ("layer_norm", "instance_norm"):
        run(op, x, out=memory[inner])
        outside = np.ones(memory.shape, bool)
        outside[inner] = False
        assert (memory[outside] == 7).all()


# statistics


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_return_stats(run, assert_close, same_bits, op, dtype):
    x = values((2, 3, 40), dtype)
    expected, mean, rstd = oracle.layer_norm(x, (2,)) if op == "layer_norm" else oracle.instance_norm(x)
    y, *stats = run(op, x, return_stats=True)
    assert_close(y, expected)
    same_bits(y, run(op, x))
    for actual, wanted in zip(stats, (mean, rstd), strict=True):
        assert actual.shape == (2, 3, 1)
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, wanted, rtol=1e-13)


def test_return_stats_with_out_in_place(run, same_bits):
    x = values((2, 30), np.float32)
    y, mean, rstd = run("layer_norm", x, return_stats=True)
    out, *stats = run("layer_norm", x, return_stats=True, out=x)
    assert out is x
    for a, b in zip((out, *stats), (y, mean, rstd), strict=True):
        same_bits(a, b)


def test_return_stats_of_a_constant_with_eps_0(run):
    y, mean, rstd = run("layer_norm", np.full((2, 5), 3, np.float32), eps=0, return_stats=True)
    assert_array_equal(y, np.zeros((2, 5)))
    assert_array_equal(mean, np.full((2, 1), 3))
    assert_array_equal(rstd, np.zeros((2, 1)))


@pytest.mark.parametrize("running_dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [0, 0.1, 1, np.float32(0.3)])
def test_running_statistics_are_updated(run, same_bits, dtype, running_dtype, momentum):
    x = values((4, 3, 5, 2), dtype)
    mean, var = (p.astype(running_dtype) for p in (values(3, dtype, 5), np.abs(values(3, dtype, 6))))
    expected = oracle.running_after(x, mean, var, float(momentum))
    plain = run("instance_norm", x)
    same_bits(run("instance_norm", x, mean, var, momentum=momentum), plain)
    for actual, wanted in zip((mean, var), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-6 if running_dtype == "float32" else 1e-13)


def test_running_statistics_of_channels_last(run):
    x = values((4, 5, 3), np.float64)
    mean, var = np.zeros(3), np.ones(3)
    expected = oracle.running_after(x, mean, var, 0.1, channel_axis=2)
    run("instance_norm", x, mean, var, channel_axis=-1)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-13)
    np.testing.assert_allclose(var, expected[1], rtol=1e-13)


def test_running_statistics_in_place_and_with_stats(run):
    x = values((4, 3, 5), np.float64)
    mean, var = np.zeros(3), np.ones(3)
    expected = oracle.running_after(x, mean, var, 0.1)
    stats = oracle.instance_norm(x)[1:]
    y, *got = run("instance_norm", x, mean, var, out=x, return_stats=True)
    assert y is x
    for actual, wanted in zip((mean, var, *got), (*expected, *stats), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-13)


@pytest.mark.parametrize("which", AFFINE)
def test_running_statistics_are_used(run, assert_close, dtype, which):
    x, affine = values((2, 3, 4), dtype), parameters(3, dtype, which)
    mean, var = values(3, dtype, 5), np.abs(values(3, dtype, 6))
    before = mean.copy(), var.copy()
    expected = oracle.instance_norm(x, **affine, running=(mean, var))
    y, *stats = run("instance_norm", x, mean, var, use_input_stats=False, return_stats=True, **affine)
    assert_close(y, expected[0])
    for actual, wanted in zip(stats, expected[1:], strict=True):
        assert actual.shape == (2, 3, 1)
        np.testing.assert_allclose(actual, wanted, rtol=1e-13)
    assert_array_equal(mean, before[0])
    assert_array_equal(var, before[1])


def test_read_only_running_statistics_can_be_used(run):
    mean, var = np.zeros(3), np.ones(3)
    mean.flags.writeable = var.flags.writeable = False
    x = values((2, 3, 4), np.float64)
    np.testing.assert_allclose(run("instance_norm", x, mean, var, use_input_stats=False, eps=0), x)


def test_an_empty_batch_leaves_running_statistics_alone(run):
    mean, var = np.full(3, 5.0), np.full(3, 6.0)
    for shape in ((0, 3, 4), (2, 3, 0)):
        assert run("instance_norm", np.zeros(shape, np.float32), mean, var).shape == shape
    assert_array_equal(mean, [5, 5, 5])
    assert_array_equal(var, [6, 6, 6])


def test_one_spatial_element_with_running_statistics_as_they_are_given(run):
    x = values((2, 3, 1, 1), np.float64)
    y = run("instance_norm", x, np.zeros(3), np.ones(3), use_input_stats=False, eps=0)
    np.testing.assert_allclose(y, x)


def test_extreme_statistics_leak_no_warnings(run):
    x = np.array([[[1e300, 1e300, 0, 1], [np.inf, 0, 0, 0], [np.nan, 0, 0, 0]]])
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    with pytest.warns(nk.RunningStatsWarning, match="running_mean has become infinite in 1 of 3 channels") as told:
        run("instance_norm", x, mean, var, return_stats=True)
    assert len(told) == 1
    run("instance_norm", x, mean, np.full(3, -1.0), use_input_stats=False, return_stats=True)
    run("instance_norm", x, np.zeros(3), np.zeros(3), momentum=0, eps=0)


# NaN, Inf, constants, extremes


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [3, 64, 1001])
def test_poison_stays_in_its_own_group(run, same_bits, dtype, poison, n):
    x = values((2, 3, n), dtype)
    clean = {op: run(op, x) for op in ("layer_norm", "instance_norm")}
    for at in (0, n // 2, n - 1):
        poisoned = x.copy()
        poisoned[1, 1, at] = poison
        for op, expected in clean.items():
            y, mean, rstd = run(op, poisoned, return_stats=True)
            assert np.isnan(y[1, 1]).all()
            assert not np.isfinite(mean[1, 1]).any()
            assert np.isnan(rstd[1, 1]).all()
            healthy = np.ones((2, 3), bool)
            healthy[1, 1] = False
            same_bits(y[healthy], expected[healthy])


def test_poison_with_given_statistics_stays_in_its_element(run, dtype):
    """The statistics are finite, so an infinity is one afterwards, as the formula has it."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, mean, var = rng.normal(size=(2, 3, 20)).astype(dtype), rng.normal(size=3), rng.uniform(0.5, 2, 3)
        x[0, 1, 2], x[1, 2, 19], x[1, 0, 0] = np.inf, -np.inf, np.nan
        y = run("instance_norm", x, mean, var, use_input_stats=False)
        assert_array_equal(np.isposinf(y), np.isposinf(x))
        assert_array_equal(np.isneginf(y), np.isneginf(x))
        assert_array_equal(np.isnan(y), np.isnan(x))


def test_poisoned_parameters_stay_in_place(run):
    weight, bias = np.array([1, np.nan, 1, 1], np.float32), np.array([0, 0, np.inf, 0], np.float32)
    y = run("layer_norm", values((3, 4), np.float32), weight=weight, bias=bias)
    assert_array_equal(np.isnan(y), np.broadcast_to([False, True, False, False], (3, 4)))
    assert_array_equal(np.isposinf(y), np.broadcast_to([False, False, True, False], (3, 4)))


@pytest.mark.parametrize("eps", [0, 1e-5])
@pytest.mark.parametrize("n", [2, 3, 7, 16, 1000, 4099])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.0, 1e30, 3e-40])
def test_a_constant_gives_the_bias(run, dtype, constant, n, eps):
    x = np.full((2, 2, n), constant, dtype)
    bias = parameters(2, dtype)["bias"]
    y = run("instance_norm", x, eps=eps, bias=bias)
    assert_array_equal(y, np.broadcast_to(bias[:, None], x.shape))
    assert_array_equal(run("layer_norm", x, eps=eps), np.zeros_like(x))


@pytest.mark.parametrize("scale", [1e-35, 1e-18, 1e18, 1e35])
def test_tiny_and_huge_values(run, assert_close, dtype, scale):
    x = (values((3, 100), np.float64) * scale).astype(dtype)
    assert_close(run("layer_norm", x, eps=0), oracle.layer_norm(x, (1,), eps=0)[0])


def test_one_outlier(run, assert_close):
    x = values((2, 768), np.float32)
    x[0, 5] = 3e19
    assert_close(run("layer_norm", x), oracle.layer_norm(x, (1,))[0])


def test_regression_vectors_of_others(run):
    y = run("layer_norm", np.array([198, 198, 202, 202], np.float32), eps=1e-4)  # NNAPI
    np.testing.assert_allclose(y, [-1, -1, 1, 1], atol=2e-5)
    for dtype in (np.float16, np.float32, np.float64):
        y = run("layer_norm", np.full((2, 7), 1234, dtype))  # onnxruntime#21935
        assert_array_equal(y, np.zeros((2, 7)))


# half types, masks


def test_half_types(run, assert_close):
    import ml_dtypes

    for kind in (np.float16, ml_dtypes.bfloat16):
        x = values((3, 4, 50), kind)
        for affine in ({}, parameters(50, kind), parameters(50, np.float32)):
            y = run("layer_norm", x, 50, **affine)
            assert y.dtype == kind
            assert_close(y, oracle.layer_norm(x, (2,), **affine)[0])
        channel = parameters(4, kind)
        assert_close(run("instance_norm", x, **channel), oracle.instance_norm(x, **channel)[0])


def test_half_types_do_not_overflow(run, assert_close):
    x = (values((3, 500), np.float64) * 4e3).astype(np.float16)
    assert_close(run("layer_norm", x), oracle.layer_norm(x, (1,))[0])


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (2, 3, 4), (2, 1, 4)])
def test_mask(run, assert_close, dtype, shape):
    x = values((2, 3, 4), dtype)
    mask = np.random.default_rng(0).random(shape) < 0.7
    mask[..., 0] = True
    mask = mask | (shape == (3, 1))
    row, channel = parameters(4, dtype), parameters(3, dtype)
    assert_close(run("layer_norm", x, mask=mask, **row), oracle.layer_norm(x, (2,), mask=mask, **row)[0])
    y, mean, rstd = run("instance_norm", x, mask=mask, return_stats=True, **channel)
    expected = oracle.instance_norm(x, mask=mask, **channel)
    assert_close(y, expected[0])
    np.testing.assert_allclose(mean, expected[1], rtol=1e-12)
    np.testing.assert_allclose(rstd, expected[2], rtol=1e-12)


def test_mask_hides_poison(run, assert_close):
    x = values((2, 6), np.float32)
    x[0, 1], x[1, 2] = np.nan, np.inf
    mask = np.isfinite(x)
    y = run("layer_norm", x, mask=mask)
    assert np.isnan(y[0, 1])
    assert np.isposinf(y[1, 2])
    expected, *_ = oracle.layer_norm(np.where(mask, x, 0), (1,), mask=mask)
    assert_close(y[mask], expected[mask])


def test_running_statistics_of_a_mask(run):
    x = values((3, 2, 6), np.float64)
    mask = np.random.default_rng(0).random(x.shape) < 0.6
    mask[0, 0] = np.arange(6) < 1  # one element has no unbiased variance
    mask[:, 1, :3] = True
    mean, var = np.zeros(2), np.ones(2)
    expected = oracle.running_after(x, mean, var, 0.1, mask=mask)
    run("instance_norm", x, mean, var, mask=mask, policy=nk.FallbackPolicy.onnx())
    np.testing.assert_allclose(mean, expected[0], rtol=1e-13)
    np.testing.assert_allclose(var, expected[1], rtol=1e-13)


def test_mask_of_all_true_changes_nothing(run, assert_close, dtype):
    x = values((2, 3, 40), dtype)
    for op in ("layer_norm", "instance_norm"):
        assert_close(run(op, x, mask=np.True_ & np.ones(x.shape, bool)), run(op, x).astype(np.float64))


# backends


@pytest.mark.parametrize("shape", [(64,), (1, 64), (512, 768), (3, 5, 7, 11)])
def test_the_common_case_is_refused_by_nobody(backend, dtype, shape):
    x = np.zeros(shape, dtype)
    problems = [
        validation.layer_norm(x).problem,
        validation.layer_norm(x, weight=x[0], bias=x[0]).problem if x.ndim > 1 else None,
    ]
    problems += [validation.instance_norm(x, weight=x[0, :, 0, 0], bias=x[0, :, 0, 0]).problem] if x.ndim > 2 else []
    assert [nk.get_backend(backend).why_not(p) for p in problems if p is not None] == [[] for p in problems if p is not None]


@pytest.mark.parametrize("shape", [(64,), (40, 768), (6, 17, 100), (2, 3, 4, 5), (3, 70000)])
def test_backends_agree(run, assert_close, dtype, shape):
    x = values(shape, dtype)
    row = parameters(shape[-1], dtype)
    assert_close(run("layer_norm", x, **row), nk.layer_norm(x, **row, backend="numpy").astype(np.float64))
    if x.ndim > 2:
        channel = parameters(shape[1], dtype)
        assert_close(run("instance_norm", x, **channel), nk.instance_norm(x, **channel, backend="numpy").astype(np.float64))


def test_memmap(run, tmp_path, assert_close):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3, 50))
    x[...] = values((3, 50), np.float32)
    y = run("layer_norm", x)
    assert type(y) is np.ndarray
    assert_close(y, oracle.layer_norm(x, (1,))[0])
    assert run("layer_norm", x, out=x) is x
    assert_close(np.asarray(x), y.astype(np.float64))

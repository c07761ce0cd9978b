"""Laws that hold for any input, found by hypothesis; and the bits, which depend on nothing but the numbers of a set."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import normkit as nk
from normkit import validation

# Multiples of 1/8 up to 128: every shift and scale below is exact, so what a law allows is the arithmetic's error alone.
eighths = st.integers(-1024, 1024).map(lambda n: n / 8)
shapes = array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=9)
volumes = array_shapes(min_dims=3, max_dims=4, min_side=2, max_side=7)


def filled(shapes, dtype):
    return shapes.flatmap(lambda shape: arrays(dtype, shape, elements=eighths))


@pytest.fixture(scope="session", params=["layer_norm", "instance_norm"])
def op(request):
    return request.param


@pytest.fixture(scope="session")
def norm(run, op):
    return lambda x, **options: run(op, x, **options)


@given(data=st.data())
def test_mean_0_and_variance_1(norm, dtype, data):
    x = data.draw(filled(volumes, dtype))
    y, mean, rstd = norm(x, eps=0, return_stats=True)
    over = tuple(a for a in range(x.ndim) if mean.shape[a] == 1 and x.shape[a] > 1)
    y = y.astype(np.float64)
    np.testing.assert_allclose(y.mean(over), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(over), (rstd.squeeze(over) > 0) * 1.0, atol=1e-5)


@given(data=st.data(), by=eighths)
def test_a_shift_changes_nothing(norm, assert_close, dtype, data, by):
    x = data.draw(filled(volumes, dtype))
    assert_close(norm(x + dtype.type(by)), norm(x).astype(np.float64))


@given(data=st.data(), power=st.integers(-20, 20))
def test_a_scale_changes_nothing_without_eps(norm, same_bits, dtype, data, power):
    x = data.draw(filled(volumes, dtype))
    same_bits(norm(np.ldexp(x, power), eps=0), norm(x, eps=0))  # a power of two is exact all the way


@given(data=st.data())
def test_a_sign_goes_through(norm, assert_close, dtype, data):
    x = data.draw(filled(volumes, dtype))
    assert_close(norm(-x), -norm(x).astype(np.float64))


@given(data=st.data())
def test_order_within_a_set_does_not_matter(norm, assert_close, dtype, data):
    x = data.draw(filled(volumes, dtype))
    order = np.array(data.draw(st.permutations(range(x.shape[-1]))))
    assert_close(norm(x[..., order]), norm(x)[..., order].astype(np.float64))


@given(data=st.data())
def test_order_of_the_sets_does_not_matter_to_the_bit(norm, same_bits, dtype, data):
    x = data.draw(filled(volumes, dtype))
    order = np.array(data.draw(st.permutations(range(x.shape[0]))))
    same_bits(norm(np.ascontiguousarray(x[order])), norm(x)[order])


@given(data=st.data())
def test_rows_together_are_rows_apart_to_the_bit(norm, same_bits, dtype, data):
    x = data.draw(filled(volumes, dtype))
    at = data.draw(st.integers(0, len(x)))
    same_bits(np.concatenate([norm(x[:at]), norm(x[at:])]), norm(x))


@given(data=st.data())
def test_twice_is_once_without_eps(norm, dtype, data):
    x = data.draw(filled(volumes, dtype))
    once = norm(x, eps=0)
    np.testing.assert_allclose(norm(once, eps=0), once, atol=1e-5)


@given(data=st.data())
def test_weight_and_bias_apply_afterwards(norm, op, assert_close, dtype, data):
    x = data.draw(filled(volumes, dtype))
    n = x.shape[-1] if op == "layer_norm" else x.shape[1]
    weight, bias = (data.draw(arrays(dtype, n, elements=st.integers(-16, 16).map(lambda n: n / 8))) for _ in range(2))
    shape = (n,) if op == "layer_norm" else (n, *[1] * (x.ndim - 2))
    plain = norm(x.astype(np.float64))
    assert_close(norm(x, weight=weight, bias=bias), plain * weight.reshape(shape).astype(np.float64) + bias.reshape(shape))


@given(data=st.data())
def test_instance_norm_is_layer_norm_over_the_spatial_axes(run, same_bits, dtype, data):
    x = data.draw(filled(volumes, dtype))
    same_bits(run("instance_norm", x), run("layer_norm", x, x.shape[2:]))


@given(data=st.data())
def test_several_axes_are_one_flat_axis(run, same_bits, dtype, data):
    x = data.draw(filled(shapes, dtype))
    flat = run("layer_norm", x.reshape(len(x), -1)).reshape(x.shape)
    same_bits(run("layer_norm", x, x.shape[1:]), flat)


@given(data=st.data())
def test_axis_is_a_transposition(run, assert_close, dtype, data):
    x = data.draw(filled(shapes, dtype))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    last = run("layer_norm", np.ascontiguousarray(np.moveaxis(x, axis, -1)))
    assert_close(run("layer_norm", x, axis=axis), np.moveaxis(last, -1, axis).astype(np.float64))


@given(data=st.data())
def test_channels_last_is_a_transposition(run, assert_close, dtype, data):
    x = data.draw(filled(volumes, dtype))
    first = run("instance_norm", np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    assert_close(run("instance_norm", x, channel_axis=-1), np.moveaxis(first, 1, -1).astype(np.float64))


@given(data=st.data())
def test_a_mask_is_a_selection(run, assert_close, dtype, data):
    x = data.draw(filled(array_shapes(min_dims=1, max_dims=1, min_side=3, max_side=30), dtype))
    keep = data.draw(st.sets(st.integers(0, len(x) - 1), min_size=2).map(sorted))
    mask = np.isin(np.arange(len(x)), keep)
    assert_close(run("layer_norm", x, mask=mask)[mask], run("layer_norm", x[mask]).astype(np.float64))


# the bits, of every dtype; test_bits sends them through every kernel

of_every_dtype = pytest.mark.parametrize(
    "dtype", [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)], ids=str
)


def in_thousand_rows(op, dtype, n):
    x = np.random.default_rng(n).normal(3, 2, (1000, n)).astype(dtype)
    return x if op == "layer_norm" else x.reshape(100, 10, n)


@of_every_dtype
@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 64, 300, 1023])
def test_a_thousand_rows_one_at_a_time_and_all_at_once(norm, op, same_bits, dtype, threads, n):
    x = in_thousand_rows(op, dtype, n)
    policy = nk.FallbackPolicy.onnx()
    threads(1)
    expected, *expected_stats = norm(x, return_stats=True, policy=policy)
    threads(2)
    together, *stats = norm(x, return_stats=True, policy=policy)
    same_bits(together, expected)
    for a, b in zip(stats, expected_stats, strict=True):
        same_bits(a, b)
    same_bits(norm(x, policy=policy), expected)
    rows, apart = x.reshape(1000, n), expected.reshape(1000, n)
    for i in range(0, 1000, 23):
        one = rows[i : i + 1] if op == "layer_norm" else rows[i : i + 1, None]
        same_bits(norm(one, policy=policy).ravel(), apart[i])


@of_every_dtype
@pytest.mark.parametrize("shape", [(1, 1, 300_000), (2, 1, 200_000), (3, 5, 20_000), (1, 2, 4096), (1, 2, 4097)])
def test_large_rows_on_one_thread_and_two(norm, same_bits, dtype, threads, shape):
    x = np.random.default_rng(0).normal(3, 2, shape).astype(dtype)
    threads(1)
    expected, *expected_stats = norm(x, return_stats=True)
    threads(2)
    y, *stats = norm(x, return_stats=True)
    for a, b in zip((y, *stats), (expected, *expected_stats), strict=True):
        same_bits(a, b)
    same_bits(norm(x), expected)
    same_bits(np.concatenate([norm(x[i : i + 1]) for i in range(len(x))]), expected)
    same_bits(norm(x, out=x), expected)


@of_every_dtype
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 5, 33), (2, 3, 7, 9), (4, 2, 300)])
def test_the_layout_does_not_show_in_the_bits(norm, op, backend, layout, same_bits, dtype, shape):
    x = layout(np.random.default_rng(0).normal(3, 2, shape).astype(dtype))
    plain = np.array(x, dtype, order="C")
    refused = nk.get_backend(backend).why_not(getattr(validation, op)(x).problem)
    expected = getattr(nk, op)(plain, backend="numpy") if refused else norm(plain)  # `norm` checks what is said of a refusal
    same_bits(norm(x), expected)


@of_every_dtype
@pytest.mark.parametrize("offset", range(1, 9))
def test_the_alignment_does_not_show_in_the_bits(norm, same_bits, dtype, offset):
    memory = np.zeros(3 * 4 * 101 + offset, dtype)
    x = memory[offset:].reshape(3, 4, 101)
    x[...] = np.random.default_rng(0).normal(3, 2, x.shape)
    expected = norm(x.copy())
    same_bits(norm(x), expected)
    out = np.zeros_like(memory)[offset:].reshape(x.shape)
    same_bits(norm(x, out=out), expected)
    same_bits(norm(x, out=x), expected)

"""Masks: what is False does not count, whatever is there, and a set of which nothing is left is answered by the policy."""

import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import normkit as nk

SHAPE = (3, 4, 5, 6)
MASKS = [(3, 4, 5, 6), (3, 1, 5, 6), (3, 1, 1, 6), (3, 1, 5, 1), (1, 4, 5, 6), (5, 6), (6,), (1, 1, 5, 1), ()]
OPS = [
    ("layer_norm", {}),
    ("layer_norm", {"axis": 1}),
    ("layer_norm", {"axis": (0, 2)}),
    ("instance_norm", {}),
    ("instance_norm", {"channel_axis": -1}),
]


def policy(answer):
    return nk.FallbackPolicy(single_element=answer)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(3, 1, SHAPE).astype(np.float32)


@pytest.fixture
def hole(x):
    """(x with NaN under the mask, a mask that leaves nothing of channel 1 of instance 0)"""
    mask = np.ones(SHAPE, bool)
    mask[0, 1] = mask[2, 2, 1] = False
    x[~mask] = np.nan
    return x, mask


@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_only_what_is_true_counts(run, op, x, shape):
    mask = np.random.default_rng(1).random(shape) > 0.3
    mask.flat[0] = True
    y, mean, rstd = run(op, x, mask=mask, return_stats=True, policy=policy("bias"))
    axes = (3,) if op == "layer_norm" else (2, 3)
    chosen = np.where(np.broadcast_to(mask, SHAPE), x.astype(np.float64), np.nan)
    there = np.broadcast_to(np.broadcast_to(mask, SHAPE).any(axis=axes, keepdims=True), SHAPE)
    with warnings.catch_warnings(action="ignore"):  # of nothing
        expected_mean, var = np.nanmean(chosen, axis=axes, keepdims=True), np.nanvar(chosen, axis=axes, keepdims=True)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(var + 1e-5), rtol=1e-10)
    expected = (x - expected_mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y[there], expected[there], rtol=2e-6, atol=2e-6)
    assert (y[~there] == 0).all()


def test_nan_under_the_mask_does_not_leak(run, hole):
    x, mask = hole
    y, mean, _ = run("instance_norm", x, mask=mask, return_stats=True, policy=policy("bias"))
    np.testing.assert_array_equal(np.isnan(y), ~mask & (np.arange(3) != 0)[:, None, None, None])
    assert np.isnan(mean).sum() == 1


def test_sequences_of_different_lengths(run):
    lengths = np.array([5, 2, 7])
    mask = (np.arange(7) < lengths[:, None])[:, np.newaxis, :]  # (N, 1, L)
    x = np.random.default_rng(2).normal(size=(3, 4, 7)).astype(np.float32)
    y = run("instance_norm", x, mask=mask)
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(y[i, :, :n], run("instance_norm", x[i : i + 1, :, :n])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@hypothesis.given(data=st.data())
def test_all_true_is_no_mask_to_the_bit(same_bits, dtype, data):
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3, st.integers(2, 40)))
    op, options = data.draw(st.sampled_from(OPS))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(3, 1, shape).astype(dtype)
    mask = np.ones([data.draw(st.sampled_from([1, n])) for n in shape], bool)
    onnx = nk.FallbackPolicy.onnx()
    for backend in ("numba", "numpy"):
        plain = getattr(nk, op)(x, policy=onnx, backend=backend, return_stats=True, **options)
        masked = getattr(nk, op)(x, mask=mask, policy=onnx, backend=backend, return_stats=True, **options)
        for a, b in zip(plain, masked, strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("layout", [(1, 3, 260, 70), (40, 3, 20, 11)], ids=["few large sets", "many"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_and_layout_do_not_show_in_the_bits(same_bits, threads, layout, channels_last):
    rng = np.random.default_rng(3)
    x = rng.normal(3, 1, layout).astype(np.float32)
    mask = rng.random((layout[0], 1, *layout[2:])) > 0.5
    mask[..., :200, :3] = False
    expected = nk.instance_norm(x, mask=mask, backend="numba")
    if channels_last:
        x, mask = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, mask))
        expected = np.ascontiguousarray(np.moveaxis(expected, 1, -1))
    for n in (1, 2):
        threads(n)
        same_bits(nk.instance_norm(x, mask=mask, channel_axis=-1 if channels_last else 1, backend="numba"), expected)


# what is left of a set is nothing


def test_an_empty_set_raises_and_says_how_many(run, hole):
    x, mask = hole
    with pytest.raises(nk.DegenerateShapeError, match="mask is False all over 1 of the 12 sets") as caught:
        run("instance_norm", x, mask=mask)
    assert 'single_element="identity"' in str(caught.value)
    with pytest.raises(nk.DegenerateShapeError, match="12 of the 12"):
        run("instance_norm", x, mask=False & mask)


def test_in_layer_norm_padding_gets_the_bias(run, x):
    mask = np.arange(5)[:, np.newaxis] < 3  # of whole tokens
    y = run("layer_norm", x, bias=np.arange(6, dtype=np.float32), mask=mask)
    np.testing.assert_array_equal(y[:, :, 3:], np.broadcast_to(np.arange(6), (3, 4, 2, 6)))
    np.testing.assert_array_equal(y[:, :, :3], run("layer_norm", x[:, :, :3], bias=np.arange(6, dtype=np.float32)))


@pytest.mark.parametrize("in_place", [False, True])
def test_what_the_policy_puts_there(run, hole, in_place):
    x, mask = hole
    x = np.nan_to_num(x, nan=7)
    weight, bias = np.float32([1, 2, 3, 4]), np.float32([10, 20, 30, 40])
    layer = nk.layer_norm(x[:1], axis=(1, 2, 3), mask=mask[:1], backend="numpy")[0, 1] * 2 + 20
    running = np.zeros(4), np.ones(4)
    for answer, expected, more in (
        ("bias", 20, {}),
        ("identity", 7 * 2 + 20, {}),
        ("layer_norm", layer, {}),
        ("running", 7 / np.sqrt(1 + 1e-5) * 2 + 20, dict(zip(("running_mean", "running_var"), running, strict=True))),
        (lambda problem: problem.x / 2, 3.5, {}),
    ):
        given = x.copy()
        out = {"out": given} if in_place else {}
        y = run("instance_norm", given, weight=weight, bias=bias, mask=mask, policy=policy(answer), **more, **out)
        np.testing.assert_allclose(y[0, 1], np.broadcast_to(expected, (5, 6)), rtol=1e-5)
        plain = run("instance_norm", x, weight=weight, bias=bias, mask=mask, policy=policy("bias"))
        mine = np.ones(SHAPE, bool)
        mine[0, 1] = False
        np.testing.assert_array_equal(y[mine], plain[mine])


def test_an_answer_that_finds_nothing_either(run, x):
    with pytest.raises(nk.DegenerateShapeError, match="finds no element there either"):
        run("instance_norm", x, mask=np.zeros(SHAPE, bool), policy=policy("layer_norm"))
    with pytest.raises(nk.DegenerateShapeError, match="none were given"):
        run("instance_norm", x, mask=np.zeros(SHAPE, bool), policy=policy("running"))


def test_running_statistics_learn_from_what_is_there(run, hole):
    x, mask = hole
    mean, var = np.zeros(4), np.ones(4)
    run("instance_norm", x, mean, var, mask=mask, momentum=1.0, policy=policy("bias"))
    of_channel = [x[i, 1][mask[i, 1]].astype(np.float64) for i in (1, 2)]
    np.testing.assert_allclose(mean[1], np.mean([v.mean() for v in of_channel]), rtol=1e-6)
    np.testing.assert_allclose(var[1], np.mean([v.var(ddof=1) for v in of_channel]), rtol=1e-6)


def test_an_empty_batch_with_a_mask(run):
    assert run("instance_norm", np.ones((0, 3, 4), np.float32), mask=np.zeros((1, 1, 4), bool)).shape == (0, 3, 4)


def test_a_bias_beyond_the_range_of_x_is_infinite_where_the_mask_leaves_nothing(backend):
    x, bias = np.ones((2, 3), np.float32), np.array([1e300, 1.0, 2.0])
    y = nk.layer_norm(x, bias=bias, mask=np.zeros((1, 1), bool), backend=backend)
    assert y.tolist() == [[np.inf, 1, 2]] * 2

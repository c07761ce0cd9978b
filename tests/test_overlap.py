"""Arrays that lie over each other: the answer is that of arrays which do not, or an error before anything is written."""

import re

import numpy as np
import oracle
import pytest
from numpy.lib.stride_tricks import as_strided

import normkit as nk
from normkit import overlap

F32 = np.float32
X = np.random.default_rng(0).normal(3, 2, (2, 3, 4)).astype(F32)


def over(array, shape, offset=0):
    """A float32 array over the memory of another."""
    return array.reshape(-1)[offset : offset + int(np.prod(shape))].reshape(shape)


@pytest.fixture
def room():
    return np.arange(1, 65, dtype=F32)


# running arrays that are updated, and what lies over them


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("masked", [False, True])
def test_out_over_a_running_array_is_refused(backend, room, name, masked):
    out = over(room, X.shape)
    stats = {"running_mean": np.zeros(3, F32), "running_var": np.ones(3, F32)}
    good = {"out": np.empty_like(X), "mask": X > 0 if masked else None, "backend": backend}
    nk.instance_norm(X, **stats, **good)
    before, stats[name] = room.copy(), over(room, 3, 22)
    with pytest.raises(nk.InputValueError, match=rf"instance_norm: {name} shares memory with out, .*{name}\.copy\(\)") as error:
        nk.instance_norm(X, **stats, **good | {"out": out})
    np.testing.assert_array_equal(room, before)
    cure = re.search(rf"{name}\.copy\(\)", str(error.value))[0]
    stats[name] = eval(cure, {name: stats[name]})
    assert nk.instance_norm(X, **stats, **good | {"out": out}) is out


@pytest.mark.parametrize("pair", ["same", "partly", "backwards"])
def test_running_arrays_over_each_other_are_refused(room, pair):
    mean = over(room, 3)
    var = {"same": mean, "partly": over(room, 3, 2), "backwards": mean[::-1]}[pair]
    before = room.copy()
    with pytest.raises(nk.InputValueError, match=r"running_mean shares memory with running_var.*running_mean\.copy\(\)"):
        nk.instance_norm(X, mean, var)
    np.testing.assert_array_equal(room, before)
    assert nk.instance_norm(X, mean, var, use_input_stats=False).shape == X.shape  # they are read alone


def test_a_running_array_that_repeats_its_elements_is_refused():
    repeated = as_strided(np.ones(1, F32), (3,), (0,))
    for stats in ((repeated, np.ones(3)), (np.zeros(3), repeated)):
        with pytest.raises(nk.InputValueError, match=r"elements of running_\w+ lie over each other \(strides \(0,\)\)"):
            nk.instance_norm(X, *stats)
        assert nk.instance_norm(X, *stats, use_input_stats=False).shape == X.shape


def test_running_arrays_that_are_columns_of_one_table(backend):
    table = np.array([[0, 1]] * 3, F32)
    mean, var = np.zeros(3, F32), np.ones(3, F32)
    y = nk.instance_norm(X, table[:, 0], table[:, 1], backend=backend)
    np.testing.assert_array_equal(y, nk.instance_norm(X, mean, var, backend=backend))
    np.testing.assert_array_equal(table, np.stack([mean, var], 1))


def test_running_arrays_over_what_is_only_read(backend, room):
    """x, weight, bias and mask are read before the update is written."""
    apart = {"weight": np.array([1, 2, 3], F32), "bias": np.array([4, 5, 6], F32), "mask": X > 0}
    stats = np.array([1, 2, 3], F32), np.array([4, 5, 6], F32)
    expected = nk.instance_norm(X, *stats, **apart, backend=backend)
    weight, bias = apart["weight"].copy(), apart["bias"].copy()
    y = nk.instance_norm(X, weight, bias, weight, bias, mask=apart["mask"], backend=backend)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal([weight, bias], stats)
    x = over(room, X.shape)
    expected = nk.instance_norm(x.copy(), *(s := (x[0, 0, :3].copy(), x[0, 1, :3].copy())), backend=backend)
    np.testing.assert_array_equal(nk.instance_norm(x, x[0, 0, :3], x[0, 1, :3], backend=backend), expected)
    np.testing.assert_array_equal([x[0, 0, :3], x[0, 1, :3]], s)


def test_out_over_the_running_arrays_of_an_evaluation(backend, room):
    mean, var, out = over(room, 3), over(room, 3, 3), over(room, X.shape)
    expected = nk.instance_norm(X, mean.copy(), var.copy(), use_input_stats=False, backend=backend)
    for _ in range(2):
        room[:] = np.arange(1, 65)
        assert nk.instance_norm(X, mean, var, use_input_stats=False, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, expected)


def test_out_over_the_mask_of_an_update(backend, room):
    """The counts of the update are those of the mask as it was given."""
    mask = room.view(bool)[: X.size].reshape(X.shape)
    mask[...] = np.arange(4) < np.array([2, 3, 4])[:, None]
    expected, stats = [np.zeros(3), np.ones(3)], [np.zeros(3), np.ones(3)]
    y = nk.instance_norm(X, *expected, mask=mask.copy(), backend=backend)
    out = over(room, X.shape)
    assert nk.instance_norm(X, *stats, mask=mask, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(stats, expected)


def test_a_layer_whose_arrays_have_been_tied():
    layer = nk.InstanceNorm1d(3, track_running_stats=True)
    layer.running_mean = layer.running_var
    with pytest.raises(nk.InputValueError, match="running_mean shares memory with running_var"):
        layer(X)


# a running statistic that its array cannot hold


@pytest.mark.parametrize(("running", "x", "wider"), [("float16", "float32", "float32"), ("float32", "float64", "float64")])
def test_a_running_statistic_that_overflows_is_told_of(backend, running, x, wider):
    large = X.astype(x) * (1000 if running == "float16" else 1e30)
    large[:, 1] = X[:, 1]  # one channel that fits
    running_mean, running_var = np.zeros(3, running), np.ones(3, running)
    expected = [np.zeros(3), np.ones(3)]
    nk.instance_norm(large, *expected, backend=backend)
    with pytest.warns(
        nk.RunningStatsWarning, match=f"running_var has become infinite in 2 of 3 channels, as {running}"
    ) as told:
        nk.instance_norm(large, running_mean, running_var, backend=backend)
    assert [w.filename for w in told] == [__file__]
    assert np.isinf(running_var).tolist() == [True, False, True]
    cure = re.search(r"running_var = (.*) before", str(told[0].message))[1]
    assert cure == f"running_var.astype(np.{wider})"
    running_var = eval(cure, {"np": np, "running_var": np.ones(3, running)})
    nk.instance_norm(large, np.zeros(3, running), running_var, backend=backend)
    np.testing.assert_allclose(running_var, expected[1], rtol=1e-6)


def test_infinite_elements_are_no_news(backend):
    """What x itself holds stays in its channel, and is not told of."""
    x = X.copy()
    x[0, 0, 0], x[0, 1, 0] = np.inf, np.nan
    mean, var = np.zeros(3, np.float16), np.ones(3, np.float16)
    nk.instance_norm(x, mean, var, backend=backend)
    assert np.isfinite(var).tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_layers_keep_their_running_statistics_in_float32(backend, dtype, assert_close):
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    layer = nk.InstanceNorm1d(3, affine=True, track_running_stats=True, momentum=1.0, dtype=dtype)
    kinds = {name: array.dtype for name, array in layer.state_dict().items()}
    assert kinds["weight"] == kinds["bias"] == dtype
    assert kinds["running_mean"] == kinds["running_var"] == np.float32
    x = (X * 1000).astype(dtype)
    layer(x, backend=backend)
    assert (layer.running_var > 1e6).all()
    y = layer.eval()(x, backend=backend)
    assert_close(y, oracle.instance_norm(x, running=(layer.running_mean, layer.running_var))[0])


# the rules themselves


def test_shares_memory():
    room = np.arange(24.0)
    assert overlap.shares_memory(room[:5], room[4:])
    assert not overlap.shares_memory(room[:5], room[5:])
    assert overlap.may_share_memory(room[::2], room[1::2])
    assert not overlap.shares_memory(room[::2], room[1::2])
    assert not overlap.shares_memory(room[:0], room)
    hard = as_strided(np.zeros(1, np.int8), (4, 4, 4, 4, 4), (3, 5, 7, 11, 13), writeable=False)
    assert overlap.shares_memory(hard, hard[::-1, ::-1])


def test_repeats():
    room = np.zeros((4, 6))
    for array, expected in (
        (room, False),
        (room.T, False),
        (room[::-1, ::-2], False),
        (room[:, :0], False),
        (np.broadcast_to(room[0], (4, 6)), True),
        (np.lib.stride_tricks.sliding_window_view(room[0], 3), True),
    ):
        assert overlap.repeats(array) == expected

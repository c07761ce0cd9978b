"""A call that recurs gives what the first one gave, and whatever would change the answer changes the key."""

import numpy as np
import pytest

import normkit as nk
from normkit.plans import plans


@pytest.fixture(autouse=True)
def fresh():
    plans.clear()
    yield
    plans.clear()


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def test_the_second_call_is_planned_and_the_same(x):
    first = nk.layer_norm(x, backend="numba")
    assert len(plans) == 1
    assert (nk.layer_norm(x, backend="numba") == first).all()
    np.testing.assert_allclose(nk.layer_norm(x * 3 + 1, backend="numba"), nk.layer_norm(x * 3 + 1, backend="numpy"), atol=1e-6)


def test_every_argument_counts(x):
    weight = np.arange(8, dtype=np.float32)
    calls = [
        {},
        {"eps": 0.5},
        {"weight": weight},
        {"bias": weight},
        {"weight": weight, "bias": weight[::-1].copy()},
        {"weight": weight[::-1]},
        {"weight": weight.astype(np.float64)},
        {"normalized_shape": (4, 8)},
    ]
    for options in calls * 2:
        got = nk.layer_norm(x, backend="numba", **options)
        np.testing.assert_allclose(got, nk.layer_norm(x, backend="numpy", **options), rtol=1e-5, atol=1e-6)


def test_wrong_arguments_still_raise_after_right_ones(x):
    weight = np.ones(8, np.float32)
    for _ in range(2):
        nk.layer_norm(x, weight=weight)
    with pytest.raises(nk.InputValueError, match="weight has shape"):
        nk.layer_norm(x, weight=np.ones(9, np.float32))
    with pytest.raises(nk.InputTypeError, match="int32"):
        nk.layer_norm(x.view(np.int32), weight=weight)
    with pytest.raises(nk.InputTypeError, match="masked"):
        nk.layer_norm(np.ma.masked_array(x), weight=weight)
    with pytest.raises(nk.InputTypeError, match="masked"):
        nk.layer_norm(x, weight=np.ma.masked_array(weight))


def test_an_out_is_looked_at_each_time(x):
    out = np.empty_like(x)
    expected = nk.layer_norm(x)
    for _ in range(2):
        assert nk.layer_norm(x, out=out) is out
        assert (out == expected).all()
    out.flags.writeable = False
    with pytest.raises(nk.InputValueError, match="read-only"):
        nk.layer_norm(x, out=out)
    wide = np.zeros((5, 8), np.float32)
    wide[:4] = x
    nk.layer_norm(wide[:4], out=wide[1:])  # overlaps: by way of a temporary
    assert (wide[1:] == expected).all()
    again = x.copy()
    assert nk.layer_norm(again, out=again) is again
    assert (again == expected).all()


def test_the_ambient_policy_counts():
    x = np.ones((2, 3, 1, 1), np.float32)
    with nk.using(policy=nk.FallbackPolicy.onnx()):
        for _ in range(2):
            assert not nk.instance_norm(x).any()
    for _ in range(2):
        with pytest.raises(nk.DegenerateShapeError):
            nk.instance_norm(x)


def test_the_table_is_bounded(x):
    for i in range(1100):
        nk.layer_norm(x, eps=1e-5 + i * 1e-9)
    assert 0 < len(plans) <= 1024


def test_unhashable_arguments_work(x):
    for _ in range(2):
        assert nk.layer_norm(x, [8]).shape == x.shape

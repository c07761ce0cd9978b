"""The oracle itself, against numbers that a person can check."""

import math

import numpy as np
import oracle


def test_by_hand():
    y, mean, rstd = oracle.layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), (1,), eps=0)
    assert y.tolist() == [[-1, 1], [-1, 1]]
    assert mean.tolist() == [[2], [20]]
    assert rstd.tolist() == [[1], [0.1]]


def test_weight_and_bias_by_hand():
    x = np.array([[[1.0, 3.0], [5.0, 7.0]]])
    y, *_ = oracle.instance_norm(x, np.array([2.0, 3.0]), np.array([10.0, 20.0]), eps=0)
    assert y.tolist() == [[[8, 12], [17, 23]]]


def test_axes_order_those_of_the_weight():
    x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    weight = np.arange(6.0).reshape(3, 2)
    one, *_ = oracle.layer_norm(x, (1, 0), weight)
    two, *_ = oracle.layer_norm(x, (0, 1), weight.T)
    assert one.tolist() == two.tolist()


def test_an_offset_costs_nothing():
    near = oracle.moments([1.0, 2.0, 4.0])
    far = oracle.moments([2.0**50 + 1, 2.0**50 + 2, 2.0**50 + 4])
    assert math.isclose(near.var, far.var, rel_tol=1e-15)


def test_a_constant_has_no_variance():
    for n in range(1, 60):
        assert oracle.moments([0.1] * n).var == 0


def test_mask_and_nan_by_hand():
    x = np.array([[1.0, 3.0, 99.0], [1.0, np.nan, 2.0]])
    y, mean, _ = oracle.layer_norm(x, (1,), eps=0, mask=np.array([True, True, False]))
    assert y[0].tolist() == [-1, 1, 97]
    assert mean[0] == 2
    assert np.isnan(y[1]).all()


def test_running_by_hand():
    x = np.array([[[1.0, 3.0]], [[5.0, 9.0]]])  # means 2 and 7, unbiased variances 2 and 8
    mean, var = oracle.running_after(x, [0.0], [1.0], 0.5)
    assert mean.tolist() == [2.25]
    assert var.tolist() == [3.0]

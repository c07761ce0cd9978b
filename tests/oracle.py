"""The first link in the chain of oracles: normalization in plain Python. It checks the NumPy backend, which checks the others.

Sums are rounded once (math.fsum) and everything is a Python float; NumPy only holds the arrays, and nothing of normkit is
used. A mean is kept as a pair (what a float can hold, and the rest), so that an offset costs no accuracy here.
"""

import math
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Of one set of statistics: the mean is `mean + rest`, and `var` is the biased variance."""

    mean: float
    rest: float
    var: float


def moments(values: list[float]) -> Moments:
    """NaN of nothing, and of anything that is not finite, as the arithmetic has it."""
    n = len(values)
    if n == 0 or not all(map(math.isfinite, values)):
        return Moments(math.nan, math.nan, math.nan)
    mean = math.fsum(values) / n
    rest = math.fsum([v - mean for v in values]) / n
    return Moments(mean, rest, math.fsum([((v - mean) - rest) * ((v - mean) - rest) for v in values]) / n)


def normalize(x, axes, affine_axes, weight=None, bias=None, eps=1e-5, mask=None, given=None):
    """(y, mean, rstd) in float64. `affine_axes` are those of weight and bias, in order; `given` maps a set to Moments."""
    eps = float(eps)
    weight, bias = (None if p is None else np.asarray(p, np.float64) for p in (weight, bias))
    mask = np.broadcast_to(True if mask is None else mask, x.shape)
    sets: dict[tuple[int, ...], list[float]] = {}
    for place in np.ndindex(x.shape):
        chosen = sets.setdefault(_set_of(place, axes), [])
        if mask[place]:
            chosen.append(float(x[place]))
    stats_shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    mean, rstd, y = np.full(stats_shape, np.nan), np.full(stats_shape, np.nan), np.empty(x.shape)
    found = {where: moments(values) if given is None else given(where) for where, values in sets.items()}
    for where, of_set in found.items():
        std = math.sqrt(of_set.var + eps)
        mean[where], rstd[where] = of_set.mean + of_set.rest, 1 / std if std != 0 else 0.0
    for place in np.ndindex(x.shape):
        of_set = found[_set_of(place, axes)]
        std = math.sqrt(of_set.var + eps)
        deviation = (float(x[place]) - of_set.mean) - of_set.rest
        value = deviation / std if std != 0 else deviation - deviation  # 0, but NaN of NaN and Inf
        parameter = tuple(place[a] for a in affine_axes)
        value *= 1.0 if weight is None else float(weight[parameter])
        y[place] = value + (0.0 if bias is None else float(bias[parameter]))
    return y, mean, rstd


def layer_norm(x, axes, weight=None, bias=None, eps=1e-5, mask=None):
    """Over `axes`, which also order the axes of weight and bias."""
    axes = tuple(a % x.ndim for a in axes)
    return normalize(x, axes, axes, weight, bias, eps, mask)


def instance_norm(x, weight=None, bias=None, eps=1e-5, mask=None, channel_axis=1, running=None):
    """Over all axes but 0 and the channels; `running` is a (mean, variance) to use instead of those of x."""
    channel = channel_axis % x.ndim
    axes = tuple(a for a in range(1, x.ndim) if a != channel)
    given = None
    if running is not None:

        def given(where):
            return Moments(float(running[0][where[channel]]), 0.0, float(running[1][where[channel]]))

    return normalize(x, axes, (channel,), weight, bias, eps, mask, given)


def running_after(x, mean, var, momentum, channel_axis=1, mask=None):
    """(mean, var) after one update: the mean over the instances of their means and unbiased variances.

    An instance with fewer than two elements has no unbiased variance, and does not count.
    """
    mask = np.broadcast_to(True if mask is None else mask, x.shape)
    channel = channel_axis % x.ndim
    new_mean, new_var = np.array(mean, np.float64), np.array(var, np.float64)
    for c in range(x.shape[channel]):
        instances = zip(np.moveaxis(x, channel, 1)[:, c], np.moveaxis(mask, channel, 1)[:, c], strict=True)
        instances = [instance[chosen].astype(np.float64).tolist() for instance, chosen in instances]
        instances = [values for values in instances if len(values) > 1]
        if instances:
            mean_of_means = math.fsum(sum(moments(v)[:2]) for v in instances) / len(instances)
            mean_of_vars = math.fsum(moments(v).var * len(v) / (len(v) - 1) for v in instances) / len(instances)
            new_mean[c] += momentum * (mean_of_means - new_mean[c])
            new_var[c] += momentum * (mean_of_vars - new_var[c])
    return new_mean, new_var


def _set_of(place: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(0 if a in axes else i for a, i in enumerate(place))

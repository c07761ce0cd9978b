"""A user's script, which mypy --strict has to pass, and what it has to refuse: an unused `type: ignore` is an error there.

`make lint` checks it; nothing runs it.
"""

from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import normkit as nk

x: NDArray[np.float32] = np.ones((2, 3, 4, 5), np.float32)
weight, bias = np.ones(5), np.zeros(5, np.float32)
mask = x > 0
channels = np.zeros(3), np.ones(3)
yes: bool = bool(x.any())

# what comes in comes out
assert_type(nk.layer_norm(x), NDArray[np.float32])
assert_type(nk.layer_norm(x, 5, weight, bias, 1e-6, mask=mask, out=x, backend="numpy"), NDArray[np.float32])
assert_type(nk.layer_norm(x, [4, 5]), NDArray[np.float32])
assert_type(nk.layer_norm(x, axis=(1, -1), policy=nk.FallbackPolicy.onnx()), NDArray[np.float32])
assert_type(nk.layer_norm(x.astype(np.float64)), NDArray[np.float64])
assert_type(nk.instance_norm(x), NDArray[np.float32])
assert_type(nk.instance_norm(x, *channels, weight=channels[0], channel_axis=-1, return_stats=False), NDArray[np.float32])
assert_type(nk.LayerNorm(5)(x), NDArray[np.float32])
assert_type(nk.LayerNorm((4, 5), dtype=np.float16, policy=nk.FallbackPolicy.strict())(x, mask=mask), NDArray[np.float32])
assert_type(nk.InstanceNorm2d(3, affine=True, dtype=None).eval()(x, out=x, backend="numba"), NDArray[np.float32])

# statistics
y, mean, rstd = nk.layer_norm(x, return_stats=True)
assert_type(y, NDArray[np.float32])
assert_type(mean, NDArray[np.float64])
assert_type(rstd, NDArray[np.float64])
_, mean, rstd = nk.instance_norm(x, return_stats=True)
_, mean, rstd = nk.InstanceNorm2d(3)(x, return_stats=True)
either = nk.layer_norm(x, return_stats=yes)

# the rest
missing, unexpected = nk.LayerNorm(5).load_state_dict({"weight": weight}, strict=False, prefix="norm.")
assert_type(missing, list[str])
with nk.using(backend="numpy", policy=nk.FallbackPolicy(single_element={"layer_norm": "bias"})):
    print(nk.explain("layer_norm", (128, 512, 1, 1)), nk.backends(), nk.get_backend("numpy").name)
nk.set_num_threads(None)
nk.set_cache_limit(nk.get_cache_limit())

# what is refused
nk.layer_norm("x")  # type: ignore[call-overload]
nk.layer_norm([1.0, 2.0])  # type: ignore[call-overload]
nk.layer_norm(x, (4.0, 5.0))  # type: ignore[arg-type]
nk.layer_norm(x, 5, "weight")  # type: ignore[call-overload]
nk.layer_norm(x, eps="1e-5")  # type: ignore[call-overload]
nk.layer_norm(x, 5, weight, bias, 1e-5, 1)  # type: ignore[call-overload]
nk.instance_norm(x, policy="onnx")  # type: ignore[call-overload]
nk.instance_norm(x, channel_axis=(1, 2))  # type: ignore[call-overload]
nk.LayerNorm(5)("x")  # type: ignore[call-overload]
nk.LayerNorm(5)(x, axis=1)  # type: ignore[call-overload]
nk.LayerNorm("5")  # type: ignore[arg-type]
nk.InstanceNorm2d(3)(x, channel_axis=1)  # type: ignore[call-overload]
nk.using(backend=1)  # type: ignore[arg-type]
print(nk.layer_norm(x).shpae)  # type: ignore[attr-defined]

"""Who is measured: each prepares a case as its own users would write it, and hands back a call to time.

Packages are imported inside the functions: a process holds one contender, and a contender that is not installed is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from typing import Any, Literal, NamedTuple

import numpy as np

from .cases import EPS, Case, Inputs, np_dtype

os.environ.setdefault("NORMKIT_BACKGROUND", "0")  # nothing is compiled while calls are timed
PLAIN_COPY = "this layout is copied as any other"  # of which nobody needs to be told


class UnsupportedCase(Exception):
    """The contender has no such op, dtype or layout."""


class Call(NamedTuple):
    """`run` is what is timed, on an x that `own` made of an array; `to_numpy` turns what it returned into an array of the
    case's shape; `note` says how it ran."""

    run: Callable[[Any], Any]
    own: Callable[[Any], Any] = lambda x: x
    to_numpy: Callable[[Any], Any] = np.asarray
    note: str = ""


def in_turns(run: Callable[[Any], Any], xs: list[Any]) -> Callable[[], Any]:
    """The call on one input after the other."""
    if len(xs) == 1:
        return partial(run, xs[0])
    turns = cycle(xs)
    return lambda: run(next(turns))


@dataclass(frozen=True)
class Contender:
    """`needs` are the packages without which it is left out, `environment` the variables that its process starts with."""

    name: str
    kind: Literal["floor", "peer", "normkit"]
    prepare: Callable[[Case, Inputs], Call]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The packages that would have to be installed."""
        return [package for package in self.needs if find_spec(package) is None]

    def versions(self) -> dict[str, str]:
        """The versions of what it needs, importing it."""
        return {name: str(getattr(__import__(name), "__version__", "?")).partition("-")[0] for name in self.needs}


def _normkit(case: Case, inputs: Inputs) -> Call:
    return Call(normkit_call(case, inputs, {}))


def _normkit_out(case: Case, inputs: Inputs) -> Call:
    out = np.empty_like(inputs.x)
    out[...] = 0  # the pages are there: reusing memory is what out= is for
    return Call(normkit_call(case, inputs, {"out": out}))


def normkit_call(case: Case, inputs: Inputs, extra: Mapping[str, Any]) -> Callable[[Any], Any]:
    """The call on x that a user of normkit would write, with further arguments."""
    import normkit as nk

    weight, bias = inputs.weight, inputs.bias
    if inputs.mask is not None:
        extra = {**extra, "mask": inputs.mask}
    if case.op == "instance_norm":
        if case.channel_axis != 1:
            extra = {**extra, "channel_axis": case.channel_axis}
        if not extra:
            return lambda x: nk.instance_norm(x, weight=weight, bias=bias)
        return lambda x: nk.instance_norm(x, weight=weight, bias=bias, **extra)
    if case.axis != -1:
        return lambda x: nk.layer_norm(x, axis=case.axis, weight=weight, bias=bias, **extra)
    features = (case.shape[-1],)
    if not extra:  # for two stars, Python makes dictionaries
        return lambda x: nk.layer_norm(x, features, weight, bias)
    return lambda x: nk.layer_norm(x, features, weight, bias, **extra)


def _streaming_copy(case: Case, inputs: Inputs) -> Call:
    from .floors import aligned_copy, fastest_copy

    name, run = fastest_copy(inputs.x)
    return Call(run, aligned_copy, note=name)


def _layout_copy(case: Case, inputs: Inputs) -> Call:
    from .floors import LINE, aligned_copy, copy_of_rows, read_then_copy

    x, last = inputs.x, case.affine_axis == len(case.shape) - 1
    if x[0].nbytes % LINE == 0 and len(x) > 1:
        if case.step > 1:
            own, run = copy_of_rows(x)
            return Call(run, own, note="rows with gaps, copied")
        if case.op == "instance_norm" and last and len(case.shape) > 2:
            return Call(read_then_copy(x), aligned_copy, note="each image read, then copied")
    raise UnsupportedCase(PLAIN_COPY)


def _numpy_copy(case: Case, inputs: Inputs) -> Call:
    return Call(np.copy)


def _numpy(case: Case, inputs: Inputs) -> Call:
    axes = case.axes
    weight, bias = inputs.weight.reshape(case.affine_shape), inputs.bias.reshape(case.affine_shape)
    chosen: Any = True if inputs.mask is None else inputs.mask

    def run(x: Any) -> Any:
        mean = x.mean(axes, keepdims=True, where=chosen)
        var = x.var(axes, keepdims=True, where=chosen)
        return (x - mean) / np.sqrt(var + x.dtype.type(EPS)) * weight + bias

    return Call(run)


def _torch(case: Case, inputs: Inputs) -> Call:
    import torch
    from torch.nn import functional as F

    def tensor(array: Any) -> Any:
        narrow = array.dtype == np_dtype("bfloat16") if case.dtype == "bfloat16" else False
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if narrow else torch.from_numpy(array)

    def to_numpy(y: Any) -> Any:
        y = y.contiguous()
        return y.view(torch.int16).numpy().view(np_dtype("bfloat16")) if case.dtype == "bfloat16" else y.numpy()

    _refuse_mask(case)
    torch.set_grad_enabled(False)
    weight, bias = tensor(inputs.weight), tensor(inputs.bias)
    to_first, back = _channels_first(case)
    if case.op == "instance_norm" and to_first is None:
        return Call(lambda x: F.instance_norm(x, weight=weight, bias=bias), tensor, to_numpy)
    if case.op == "instance_norm":
        return Call(lambda x: F.instance_norm(x.permute(to_first), weight=weight, bias=bias).permute(back), tensor, to_numpy)
    features = (len(inputs.weight),)
    if to_first is None:
        return Call(lambda x: F.layer_norm(x, features, weight, bias), tensor, to_numpy)
    return Call(lambda x: F.layer_norm(x.permute(to_first), features, weight, bias).permute(back), tensor, to_numpy)


def _jax(case: Case, inputs: Inputs) -> Call:
    import jax
    import jax.numpy as jnp

    @jax.jit  # type: ignore[untyped-decorator]
    def normalize(x: Any, weight: Any, bias: Any, mask: Any) -> Any:
        where = {} if mask is None else {"where": mask}
        mean = x.mean(case.axes, keepdims=True, **where)
        var = x.var(case.axes, keepdims=True, **where)
        return (x - mean) * jax.lax.rsqrt(var + EPS) * weight.reshape(case.affine_shape) + bias.reshape(case.affine_shape)

    weight, bias = jnp.asarray(inputs.weight), jnp.asarray(inputs.bias)
    mask = None if inputs.mask is None else jnp.asarray(inputs.mask)
    return Call(lambda x: normalize(x, weight, bias, mask).block_until_ready(), jnp.asarray)


def _onnxruntime(case: Case, inputs: Inputs) -> Call:
    import onnxruntime

    _refuse_mask(case)
    model = _onnx_model(case, inputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return Call(lambda x: session.run(None, {"x": x})[0])


def _onnx_model(case: Case, inputs: Inputs) -> Any:
    from onnx import TensorProto, helper

    if case.dtype == "bfloat16":
        raise UnsupportedCase("takes no bfloat16 from NumPy")
    kind = helper.np_dtype_to_tensor_dtype(inputs.x.dtype)
    to_first, back = _channels_first(case)
    op, attributes = ("LayerNormalization", {"axis": -1}) if case.op == "layer_norm" else ("InstanceNormalization", {})
    arrays = (("weight", inputs.weight), ("bias", inputs.bias))
    constants = [helper.make_tensor(name, kind, a.shape, a.tobytes(), raw=True) for name, a in arrays]
    names = ("x", "y") if to_first is None else ("x_first", "y_first")
    nodes = [helper.make_node(op, [names[0], "weight", "bias"], [names[1]], epsilon=EPS, **attributes)]
    if to_first is not None:
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["x_first"], perm=to_first))
        nodes.append(helper.make_node("Transpose", ["y_first"], ["y"], perm=back))
    ends = [[helper.make_tensor_value_info(name, kind, case.shape)] for name in ("x", "y")]
    assert kind != TensorProto.UNDEFINED
    graph = helper.make_graph(nodes, "norm", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _openvino(case: Case, inputs: Inputs) -> Call:
    import openvino as ov
    from openvino import opset13 as ops

    _refuse_mask(case)
    if case.dtype == "bfloat16":
        raise UnsupportedCase("takes no bfloat16 from NumPy")
    parameter = ops.parameter(case.shape, inputs.x.dtype)
    normal = ops.mvn(parameter, np.array(case.axes, np.int64), True, EPS, "inside_sqrt")
    weight, bias = (ops.constant(a.reshape(case.affine_shape)) for a in (inputs.weight, inputs.bias))
    model = ov.Model([ops.add(ops.multiply(normal, weight), bias)], [parameter])
    compiled = ov.Core().compile_model(model, "CPU")
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Call(lambda x: compiled([x])[0], note=f"computes in {precision}")


def _keras(case: Case, inputs: Inputs) -> Call:
    import keras

    _refuse_mask(case)
    if case.op == "layer_norm":
        layer = keras.layers.LayerNormalization(axis=case.axis, epsilon=EPS, dtype=case.dtype)
    else:
        layer = keras.layers.GroupNormalization(groups=-1, axis=case.affine_axis, epsilon=EPS, dtype=case.dtype)
    layer.build(case.shape)
    layer.set_weights([inputs.weight, inputs.bias])
    return Call(layer)


def _refuse_mask(case: Case) -> None:
    if case.mask:
        raise UnsupportedCase("has no mask")


def _channels_first(case: Case) -> tuple[list[int] | None, list[int] | None]:
    """The transposition that a peer needs before and after, if its op fixes the axes; None if it needs none."""
    n, place = len(case.shape), case.affine_axis
    wanted = n - 1 if case.op == "layer_norm" else 1
    if place == wanted:
        return None, None
    order = [a for a in range(n) if a != place]
    order.insert(wanted, place)
    return order, [order.index(a) for a in range(n)]


ONE_THREAD = "normkit, one thread"
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 36), "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
CONTENDERS = {
    c.name: c
    for c in (
        Contender("streaming copy", "floor", _streaming_copy, ("numpy", "numba")),
        Contender("layout copy", "floor", _layout_copy, ("numpy", "numba")),
        Contender("np.copy", "floor", _numpy_copy, ("numpy",)),
        Contender("normkit out=", "normkit", _normkit_out, ("normkit", "numba")),
        Contender("normkit", "normkit", _normkit, ("normkit", "numba")),
        Contender(ONE_THREAD, "normkit", _normkit, ("normkit", "numba"), {"NUMBA_NUM_THREADS": "1"}),
        Contender("torch", "peer", _torch, ("torch",)),
        Contender("torch, memory kept", "peer", _torch, ("torch",), KEEP),
        Contender("ONNX Runtime", "peer", _onnxruntime, ("onnxruntime", "onnx")),
        Contender("OpenVINO", "peer", _openvino, ("openvino",)),
        Contender("JAX", "peer", _jax, ("jax",), {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}),
        Contender("Keras on NumPy", "peer", _keras, ("keras",), {"KERAS_BACKEND": "numpy"}),
        Contender("NumPy", "peer", _numpy, ("numpy",)),
    )
}

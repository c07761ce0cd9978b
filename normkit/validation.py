"""Every check of every argument, shared by all ops and backends. Kernels have no bounds checks: this is memory safety.

Each public function here turns the arguments of one op into a Problem and its Operands, or raises an error that names
the op, what it got, what it expected and where that comes from, and the cure. Nothing is read or written before that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from normkit import cures
from normkit.arguments import finite, flag, guarded, integer, shown
from normkit.errors import InputTypeError, InputValueError
from normkit.overlap import may_share_memory, repeats, shares_memory
from normkit.problem import Array, Operands, Problem

FLOATS = cures.FLOATS


class ShapeOnly(NamedTuple):
    """Stands in for a C-contiguous array of which only shape and dtype are known."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.dtype.itemsize * math.prod(self.shape[a + 1 :]) for a in range(self.ndim))


class Call(NamedTuple):
    """A validated call: the canonical problem, its arrays, and the running statistics to update afterwards."""

    problem: Problem
    operands: Operands
    running: Running | None = None


class Running(NamedTuple):
    """Running statistics as given, with the momentum of their update."""

    mean: Array
    var: Array
    momentum: float


@guarded("layer_norm")
def layer_norm(
    x: Array,
    normalized_shape: int | Sequence[int] | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    axis: int | Sequence[int] | None = None,
    mask: Array | None = None,
    out: Array | None = None,
) -> Call:
    """Check a layer_norm."""
    op = "layer_norm"
    family = _array(op, "x", x)
    if x.ndim == 0:
        raise InputValueError(f"{op}: x is 0-d, expected at least one axis to normalize over; x.reshape(1) has one")
    if axis is not None:
        if normalized_shape is not None:
            raise InputValueError(f"{op}: both normalized_shape and axis are given; they are two ways to say one thing")
        axes = _axes(op, axis, x.ndim)
        where = f"x.shape[axis] with axis={axes}"
    else:
        axes, where = _trailing(op, x, normalized_shape, weight)
    affine_shape = tuple(x.shape[a] for a in axes)
    for name, parameter in (("weight", weight), ("bias", bias)):
        _parameter(op, name, parameter, affine_shape, where, x, family)
    problem = Problem(
        op=op,
        family=family,
        shape=tuple(x.shape),
        dtype=x.dtype,
        axes=tuple(sorted(axes)),
        affine_axes=tuple(sorted(axes)),
        eps=_eps(op, eps),
        weight=None if weight is None else weight.dtype,
        bias=None if bias is None else bias.dtype,
        masked=mask is not None,
        strides=tuple(x.strides),
    )
    _mask(op, mask, x, family)
    _out(op, out, x, family)
    if (ascending := sorted(range(len(axes)), key=axes.__getitem__)) != list(range(len(axes))):
        weight, bias = (p if p is None else p.transpose(*ascending) for p in (weight, bias))
    return Call(problem, Operands(x, weight, bias, out=out, mask=mask))


@guarded("instance_norm")
def instance_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    mask: Array | None = None,
    out: Array | None = None,
    batched: bool = True,
) -> Call:
    """Check an instance_norm; of one instance without its axis, and with `channel_axis` 0, if not `batched`."""
    op = "instance_norm"
    family = _array(op, "x", x)
    use_input_stats = flag(op, "use_input_stats", use_input_stats)
    if batched and x.ndim < 2:
        raise InputValueError(
            f"{op}: x has shape {x.shape}, expected (N, C, *spatial): axis 0 is the batch, and unbatched input is never "
            "guessed; x[np.newaxis] adds the batch"
        )
    channel, *more = _axes(op, channel_axis, x.ndim, "channel_axis")
    if more:
        raise InputValueError(f"{op}: channel_axis is {shown(channel_axis)}, expected one axis")
    if batched and channel == 0:
        raise InputValueError(
            f"{op}: channel_axis={channel_axis} is axis 0, the batch; expected 1 .. {x.ndim - 1}; x[np.newaxis] adds a batch"
        )
    channels = (x.shape[channel],)
    where = f"x.shape[{channel}], the channels"
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, parameter in named.items():
        _parameter(op, name, parameter, channels, where, x, family)
    if (running_mean is None) != (running_var is None):
        raise InputValueError(f"{op}: running_mean and running_var belong together, expected both or neither")
    running = None
    if running_mean is not None:
        running = Running(running_mean, running_var, finite(op, "momentum", momentum))
    elif not use_input_stats:
        raise InputValueError(
            f"{op}: use_input_stats=False without running_mean and running_var, expected both: they are the statistics then"
        )
    problem = Problem(
        op=op,
        family=family,
        shape=tuple(x.shape),
        dtype=x.dtype,
        axes=tuple(a for a in range(int(batched), x.ndim) if a != channel),
        affine_axes=(channel,),
        eps=_eps(op, eps),
        weight=None if weight is None else weight.dtype,
        bias=None if bias is None else bias.dtype,
        statistics="input" if use_input_stats else "given",
        masked=mask is not None,
        strides=tuple(x.strides),
    )
    _mask(op, mask, x, family)
    _out(op, out, x, family)
    if running is not None and use_input_stats:
        _updated(op, running, out)
        if mask is not None and out is not None and may_share_memory(mask, out):
            mask = mask.copy()  # it is asked for the counts when out has been written
    operands = Operands(x, weight, bias, out=out, mask=mask)
    return Call(problem, operands, running)


def _array(op: str, name: str, value: Any) -> str:
    """The family of an array that can be normalized: the package of its type."""
    family = _family(op, name, value)
    if value.dtype.name not in FLOATS:
        expected = ", ".join(FLOATS)
        raise InputTypeError(f"{op}: {name} has dtype {value.dtype}, expected one of {expected}; {cures.cast(name, value)}")
    return family


def _family(op: str, name: str, value: Any) -> str:
    """The package of the type of an array, whatever its elements are."""
    if isinstance(value, ShapeOnly) or type(value) is np.ndarray or type(value) is np.memmap:
        return "numpy"
    kind = cures.kind_of(value)
    if isinstance(value, np.ma.MaskedArray):
        cure = "pass x.filled(0) with mask=~np.ma.getmaskarray(x)" if name == "x" else f"{name}.filled(0) makes one"
        raise InputTypeError(f"{op}: {name} is a masked array, whose mask would be lost, expected a plain array; {cure}")
    if isinstance(value, np.ndarray):
        raise InputTypeError(f"{op}: {name} is {kind}, expected a plain array; np.asarray({name}) makes one")
    if isinstance(value, np.generic):
        raise InputTypeError(
            f"{op}: {name} is a {type(value).__name__} scalar, expected an array; np.array([{name}]) makes one"
        )
    if not isinstance(getattr(value, "dtype", None), np.dtype) or not hasattr(value, "strides"):
        raise InputTypeError(f"{op}: {name} is {kind}, expected a NumPy array; {cures.cure(name, value)}")
    shape, strides = value.shape, value.strides
    if not (_are_ints(shape) and _are_ints(strides) and len(shape) == len(strides) == value.ndim):
        raise InputTypeError(
            f"{op}: {name} is {kind} whose shape is {shown(shape)} and whose strides are {shown(strides)}, expected tuples of "
            f"ints as an array has; np.asarray({name}) may make one"
        )
    return type(value).__module__.partition(".")[0]


def _are_ints(sizes: Any) -> bool:
    return isinstance(sizes, tuple) and all(isinstance(n, int | np.integer) for n in sizes)


def _axes(op: str, axis: Any, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """Axes as given, as non-negative ints in the order given."""
    given = axis if isinstance(axis, tuple | list) else (axis,)
    axes = []
    for a in given:
        a = integer(op, f"{name} holds", a)
        if not -ndim <= a < ndim:
            raise InputValueError(f"{op}: {name} holds {shown(a)}, expected {-ndim} .. {ndim - 1} for x of {ndim} axes")
        axes.append(a % ndim)
    if not axes or len(set(axes)) < len(axes):
        raise InputValueError(f"{op}: {name} is {shown(axis)}, expected at least one axis, each once")
    return tuple(axes)


def _trailing(op: str, x: Array, normalized_shape: Any, weight: Array | None) -> tuple[tuple[int, ...], str]:
    """Trailing axes from normalized_shape, or from the weight's shape, or the last one; and how to say where from."""
    if normalized_shape is None:
        if weight is None:
            return (x.ndim - 1,), "x.shape[-1:]"
        _array(op, "weight", weight)
        expected, source = tuple(weight.shape), "weight.shape"
        if not expected:
            raise InputValueError(f"{op}: weight is 0-d, expected the shape of the trailing axes of x: {x.shape[-1:]} for one")
    else:
        if getattr(normalized_shape, "ndim", 0):
            raise InputTypeError(
                f"{op}: normalized_shape is an array of shape {normalized_shape.shape}, expected an int or a tuple of ints. "
                f"weight and bias come after it: nk.{op}(x, None, weight, bias), or by name"
            )
        given = normalized_shape if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
        expected, source = tuple(integer(op, "normalized_shape holds", n) for n in given), "normalized_shape"
        if not expected:
            raise InputValueError(f"{op}: normalized_shape is empty, expected the sizes of one or more trailing axes of x")
    trailing = f"x.shape[-{len(expected)}:]"
    if tuple(x.shape[-len(expected) :]) != expected:
        if source == "weight.shape" and len(expected) == 1:
            last = tuple(x.shape[-1:])
            fitted = _fitted(op, "weight", expected, last, x)
            raise InputValueError(f"{op}: weight has shape {expected}, expected {last} = {trailing}{fitted}")
        raise InputValueError(
            f"{op}: {source} is {shown(expected)}, expected the trailing sizes of x: {trailing} = "
            f"{tuple(x.shape[-len(expected) :])}; axis= takes any axes"
        )
    return tuple(range(x.ndim - len(expected), x.ndim)), trailing


def _parameter(op: str, name: str, value: Array | None, shape: tuple[int, ...], where: str, x: Array, family: str) -> None:
    if value is None:
        return
    if (its_family := _array(op, name, value)) != family:
        raise InputTypeError(f"{op}: {name} is an array of {its_family}, expected {family} as x")
    if tuple(value.shape) != shape:
        got = tuple(value.shape)
        raise InputValueError(f"{op}: {name} has shape {got}, expected {shape} = {where}{_fitted(op, name, got, shape, x)}")


def _fitted(op: str, name: str, got: tuple[int, ...], wanted: tuple[int, ...], x: Array) -> str:
    """How a parameter could be given, or the axis that it may have been meant for; nothing if neither can be told."""
    if sorted(got) == sorted(wanted):
        distinct = len(set(got)) == len(got)
        return f"; {name}.transpose{tuple(map(got.index, wanted))} has it" if distinct else ""
    if math.prod(got) == math.prod(wanted):
        return f"; {name}.reshape{wanted} has it"
    if math.prod(got) == 1:
        return f"; np.full({wanted}, {name}.item()) repeats it"
    if len(got) == len(wanted) == 1 and (fitting := [a for a in range(1, x.ndim) if x.shape[a] == got[0]]):
        return f"; {'channel_axis' if op == 'instance_norm' else 'axis'}={fitting[-1]} has that size"
    return ""


def _mask(op: str, mask: Array | None, x: Array, family: str) -> None:
    if mask is None:
        return
    try:
        of_any = isinstance(mask, ShapeOnly) or (isinstance(mask, np.bool_) and family == "numpy")  # as of x > 0, x 0-d
        its_family = family if of_any else _family(op, "mask", mask)
    except InputTypeError:
        cure = "mask.filled(False)" if isinstance(mask, np.ma.MaskedArray) else "np.asarray(mask, dtype=bool)"
        raise InputTypeError(
            f"{op}: mask is {cures.kind_of(mask)}, expected a boolean array that broadcasts to x.shape = {x.shape}; "
            f"{cure} makes an array"
        ) from None
    if mask.dtype != np.bool_:
        raise InputTypeError(f"{op}: mask has dtype {mask.dtype}, expected bool: True where x counts; mask != 0 makes one")
    if its_family != family:
        raise InputTypeError(f"{op}: mask is an array of {its_family}, expected {family} as x")
    sizes = zip(mask.shape[::-1], x.shape[::-1], strict=False)
    if mask.ndim > x.ndim or any(m not in (1, n) for m, n in sizes):
        cure = ""
        if mask.shape == x.shape[: mask.ndim]:  # of a batch of sequences, as a rule
            cure = f"; mask.reshape{mask.shape + (1,) * (x.ndim - mask.ndim)} does"
        raise InputValueError(f"{op}: mask has shape {mask.shape}, which does not broadcast to x.shape = {x.shape}{cure}")


def _out(op: str, out: Array | None, x: Array, family: str) -> None:
    if out is None:
        return
    if (its_family := _array(op, "out", out)) != family:
        raise InputTypeError(f"{op}: out is an array of {its_family}, expected {family} as x")
    if out.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        raise InputTypeError(f"{op}: out has dtype {out.dtype}, expected {x.dtype} = x.dtype; {cures.like(x)}")
    if tuple(out.shape) != tuple(x.shape):
        raise InputValueError(f"{op}: out has shape {out.shape}, expected {x.shape} = x.shape; {cures.like(x)}")
    _writable(op, "out", out, "pass an array that may be written")
    _full(op, "out", out, "the result")


def _updated(op: str, running: Running, out: Array | None) -> None:
    """Check what is written to the running arrays: each of its elements is one of its own, and none of the output's."""
    named = {"running_mean": running.mean, "running_var": running.var}
    for name, statistic in named.items():
        _writable(op, name, statistic, "it is updated in place; pass a copy")
        _full(op, name, statistic, "the update")
        if out is not None and shares_memory(statistic, out):
            raise InputValueError(
                f"{op}: {name} shares memory with out, and both are written; expected them apart: {name}.copy()"
            )
    if shares_memory(*named.values()):
        raise InputValueError(
            f"{op}: running_mean shares memory with running_var, and each is updated in place; expected them apart: "
            "running_mean.copy()"
        )


def _full(op: str, name: str, value: Array, what: str) -> None:
    if repeats(value):
        raise InputValueError(
            f"{op}: elements of {name} lie over each other (strides {value.strides}), so it cannot hold {what}; "
            "pass a full array"
        )


def _writable(op: str, name: str, value: Array, cure: str) -> None:
    if not getattr(value.flags, "writeable", True):  # a CuPy array has no such flag, and is always writable
        raise InputValueError(f"{op}: {name} is read-only, expected a writable array: {cure}")


def _eps(op: str, value: Any) -> float:
    eps = finite(op, "eps", value)
    if eps < 0:
        raise InputValueError(f"{op}: eps is {eps!r}, expected 0 or more; 1e-5 is usual, 0 is exact")
    return eps

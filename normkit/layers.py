"""Layers with torch's constructors, parameter names and modes, so that a model's code and checkpoints carry over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike

from normkit import functional
from normkit.errors import InputTypeError, InputValueError
from normkit.problem import Array
from normkit.validation import FLOATS


class Layer:
    """What all layers share: a training mode, and a state of named arrays."""

    state_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    weight: Array | None
    bias: Array | None

    def __init__(self) -> None:
        self.training = True

    def train(self, mode: bool = True) -> Self:
        """Set training mode; returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode; returns the layer."""
        return self.train(False)

    def state_dict(self, prefix: str = "") -> dict[str, Array]:
        """The arrays of this layer under torch's names: the arrays themselves, not copies."""
        named = ((name, getattr(self, name)) for name in self.state_names)
        return {prefix + name: array for name, array in named if array is not None}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, prefix: str = "") -> None:
        """Copy arrays into this layer, keeping its dtypes.

        Parameters
        ----------
        state : mapping of str to array
            As from `state_dict`, `numpy.load` of an .npz file, or `safetensors.numpy.load_file`.
        strict : bool
            Raise on a name that is missing, or that this layer does not have.
        prefix : str
            Take only the names that start with it, as ``"encoder.norm1."`` in a whole model's checkpoint.

        Raises
        ------
        InputValueError, InputTypeError
            A name is missing or unexpected, or an array has another shape or kind; nothing has been copied then.

        Examples
        --------
        >>> import numpy as np, normkit as nk
        >>> norm = nk.LayerNorm(4)
        >>> norm.load_state_dict({"norm1.weight": np.full(4, 2.0), "norm1.bias": np.zeros(4)}, prefix="norm1.")
        >>> norm.weight
        array([2., 2., 2., 2.], dtype=float32)
        """
        own = self.state_dict()
        given = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
        missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        if strict and (missing or unexpected):
            raise InputValueError(
                f"{self}: state lacks {missing} and has unexpected {unexpected}, expected {sorted(own)} after the prefix "
                f"{prefix!r}; strict=False takes what fits"
            )
        loaded = {name: np.asarray(state[given[name]]) for name in own if name in given}
        for name, array in loaded.items():
            if array.shape != own[name].shape:
                raise InputValueError(
                    f"{self}: {prefix}{name} has shape {array.shape}, expected {own[name].shape} as the layer was made with"
                )
            if not np.can_cast(array.dtype, own[name].dtype, "same_kind"):
                raise InputTypeError(f"{self}: {prefix}{name} has dtype {array.dtype}, which {own[name].dtype} cannot hold")
        for name, array in loaded.items():
            own[name][...] = array

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """The constructor's arguments, as text."""
        raise NotImplementedError


class LayerNorm(Layer):
    """Layer normalization over trailing axes of fixed sizes. See `normkit.layer_norm` for the formula.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the trailing axes.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Have a weight (ones) and a bias (zeros) of shape `normalized_shape`.
    bias : bool
        Have the bias, if affine.
    dtype : dtype
        Of weight and bias.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> norm = nk.LayerNorm(4)
    >>> norm
    LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
    >>> norm(np.array([[1, 2, 3, 4]], np.float32)).round(3)
    array([[-1.342, -0.447,  0.447,  1.342]], dtype=float32)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        sizes = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        self.normalized_shape = tuple(_size("LayerNorm", "normalized_shape", n) for n in sizes)
        if not self.normalized_shape:
            raise InputValueError("LayerNorm: normalized_shape is empty, expected the size of at least one axis")
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        dtype = _float("LayerNorm", dtype)
        self.weight = np.ones(self.normalized_shape, dtype) if elementwise_affine else None
        self.bias = np.zeros(self.normalized_shape, dtype) if elementwise_affine and bias else None

    def __call__(self, x: Array, **options: Any) -> Any:
        """Normalize x; `options` are the keyword-only ones of `normkit.layer_norm`, less `axis`."""
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps, **options)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, bias={bias}"


class InstanceNorm(Layer):
    """What InstanceNorm1d, 2d and 3d share."""

    state_names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    spatial: ClassVar[int]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        dtype: DTypeLike = np.float32,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = _size(type(self).__name__, "num_features", num_features)
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        dtype = _float(type(self).__name__, dtype)
        self.weight = np.ones(num_features, dtype) if affine else None
        self.bias = np.zeros(num_features, dtype) if affine and bias else None
        statistics = np.result_type(dtype, np.float32)  # a variance of float16 soon ends at 65504
        self.running_mean = np.zeros(num_features, statistics) if track_running_stats else None
        self.running_var = np.ones(num_features, statistics) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None  # torch keeps it, and at 0

    def __call__(self, x: Array, **options: Any) -> Any:
        """Normalize x, (N, C, *spatial) or (C, *spatial).

        `options` are the keyword-only ones of `normkit.instance_norm`, less `channel_axis`: a layer's input is as torch's.

        Training, or without running statistics: those of x. Else the running ones.
        """
        if "channel_axis" in options:
            raise InputTypeError(
                f"{type(self).__name__}: channel_axis is not an option of the layer, expected channels first as in torch; "
                "nk.instance_norm takes any channel_axis"
            )
        shape = getattr(x, "shape", None)
        unbatched = shape is not None and len(shape) == self.spatial + 1
        if shape is not None and not unbatched and len(shape) != self.spatial + 2:
            spatial = ", ".join("DHW"[-self.spatial :] if self.spatial > 1 else "L")
            raise InputValueError(
                f"{type(self).__name__}: x has shape {tuple(shape)}, expected (N, C, {spatial}) or unbatched (C, {spatial})"
            )
        if shape is not None and (channels := shape[0 if unbatched else 1]) != self.num_features:
            raise InputValueError(
                f"{type(self).__name__}: x has shape {tuple(shape)} with {channels} channels, expected "
                f"num_features={self.num_features} as the layer was made with"
            )
        out = options.get("out")
        if unbatched:
            options = {k: v[None] if k in ("out", "mask") and getattr(v, "ndim", False) else v for k, v in options.items()}
        y = functional.instance_norm(
            x[None] if unbatched else x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            **options,
        )
        if not unbatched:
            return y
        parts = [part[0] for part in (y if isinstance(y, tuple) else (y,))]
        if out is not None:
            parts[0] = out
        return tuple(parts) if isinstance(y, tuple) else parts[0]

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class InstanceNorm1d(InstanceNorm):
    """Instance normalization of (N, C, L) or (C, L). See `normkit.instance_norm` for the formula.

    Parameters
    ----------
    num_features : int
        Channels, C.
    eps : float
        Added to the variance.
    momentum : float or None
        Share of the new statistics in an update of the running ones; None: 0, as in torch.
    affine : bool
        Have a weight (ones) and a bias (zeros) of shape (C,).
    track_running_stats : bool
        Have running statistics, updated in training and used in evaluation.
    dtype : dtype
        Of weight and bias. Running statistics are of this dtype, and at least float32: a variance soon outgrows float16.
    bias : bool
        Have the bias, if affine.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> nk.InstanceNorm1d(2)(np.array([[1, 2, 3], [10, 20, 30]], np.float32)).round(3)
    array([[-1.225,  0.   ,  1.225],
           [-1.225,  0.   ,  1.225]], dtype=float32)
    """

    spatial = 1


class InstanceNorm2d(InstanceNorm):
    """Instance normalization of (N, C, H, W) or (C, H, W); parameters as `InstanceNorm1d`.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> norm = nk.InstanceNorm2d(3, affine=True)
    >>> norm(np.ones((2, 3, 4, 4), np.float32)).shape
    (2, 3, 4, 4)
    """

    spatial = 2


class InstanceNorm3d(InstanceNorm):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W); parameters as `InstanceNorm1d`.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> nk.InstanceNorm3d(3)(np.ones((2, 3, 2, 4, 4), np.float32)).shape
    (2, 3, 2, 4, 4)
    """

    spatial = 3


def _size(layer: str, name: str, n: Any) -> int:
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise InputTypeError(f"{layer}: {name} holds {n!r}, expected an int")
    if n < 0:
        raise InputValueError(f"{layer}: {name} holds {n}, expected 0 or more")
    return int(n)


def _float(layer: str, dtype: DTypeLike) -> np.dtype[Any]:
    kind = np.dtype(dtype)
    if kind.name not in FLOATS:
        raise InputTypeError(f"{layer}: dtype is {kind}, expected one of {', '.join(FLOATS)}")
    return kind

"""Layers with torch's constructors, parameter names and modes, so that a model's code and checkpoints carry over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, overload

import numpy as np

from normkit import checkpoints, functional
from normkit.arguments import asked, flag, guarded, integer, shown
from normkit.arrays import AnyArray, ArrayT
from normkit.checkpoints import IncompatibleKeys
from normkit.errors import InputTypeError, InputValueError, NormkitError, PolicyError
from normkit.policy import FallbackPolicy, checked
from normkit.problem import Array
from normkit.validation import FLOATS

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


class Layer:
    """What all layers share: a training mode, and a state of named arrays."""

    state_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    weight: Array | None
    bias: Array | None

    def __init__(self, policy: FallbackPolicy | None) -> None:
        self.training = True
        self.policy = policy if policy is None else checked(policy)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; returns the layer."""
        self.training = _flag(self, "mode", mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode; returns the layer."""
        return self.train(False)

    def state_dict(self, prefix: str = "") -> dict[str, Array]:
        """The arrays of this layer under torch's names: the arrays themselves, not copies."""
        asked(type(self).__name__, checkpoints.check_prefix, self, prefix)
        named = ((name, getattr(self, name)) for name in self.state_names)
        return {prefix + name: array for name, array in named if array is not None}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, prefix: str = "") -> IncompatibleKeys:
        """Copy arrays into this layer, keeping its dtypes: all of them, or none where something does not fit.

        Parameters
        ----------
        state : mapping of str to array
            As from `state_dict`, `numpy.load` of an .npz file, or `safetensors.numpy.load_file`. ``gamma`` and ``beta``, as
            old checkpoints have them, are weight and bias. ``num_batches_tracked`` may be absent, as in torch.
        strict : bool
            Raise on a name that is missing, or that this layer does not have.
        prefix : str
            Take only the names that start with it, as ``"encoder.norm1."`` in a whole model's checkpoint. Its last dot may
            be left out.

        Returns
        -------
        missing_keys, unexpected_keys : list of str
            As torch: names that the state lacks, and that the layer lacks. Both are empty if `strict`.

        Raises
        ------
        InputValueError, InputTypeError
            A name is missing or unexpected, or an array has another shape or kind, or numbers that are too large for the
            layer's dtype; nothing has been copied then.

        Examples
        --------
        >>> import numpy as np, normkit as nk
        >>> norm = nk.LayerNorm(4)
        >>> norm.load_state_dict({"norm1.weight": np.full(4, 2.0), "norm1.bias": np.zeros(4)}, prefix="norm1.")
        <All keys matched successfully>
        >>> norm.weight
        array([2., 2., 2., 2.], dtype=float32)
        """
        return asked(type(self).__name__, checkpoints.load, self, state, _flag(self, "strict", strict), prefix)

    @overload
    def __call__(
        self, x: ArrayT, *, mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: Literal[False] = False,
        backend: str | None = None, policy: FallbackPolicy | None = None,
    ) -> ArrayT: ...  # fmt: skip
    @overload
    def __call__(
        self, x: ArrayT, *, mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: Literal[True],
        backend: str | None = None, policy: FallbackPolicy | None = None,
    ) -> tuple[ArrayT, NDArray[np.float64], NDArray[np.float64]]: ...  # fmt: skip
    @overload
    def __call__(
        self, x: ArrayT, *, mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: bool,
        backend: str | None = None, policy: FallbackPolicy | None = None,
    ) -> Any: ...  # fmt: skip
    def __call__(
        self,
        x: ArrayT,
        *,
        mask: AnyArray | None = None,
        out: AnyArray | None = None,
        return_stats: bool = False,
        backend: str | None = None,
        policy: FallbackPolicy | None = None,
    ) -> Any:
        """Normalize x; its channels come first, as in torch.

        The other arguments are those of `normkit.layer_norm` and `normkit.instance_norm`. `policy` wins over the layer's own.
        InstanceNorm takes the statistics from x while it is training, and where it keeps no running ones.
        """
        return self.normalized(x, mask, out, return_stats, backend, self.policy if policy is None else policy)

    def normalized(self, x: Any, mask: Any, out: Any, return_stats: bool, backend: str | None, policy: Any) -> Any:
        """What a call does."""
        raise NotImplementedError

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
        Of weight and bias; None: float32, as in torch.
    policy : FallbackPolicy, optional
        That of each call that is given none.

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
        dtype: DTypeLike | None = np.float32,
        *,
        policy: FallbackPolicy | None = None,
    ) -> None:
        super().__init__(policy)
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = _flag(self, "elementwise_affine", elementwise_affine)
        bias, dtype = _flag(self, "bias", bias), _float(self, dtype)
        self.weight = _full(self, "normalized_shape", self.normalized_shape, 1, dtype) if elementwise_affine else None
        self.bias = _full(self, "normalized_shape", self.normalized_shape, 0, dtype) if elementwise_affine and bias else None

    def normalized(self, x: Any, mask: Any, out: Any, return_stats: bool, backend: str | None, policy: Any) -> Any:
        return functional.layer_norm(
            x,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            mask=mask,
            out=out,
            return_stats=return_stats,
            backend=backend,
            policy=policy,
        )

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.normalized_shape}, eps={shown(self.eps)}, elementwise_affine={self.elementwise_affine}, bias={bias}"


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
        dtype: DTypeLike | None = np.float32,
        *,
        bias: bool = True,
        policy: FallbackPolicy | None = None,
    ) -> None:
        super().__init__(policy)
        self.num_features = _size(self, "num_features", num_features)
        self.eps = eps
        self.momentum = momentum
        self.affine = _flag(self, "affine", affine)
        self.track_running_stats = tracked = _flag(self, "track_running_stats", track_running_stats)
        bias, dtype, channels = _flag(self, "bias", bias), _float(self, dtype), (self.num_features,)
        self.weight = _full(self, "num_features", channels, 1, dtype) if affine else None
        self.bias = _full(self, "num_features", channels, 0, dtype) if affine and bias else None
        statistics = np.result_type(dtype, np.float32)  # a variance of float16 soon ends at 65504
        self.running_mean = _full(self, "num_features", channels, 0, statistics) if tracked else None
        self.running_var = _full(self, "num_features", channels, 1, statistics) if tracked else None
        self.num_batches_tracked = np.zeros((), np.int64) if tracked else None  # torch keeps it, and at 0

    def normalized(self, x: Any, mask: Any, out: Any, return_stats: bool, backend: str | None, policy: Any) -> Any:
        batch, batch_out, batch_mask, unbatched = self._batch(x, out, mask)
        arguments = (
            self.running_mean, self.running_var, self.weight, self.bias, self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip
        options = {"return_stats": return_stats, "backend": backend, "policy": policy}
        try:
            y: Any = functional.instance_norm(batch, *arguments, mask=batch_mask, out=batch_out, **options)
        except NormkitError as error:
            if not unbatched:
                raise
            if isinstance(error, PolicyError):  # perhaps of what the policy's callable made of the batch that it was given
                error.add_note(f"{type(self).__name__} was given x of shape {x.shape}, unbatched, and adds a batch of size 1")
                raise
            raise functional.unbatched_error(x, *arguments, mask=mask, out=out, **options) or error from None
        if not unbatched:
            return y
        parts = [part[0] for part in (y if isinstance(y, tuple) else (y,))]
        if out is not None:
            parts[0] = out
        return tuple(parts) if isinstance(y, tuple) else parts[0]

    def _batch(self, x: Any, out: Any, mask: Any) -> tuple[Any, Any, Any, bool]:
        """Check the shape of x; x, out and mask as a batch, and whether they were none."""
        if type(x) is np.ndarray and x.ndim == self.spatial + 2 and x.shape[1] == self.num_features:
            return x, out, mask, False
        return asked(type(self).__name__, self._as_batch, x, out, mask)

    def _as_batch(self, x: Any, out: Any, mask: Any) -> tuple[Any, Any, Any, bool]:
        shape = getattr(x, "shape", None)
        if not isinstance(shape, tuple):
            return x, out, mask, False  # no array, which the function says
        unbatched = len(shape) == self.spatial + 1
        if not unbatched and len(shape) != self.spatial + 2:
            spatial = ", ".join("DHW"[-self.spatial :] if self.spatial > 1 else "L")
            raise InputValueError(
                f"{type(self).__name__}: x has shape {shape}, expected (N, C, {spatial}) or unbatched (C, {spatial})"
            )
        if (channels := shape[0 if unbatched else 1]) != self.num_features:
            raise InputValueError(
                f"{type(self).__name__}: x has shape {shape} with {channels} channels, expected "
                f"num_features={self.num_features} as the layer was made with"
            )
        if not unbatched:
            return x, out, mask, False
        out, mask = (a[None] if getattr(a, "ndim", False) else a for a in (out, mask))
        return x[None], out, mask, True

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={shown(self.eps)}, momentum={shown(self.momentum)}, affine={self.affine}, "
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
        Of weight and bias; None: float32, as in torch. Running statistics are of this dtype, and at least float32, as a
        variance soon outgrows float16.
    bias : bool
        Have the bias, if affine.
    policy : FallbackPolicy, optional
        That of each call that is given none.

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


def _flag(layer: Layer, name: str, value: Any) -> bool:
    return asked(type(layer).__name__, flag, type(layer).__name__, name, value)


def _size(layer: Layer, name: str, n: Any) -> int:
    return asked(type(layer).__name__, _checked_size, type(layer).__name__, name, n)


def _checked_size(layer: str, name: str, n: Any) -> int:
    if isinstance(n, bool | np.bool_):
        raise InputTypeError(f"{layer}: {name} holds {n}, expected an int")
    size = integer(layer, f"{name} holds", n, "an int")
    if size < 0:
        raise InputValueError(f"{layer}: {name} holds {shown(size)}, expected 0 or more")
    return size


@guarded("LayerNorm")
def _shape(normalized_shape: Any) -> tuple[int, ...]:
    sizes = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    shape = tuple(_checked_size("LayerNorm", "normalized_shape", n) for n in sizes)
    if not shape:
        raise InputValueError("LayerNorm: normalized_shape is empty, expected the size of at least one axis")
    return shape


def _full(layer: Layer, name: str, shape: tuple[int, ...], value: int, dtype: Any) -> Array:
    try:
        return np.full(shape, value, dtype)
    except (ValueError, OverflowError) as error:
        raise InputValueError(
            f"{type(layer).__name__}: {name} is {shown(shape)}, expected the shape of an array, and NumPy says: {error}"
        ) from None


def _float(layer: Layer, dtype: DTypeLike | None) -> np.dtype[Any]:
    return asked(type(layer).__name__, _checked_float, type(layer).__name__, dtype)


def _checked_float(layer: str, dtype: DTypeLike | None) -> np.dtype[Any]:
    expected = f"expected one of {', '.join(FLOATS)}"
    try:
        kind = np.dtype(np.float32 if dtype is None else dtype)
    except (TypeError, ValueError):
        raise InputTypeError(f"{layer}: dtype is {shown(dtype)}, {expected}") from None
    if kind.name not in FLOATS:
        raise InputTypeError(f"{layer}: dtype is {kind}, {expected}")
    return kind

"""The public ops: a signature, a docstring, and validate -> resolve policy -> dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from normkit import validation
from normkit.arrays import AnyArray, ArrayT
from normkit.errors import NormkitError
from normkit.execute import execute
from normkit.plans import UNKNOWN, ascending, indices, number, recall, recall_with, true_or_false
from normkit.policy import FallbackPolicy, ambient, setting
from normkit.problem import Array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@overload
def layer_norm(
    x: ArrayT, normalized_shape: int | Sequence[int] | None = None, weight: AnyArray | None = None,
    bias: AnyArray | None = None, eps: float = 1e-5, *, axis: int | Sequence[int] | None = None,
    mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: Literal[False] = False,
    backend: str | None = None, policy: FallbackPolicy | None = None,
) -> ArrayT: ...  # fmt: skip
@overload
def layer_norm(
    x: ArrayT, normalized_shape: int | Sequence[int] | None = None, weight: AnyArray | None = None,
    bias: AnyArray | None = None, eps: float = 1e-5, *, axis: int | Sequence[int] | None = None,
    mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: Literal[True],
    backend: str | None = None, policy: FallbackPolicy | None = None,
) -> tuple[ArrayT, NDArray[np.float64], NDArray[np.float64]]: ...  # fmt: skip
@overload
def layer_norm(
    x: ArrayT, normalized_shape: int | Sequence[int] | None = None, weight: AnyArray | None = None,
    bias: AnyArray | None = None, eps: float = 1e-5, *, axis: int | Sequence[int] | None = None,
    mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: bool,
    backend: str | None = None, policy: FallbackPolicy | None = None,
) -> Any: ...  # fmt: skip
def layer_norm(
    x: Array,
    normalized_shape: int | Sequence[int] | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] | None = None,
    mask: Array | None = None,
    out: Array | None = None,
    return_stats: bool = False,
    backend: str | None = None,
    policy: FallbackPolicy | None = None,
) -> Any:
    r"""Normalize each sample over its trailing axes, or over any axes.

    .. math:: y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} + \mathrm{bias}

    with the mean and the biased variance taken over the normalized axes.

    Parameters
    ----------
    x : array, shape (..., *normalized_shape)
        float16, bfloat16, float32 or float64, of any memory layout.
    normalized_shape : int or sequence of int, optional
        Sizes of the trailing axes to normalize over. None: the shape of `weight` if it is given, else the last axis.
    weight, bias : array, shape normalized_shape, optional
        Scale and offset of each element; each may be given alone, and be of another floating dtype than x.
    eps : float
        Added to the variance, 0 or more. With 0, no variance gives 0, not NaN.
    axis : int or sequence of int, optional
        The axes to normalize over, instead of `normalized_shape`; `weight` and `bias` then have the sizes of those axes
        in the order given.
    mask : array of bool, broadcastable to x, optional
        Statistics are taken where it is True; every position is normalized. Where it leaves one element of a set of
        statistics, or none, the policy's `single_element` says what all of that set becomes; the other sets are not affected.
    out : array, shape and dtype of x, optional
        Receives the result and is returned. ``out=x`` works in place.
    return_stats : bool
        Also return the mean and the reciprocal standard deviation.
    backend : str, optional
        An order: run there or raise. None: the policy chooses.
    policy : FallbackPolicy, optional
        None: that of `using`, or `FallbackPolicy.torch()`.

    Returns
    -------
    y : array, shape and dtype of x, in the memory order of x
    mean, rstd : array of float64, shape of x with the normalized axes kept as 1
        Only if `return_stats`; ``rstd = 1 / sqrt(var + eps)``.

    Raises
    ------
    InputTypeError, InputValueError
        An argument does not fit; nothing has been written.
    DegenerateShapeError
        A statistic would be that of one element, or of none, and the policy says ``"raise"``.
    NoBackendError
        No backend can run the call; the message lists each with its reasons.

    Notes
    -----
    Statistics are accumulated in float64 and the result is rounded once: float32 output of unit variance is within 1e-6
    of a long double computation for ``|mean| / std`` up to 1e6. The bits do not depend on the number of threads, on the
    other rows, or on the memory layout. float64 deviations beyond 1e150 are out of range: their squares overflow.

    References
    ----------
    J. L. Ba, J. R. Kiros and G. E. Hinton, *Layer Normalization*, arXiv:1607.06450, 2016.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x = np.array([[1, 2, 3, 4], [10, 20, 30, 40]], np.float32)
    >>> nk.layer_norm(x).round(3)
    array([[-1.342, -0.447,  0.447,  1.342],
           [-1.342, -0.447,  0.447,  1.342]], dtype=float32)
    """
    op, where = "layer_norm", normalized_shape
    if axis is not None:
        op, where = "layer_norm over", indices(axis) if normalized_shape is None else UNKNOWN
    elif where is not None and not (type(where) is tuple and len(where) == 1 and type(where[0]) is int):  # nearly all are
        where = indices(where)
    arguments: Any = (
        op,
        where,
        eps if type(eps) is float else number(eps),
        out is None,
        ambient().key if backend is None and policy is None else setting(backend, policy),
    )
    if mask is None and return_stats is False:
        y = recall(arguments, x, weight, bias, out)
    else:
        arguments += true_or_false(return_stats), mask is None
        y = recall_with(arguments, x, weight, bias, out, mask)
    if y is not None:
        return y
    call = validation.layer_norm(x, normalized_shape, weight, bias, eps, axis, mask, out)
    in_order = (weight is None and bias is None) or ascending(axis, x.ndim)
    return execute(call, return_stats, backend, policy, arguments if in_order else None)


@overload
def instance_norm(
    x: ArrayT, running_mean: AnyArray | None = None, running_var: AnyArray | None = None, weight: AnyArray | None = None,
    bias: AnyArray | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *,
    channel_axis: int = 1, mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: Literal[False] = False,
    backend: str | None = None, policy: FallbackPolicy | None = None,
) -> ArrayT: ...  # fmt: skip
@overload
def instance_norm(
    x: ArrayT, running_mean: AnyArray | None = None, running_var: AnyArray | None = None, weight: AnyArray | None = None,
    bias: AnyArray | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *,
    channel_axis: int = 1, mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: Literal[True],
    backend: str | None = None, policy: FallbackPolicy | None = None,
) -> tuple[ArrayT, NDArray[np.float64], NDArray[np.float64]]: ...  # fmt: skip
@overload
def instance_norm(
    x: ArrayT, running_mean: AnyArray | None = None, running_var: AnyArray | None = None, weight: AnyArray | None = None,
    bias: AnyArray | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *,
    channel_axis: int = 1, mask: AnyArray | None = None, out: AnyArray | None = None, return_stats: bool,
    backend: str | None = None, policy: FallbackPolicy | None = None,
) -> Any: ...  # fmt: skip
def instance_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    mask: Array | None = None,
    out: Array | None = None,
    return_stats: bool = False,
    backend: str | None = None,
    policy: FallbackPolicy | None = None,
) -> Any:
    r"""Normalize each channel of each instance over its spatial axes.

    .. math:: y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} + \mathrm{bias}

    with the mean and the biased variance taken over all axes but the batch (axis 0) and `channel_axis`.

    Parameters
    ----------
    x : array, shape (N, C, *spatial)
        float16, bfloat16, float32 or float64, of any memory layout. Axis 0 is the batch: unbatched input is not guessed.
    running_mean, running_var : array, shape (C,), optional
        Running statistics, both or neither. With `use_input_stats` they are updated in place, by the mean over N of the
        instances' means and unbiased variances; without it they are the statistics. They stand before weight and bias, as
        in torch: ``instance_norm(x, scale, bias)``, which is ONNX's order, would overwrite scale and bias. Give those by name.
    weight, bias : array, shape (C,), optional
        Scale and offset of each channel; each may be given alone, and be of another floating dtype than x.
    use_input_stats : bool
        Take the statistics from x; if False, from the running arrays.
    momentum : float
        Share of the new statistics in an update of the running arrays.
    eps : float
        Added to the variance, 0 or more. With 0, no variance gives 0, not NaN.
    channel_axis : int
        The axis of the channels; -1 for channels-last.
    mask : array of bool, broadcastable to x, optional
        Statistics are taken where it is True; every position is normalized. Where it leaves one element of a set of
        statistics, or none, the policy's `single_element` says what all of that set becomes; the other sets are not affected.
    out : array, shape and dtype of x, optional
        Receives the result and is returned. ``out=x`` works in place.
    return_stats : bool
        Also return the mean and the reciprocal standard deviation.
    backend : str, optional
        An order: run there or raise. None: the policy chooses.
    policy : FallbackPolicy, optional
        None: that of `using`, or `FallbackPolicy.torch()`.

    Returns
    -------
    y : array, shape and dtype of x, in the memory order of x
    mean, rstd : array of float64, shape of x with the spatial axes kept as 1
        Only if `return_stats`; ``rstd = 1 / sqrt(var + eps)``.

    Raises
    ------
    InputTypeError, InputValueError
        An argument does not fit; nothing has been written.
    DegenerateShapeError
        There is one spatial element, or a mask leaves one or none, and the policy says ``"raise"``.
    NoBackendError
        No backend can run the call; the message lists each with its reasons.

    Notes
    -----
    Accuracy as `layer_norm`. Running arrays are not updated by fewer than two elements, whose variance is unknown.

    References
    ----------
    D. Ulyanov, A. Vedaldi and V. Lempitsky, *Instance Normalization: The Missing Ingredient for Fast Stylization*,
    arXiv:1607.08022, 2016.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    >>> nk.instance_norm(x, weight=np.array([1, 10], np.float32)).round(2).reshape(2, 4)
    array([[ -1.34,  -0.45,   0.45,   1.34],
           [-13.42,  -4.47,   4.47,  13.42]], dtype=float32)
    """
    arguments: Any = (
        "instance_norm",
        channel_axis if type(channel_axis) is int else indices(channel_axis),
        eps if type(eps) is float else number(eps),
        out is None,
        ambient().key if backend is None and policy is None else setting(backend, policy),
    )
    if running_mean is None and running_var is None and use_input_stats is True and mask is None and return_stats is False:
        y = recall(arguments, x, weight, bias, out)
    else:
        arguments += true_or_false(use_input_stats), true_or_false(return_stats), mask is None
        arguments += running_mean is None, running_var is None, None if running_mean is None else number(momentum)
        y = recall_with(arguments, x, weight, bias, out, mask, running_mean, running_var)
    if y is not None:
        return y
    call = validation.instance_norm(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, channel_axis, mask, out
    )
    return execute(call, return_stats, backend, policy, arguments)


def unbatched_error(
    x: Any, *arguments: Any, mask: Any, out: Any, return_stats: Any, backend: Any, policy: Any
) -> NormkitError | None:
    """What is wrong with an `instance_norm` of (C, *spatial), said of the shapes as they are, without a batch."""
    as_given: tuple[Any, ...] = (x, *arguments, 0, mask, out, False)
    try:
        execute(validation.instance_norm(*as_given), return_stats, backend, policy)
    except NormkitError as error:
        return error
    return None

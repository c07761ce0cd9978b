"""Calls that recur skip what could not come out differently.

A call is validated, its policy resolved and its backend chosen. All of that depends on the arguments, on what `using` has set,
and on the type, dtype, shape and strides of each array. Prepared runs are kept by the arguments, what `using` has set among
them, and by the shape of x. Such a plan looks at the arrays itself: it declines those of another kind than it was made for,
and an `out` that is read-only or overlaps. So the plan that took the last call with the same arguments may be asked first,
without a look at the shape. All are forgotten when they are too many, and when a backend is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normkit.problem import Array

# Of x, weight, bias, out, and the mask if there is one: what the call returns. None: it declines
Plan = Callable[..., Any]

plans: dict[Any, tuple[Plan, ...]] = {}  # by arguments and shape
latest: dict[Any, Plan] = {}  # by arguments alone: the plan that took such a call last
_MOST = 1024
_MOST_KINDS = 4  # plans for the same arguments and shape


def recall(arguments: Any, x: Array, weight: Array, bias: Array, out: Array, mask: Array | None) -> Any:
    """The result of a call, if a plan has been kept that takes the arrays."""
    try:
        plan = latest.get(arguments)
    except Exception:  # noqa: BLE001 - one of them cannot be hashed, as a list, or its own __hash__ or __eq__ raises
        return None
    if plan is None:
        return None
    y = plan(x, weight, bias, out) if mask is None else plan(x, weight, bias, out, mask)
    if y is None:
        for plan in _kept(arguments, x):
            y = plan(x, weight, bias, out) if mask is None else plan(x, weight, bias, out, mask)
            if y is not None:
                latest[arguments] = plan
                break
    return y


def _kept(arguments: Any, x: Array) -> tuple[Plan, ...]:
    try:
        return plans.get((arguments, x.shape), ())
    except Exception:  # noqa: BLE001 - a stranger's shape may be a list, or raise
        return ()


def keepable(arguments: Any) -> bool:
    """Whether a plan can be kept for them."""
    try:
        hash(arguments)
    except Exception:  # noqa: BLE001 - its own __hash__ may raise anything
        return False
    return arguments is not None


def keep(arguments: Any, shape: tuple[int, ...], plan: Plan) -> None:
    """Keep a plan for calls with the same arguments, and an x of that shape."""
    if len(plans) >= _MOST:
        forget()
    key = arguments, shape
    plans[key] = (plan, *plans.get(key, ())[: _MOST_KINDS - 1])
    latest[arguments] = plan


def forget() -> None:
    """Keep nothing of what has been kept."""
    plans.clear()
    latest.clear()

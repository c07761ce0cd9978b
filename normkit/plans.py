"""Calls that recur skip what could not come out differently.

A call is validated, its policy resolved and its backend chosen. All of that depends on the arguments, on what `using` has set,
and on the type, dtype, shape and strides of each array. The arguments and the shape of x are the key under which prepared runs
are kept. Such a plan looks at the arrays: it declines those of another kind than it was made for, and an `out` that is
read-only or overlaps. The table is emptied when it is full, and when a backend is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normkit.policy import ambient
from normkit.problem import Array

Plan = Callable[[Array, Array, Array, Array], Array | None]  # of x, weight, bias, out; None: it declines

plans: dict[Any, tuple[Plan, ...]] = {}
_MOST = 1024
_MOST_KINDS = 4  # plans under one key


def recall(arguments: tuple[Any, ...], x: Array, weight: Array, bias: Array, out: Array) -> tuple[Any, Array | None]:
    """The key of a call (None if it can have none), and its result if a plan has been kept that takes the arrays."""
    try:
        key = (arguments, x.shape, out is None, ambient())
        kept = plans.get(key, ())
    except (AttributeError, TypeError):  # x is no array, or something cannot be hashed, as a list
        return None, None
    for plan in kept:
        y = plan(x, weight, bias, out)
        if y is not None:
            return key, y
    return key, None


def keep(key: Any, plan: Plan) -> None:
    """Keep a plan for calls of the same key."""
    if len(plans) >= _MOST:
        plans.clear()
    plans[key] = (plan, *plans.get(key, ())[: _MOST_KINDS - 1])

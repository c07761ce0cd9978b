"""Calls that recur skip what could not come out differently.

A call is validated, its policy resolved and its backend chosen. All of that depends on the types, shapes, strides and dtypes
of the arrays, on the other arguments, and on what `using` has set: this is the key under which the prepared run is kept. A
call with the same key goes straight to the kernel. Only an `out` is looked at again, as it must be writable and not overlap.
The table is emptied when it is full, and when a backend is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from normkit.policy import ambient
from normkit.problem import Array

Plan = Callable[[Array, Array, Array, Array], Array]  # of x, weight, bias, out

plans: dict[Any, Plan] = {}
_MOST = 1024


def recall(arguments: tuple[Any, ...], x: Array, weight: Array, bias: Array, out: Array) -> tuple[Any, Plan | None]:
    """The key of a call (None if it can have none), and its plan if one is kept and may run."""
    try:
        key = (
            arguments, ambient(), x.__class__, x.shape, x.strides, x.dtype,
            weight if weight is None else (weight.__class__, weight.shape, weight.strides, weight.dtype),
            bias if bias is None else (bias.__class__, bias.shape, bias.strides, bias.dtype),
            out if out is None else (out.__class__, out.shape, out.strides, out.dtype),
        )  # fmt: skip
        plan = plans.get(key)
    except (AttributeError, TypeError):  # something is no array, or cannot be hashed, as a list
        return None, None
    if plan is not None and out is not None and not _writable(out, x, weight, bias):
        return key, None
    return key, plan


def keep(key: Any, plan: Plan) -> None:
    """Keep a plan for calls of the same key."""
    if len(plans) >= _MOST:
        plans.clear()
    plans[key] = plan


def _writable(out: Array, x: Array, weight: Array, bias: Array) -> bool:
    """Whether `out` may be written as it is: in place of x, or apart from all operands."""
    return bool(out.flags.writeable) and not any(
        a is not None and a is not out and np.may_share_memory(out, a) for a in (x, weight, bias)
    )

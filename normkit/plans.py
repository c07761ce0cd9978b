"""Calls that recur skip what could not come out differently.

A call is validated, its policy resolved and its backend chosen. All of that depends on the arguments, on what `using` has set,
and on the type, dtype, shape and strides of each array. Prepared runs are kept by the arguments, what `using` has set among
them, and by the shape of x. Such a plan looks at the arrays itself: it declines those of another kind than it was made for,
and an `out` that is read-only or overlaps. So the plan that took the last call with the same arguments may be asked first,
without a look at the shape. All are forgotten when they are too many, and when a backend is registered.

What equals a number need not be one that an op takes (8.0, True, Decimal(8)), so a key holds nothing but Python's own ints,
floats and strings; nothing that a caller has made is hashed, compared or kept alive. A plan holds no array of the size of x
or weight: a thousand of them take some MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from normkit.problem import Array

# Of x, weight, bias, out; then the mask, if there is one or running statistics are given; then those: what the call returns.
# None: it declines
Plan = Callable[..., Any]

MOST = 1024  # plans
MOST_KINDS = 4  # of them for the same arguments and shape

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda self: "UNKNOWN", "__slots__": ()})()  # what no key may hold


class Table:
    """What is kept until the next backend is registered. A plan that was begun before is put where nobody looks any more."""

    __slots__ = ("latest", "number", "plans", "types")

    def __init__(self) -> None:
        self.plans: dict[Any, tuple[Plan, ...]] = {}  # by arguments and shape
        self.latest: dict[Any, Plan] = {}  # by arguments alone: the plan that took such a call last
        self.types: set[type] = set()  # of x: of these, a look at the shape is safe
        self.number = 0

    def keep(self, arguments: Any, x: Array, plan: Plan) -> None:
        """Keep a plan for calls with the same arguments, and an x of that shape."""
        if self.number >= MOST:
            forget()
            return
        key = arguments, tuple(x.shape)
        before = self.plans.get(key, ())
        self.plans[key] = (plan, *before[: MOST_KINDS - 1])
        self.number += len(before) < MOST_KINDS
        self.types.add(type(x))
        self.latest[arguments] = plan


_table = Table()


def current() -> Table:
    """Where to keep what is chosen from now on."""
    return _table


def forget() -> None:
    """Keep nothing of what has been kept, and nothing of what is being chosen."""
    global _table
    _table = Table()


def recall(arguments: Any, x: Array, weight: Array, bias: Array, out: Array) -> Any:
    """The result of a call, if a plan has been kept that takes the arrays."""
    table = _table
    try:
        plan = table.latest[arguments]  # faster than `get`, as long as it is found
    except KeyError:
        return None
    y = plan(x, weight, bias, out)
    return y if y is not None else _by_shape(table, arguments, x, weight, bias, out)


def recall_with(arguments: Any, x: Array, *others: Array) -> Any:
    """As `recall`, of a call that has more arrays than x, weight, bias and out, or returns more than one."""
    table = _table
    plan = table.latest.get(arguments)
    if plan is None:
        return None
    y = plan(x, *others)
    return y if y is not None else _by_shape(table, arguments, x, *others)


def _by_shape(table: Table, arguments: Any, x: Array, *others: Array) -> Any:
    """What the plan gives that takes the arrays, if there is one; it is asked first from then on."""
    if type(x) in table.types:
        for plan in table.plans.get((arguments, x.shape), ()):
            y = plan(x, *others)
            if y is not None:
                table.latest[arguments] = plan
                return y
    return None


def keepable(arguments: Any) -> bool:
    """Whether a plan can be kept for them."""
    return arguments is not None and not any(part is UNKNOWN for part in arguments)


def indices(value: Any) -> Any:
    """An int, or a list or tuple of some, as a part of a key; UNKNOWN of anything else."""
    kind = type(value)
    if kind is int:
        return value
    if kind is not tuple and kind is not list:
        return UNKNOWN
    for n in value:
        if type(n) is not int:
            return UNKNOWN
    return value if kind is tuple else tuple(value)


def number(value: Any) -> Any:
    """A real number as a part of a key; UNKNOWN of anything else."""
    kind = type(value)
    if kind is float or kind is int:
        return value
    return float(value) if kind is np.float64 or kind is np.float32 else UNKNOWN  # as a configuration may hold eps


def ascending(axis: Any, ndim: int) -> bool:
    """Whether axes that have been checked are given in the order in which x has them, and so has weight."""
    if not isinstance(axis, tuple | list):
        return True
    axes = [a % ndim for a in axis]
    return axes == sorted(axes)


def true_or_false(value: Any) -> Any:
    """A flag as a part of a key."""
    return value if type(value) is bool else UNKNOWN

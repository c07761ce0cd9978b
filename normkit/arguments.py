"""What an argument is asked, and how it is shown. It may answer with code of its own, and that may raise anything.

Whatever an argument does comes out as an error of normkit's own: checks that ask arguments are `guarded`, and those below
say what they expected.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any, ParamSpec, TypeVar

import numpy as np

from normkit.errors import InputTypeError, InputValueError, NormkitError

P = ParamSpec("P")
R = TypeVar("R")

_MOST = 400  # characters of an argument that are shown


def asked(op: str, ask: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`ask(*args)`, a check of arguments; where their own code fails in it, the error is normkit's all the same."""
    try:
        return ask(*args, **kwargs)
    except (NormkitError, MemoryError):
        raise
    except Exception as error:  # a property, __index__ or __class__ of a stranger may raise anything
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise  # nothing was looked at: an argument too many, or too few
        raise InputTypeError(f"{op}: an argument could not be looked at, as that raised {shown(error)}") from error


def guarded(op: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A check of arguments that is `asked`, always."""

    def decorated(ask: Callable[P, R]) -> Callable[P, R]:
        @wraps(ask)
        def guard(*args: P.args, **kwargs: P.kwargs) -> R:
            return asked(op, ask, *args, **kwargs)

        return guard

    return decorated


def shown(value: object) -> str:
    """The repr of an argument, or so much of it as can be read."""
    if type(value) is int and value.bit_length() > 4 * _MOST:
        return f"an int of {value.bit_length()} bits"  # Python refuses to print what is much longer
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - it is shown in an error about something else
        return f"a {type(value).__qualname__}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}... ({len(text)} characters)"


def flag(op: str, name: str, value: Any) -> bool:
    """A yes or no."""
    if isinstance(value, bool | np.bool_) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise InputTypeError(f"{op}: {name} is {shown(value)}, expected True or False")


def integer(op: str, what: str, value: Any, expected: str = "an int or a tuple of ints") -> int:
    """A whole number; `what` says what has it, as "axis holds"."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputTypeError(f"{op}: {what} {shown(value)}, expected {expected}") from None


def finite(op: str, name: str, value: Any) -> float:
    """A real number that is neither infinite nor NaN."""
    if not isinstance(value, Real) or isinstance(value, np.timedelta64):  # which NumPy counts among the integers
        raise InputTypeError(f"{op}: {name} is {shown(value)}, expected a real number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputValueError(f"{op}: {name} is {shown(value)}, expected a finite number")
    return number

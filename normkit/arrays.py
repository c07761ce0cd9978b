"""What a type checker is told of arrays: what comes in comes out, of the same type, dtype and number of axes."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar


class AnyArray(Protocol):
    """An array of whichever family: numpy.ndarray, cupy.ndarray, ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...


ArrayT = TypeVar("ArrayT", bound=AnyArray)

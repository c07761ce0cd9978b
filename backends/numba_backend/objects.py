"""Python objects as compiled code takes them: as they are, or, of an array, its memory alone.

To unpack an array with its shape and strides takes 20 ns, which is much for a kernel that runs for 50 and uses neither. So
the address is read where NumPy's C API has it, once a look at an array has shown that it is there.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.core.datamodel.models import OpaqueModel, PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import NativeValue, lower_builtin, register_model, unbox
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

# Where a Python object has its type, and an array what is its own (PyArrayObject_fields of NumPy's C API)
TYPE, DATA, NDIM, SHAPE, STRIDES, DTYPE, FLAGS = 8, 16, 24, 32, 40, 56, 64
# Where a dtype has its byte order, as a character (PyArray_Descr of NumPy 1 and 2): in the third byte of this word
ORDER, ORDER_SHIFT = 24, 16
SWAPPED = ord(">")  # the only order that is not this machine's, where arrays are readable

_ELEMENTS = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.uint16: ir.IntType(16),
    types.int16: ir.IntType(16),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(8),
}


class Object(types.Opaque):
    """The Numba type of a Python object that stays as it is."""


class Memory(types.Type):
    """The Numba type of an array of which nothing but the address of its first element is known."""

    def __init__(self, dtype: types.Type) -> None:
        super().__init__(name=f"Memory({dtype})")
        self.dtype = dtype


register_model(Object)(OpaqueModel)
OBJECT = Object("Object")


@register_model(Memory)
class _MemoryModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Memory) -> None:
        super().__init__(dmm, fe_type, _ELEMENTS[fe_type.dtype].as_pointer())


@unbox(Object)
def _as_it_is(typ: Any, obj: Any, c: Any) -> NativeValue:
    return NativeValue(obj)


@unbox(Memory)
def _its_memory(typ: Any, obj: Any, c: Any) -> NativeValue:
    data = c.builder.gep(c.builder.bitcast(obj, ir.IntType(8).as_pointer()), [ir.IntType(64)(DATA)])
    return NativeValue(c.builder.load(c.builder.bitcast(data, c.context.get_value_type(typ).as_pointer())))


@infer_global(operator.getitem)
class _Item(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        memory, index = args
        if isinstance(memory, Memory) and isinstance(index, types.Integer):
            return signature(memory.dtype, memory, types.intp)
        return None


@lower_builtin(operator.getitem, Memory, types.Integer)
def _item(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.load(builder.gep(args[0], [args[1]]))


@lru_cache(maxsize=1)
def readable() -> bool:
    """Whether arrays are laid out as compiled code will read them."""
    if config.DISABLE_JIT or sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    if object.__basicsize__ != DATA or np.ndarray.__basicsize__ < FLAGS + 8 or sys.byteorder != "little":
        return False
    if np.dtype.__basicsize__ < ORDER + 8:
        return False

    def at(address: int, words: int) -> list[int]:
        return list((ctypes.c_int64 * words).from_address(address))

    a = np.zeros((3, 4, 5), np.float64)[:, ::-2]
    fields = at(id(a), FLAGS // 8 + 1)
    return (
        [fields[TYPE // 8], fields[DATA // 8], fields[NDIM // 8] & 0xFFFFFFFF] == [id(np.ndarray), a.ctypes.data, 3]
        and at(fields[SHAPE // 8], 3) == list(a.shape)
        and at(fields[STRIDES // 8], 3) == list(a.strides)
        and fields[DTYPE // 8] == id(a.dtype)
        and fields[FLAGS // 8] & 0xFFFFFFFF == a.flags.num
        and all(_dtype_reads(np.dtype(np.float32).newbyteorder(order)) for order in "=<>")
    )


def _dtype_reads(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype has its class and its byte order where compiled code will look for them."""
    (klass,), (order,) = ((ctypes.c_int64 * 1).from_address(id(dtype) + at) for at in (TYPE, ORDER))
    return klass == id(type(dtype)) and (order >> ORDER_SHIFT & 0xFF == SWAPPED) is not dtype.isnative


@lru_cache(maxsize=1)
def by_address() -> bool:
    """Whether kernels are given the address of an array alone: not if each access is checked, by where the array ends."""
    return readable() and not config.BOUNDSCHECK


def end_to_end(a: NDArray[Any]) -> NDArray[Any]:
    """A C-contiguous array as kernels take it: one axis, or as it is if its address is all that they are given."""
    return a if by_address() else a.reshape(-1)


def flat(a: NDArray[Any]) -> NDArray[Any]:
    """An array as kernels take one with gaps: all memory from the lowest to the highest element, as one axis.

    Or the array itself, if its address, that of the lowest element, is all that they are given.
    """
    if a.flags.c_contiguous:
        return a.reshape(-1)
    if by_address() and min(a.strides) >= 0:
        return a
    upwards = a[tuple(slice(None, None, -1) if s < 0 else slice(None) for s in a.strides)]
    extent = 1 + sum((n - 1) * s for n, s in zip(upwards.shape, upwards.strides, strict=True) if n > 1) // a.itemsize
    return as_strided(upwards, (extent,), (a.itemsize,))

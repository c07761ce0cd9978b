"""The compiled look at a call's arrays: are they of the kinds that a plan was made for?

Objects are taken as addresses, and read where NumPy's C API has an array's fields, see `objects`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from .inlined import inline
from .objects import DATA, DTYPE, FLAGS, NDIM, ORDER, ORDER_SHIFT, SHAPE, STRIDES, SWAPPED, TYPE

MOST_AXES = 16  # NumPy has up to 64
WRITEABLE = 0x400
# What a kind says: addresses of type, dtype (0 of no array) and the dtype's class, whether its bytes are swapped, axes, from
# where to where its memory reaches, seen from its first element, and whether out may be where it is; then sizes and strides
K_TYPE, K_DTYPE, K_CLASS, K_SWAPPED, K_NDIM, K_LOW, K_HIGH, K_IN_PLACE, K_SHAPE = range(0, 72, 8)
K_STRIDES = K_SHAPE + 8 * MOST_AXES
K_WORDS = 8 + 2 * MOST_AXES


OBJECTS = "x_object", "weight_object", "bias_object", "out_object", "known"


@intrinsic
def place_of(typingctx: Any, thing: Any) -> Any:
    """Where a Python object is."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(thing), codegen


@intrinsic
def word(typingctx: Any, place: Any) -> Any:
    """The 8 bytes there, as an integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), codegen


@inline
def is_dtype(dtype: int, k: int) -> bool:
    """Whether it is the dtype of the kind at k, or equals it: arrays that were pickled bear an object of their own, for one."""
    if dtype == word(k + K_DTYPE):
        return True
    swapped = (word(dtype + ORDER) >> ORDER_SHIFT) & 0xFF == SWAPPED
    return word(dtype + TYPE) == word(k + K_CLASS) and swapped == (word(k + K_SWAPPED) != 0)


@inline
def is_of(a: int, k: int) -> bool:
    """Whether the object at a is of the kind at k."""
    if word(a + TYPE) != word(k):
        return False
    if word(k + K_DTYPE) == 0:
        return True
    if word(a + NDIM) & 0xFFFFFFFF != word(k + K_NDIM) or not is_dtype(word(a + DTYPE), k):
        return False
    shape, strides = word(a + SHAPE), word(a + STRIDES)
    for i in range(0, 8 * word(k + K_NDIM), 8):
        if word(shape + i) != word(k + K_SHAPE + i) or word(strides + i) != word(k + K_STRIDES + i):
            return False
    return True


@inline
def apart(a: int, k: int, out: int, k_out: int) -> bool:
    """Whether what the arrays at a and out span has no byte in common; an a of None has none."""
    if word(k + K_DTYPE) == 0:
        return True
    first, out_first = word(a + DATA), word(out + DATA)
    return first + word(k + K_HIGH) <= out_first + word(k_out + K_LOW) or out_first + word(k_out + K_HIGH) <= first + word(
        k + K_LOW
    )


@njit(error_model="numpy", _nrt=False)  # holds the GIL, so that nobody changes what is read
def alike(x_object: Any, weight_object: Any, bias_object: Any, out_object: Any, known: Any) -> bool:
    """Whether x, weight, bias and out are of the kinds known, and out may be written: in place of x, or apart from all."""
    x, weight, bias, out = place_of(x_object), place_of(weight_object), place_of(bias_object), place_of(out_object)
    k = word(place_of(known) + DATA)
    k_weight, k_bias, k_out = k + 8 * K_WORDS, k + 16 * K_WORDS, k + 24 * K_WORDS
    if not (is_of(x, k) and is_of(weight, k_weight) and is_of(bias, k_bias) and is_of(out, k_out)):
        return False
    if word(k_out + K_DTYPE) == 0:
        return True
    if word(out + FLAGS) & WRITEABLE == 0:
        return False
    in_place = word(k + K_IN_PLACE) != 0 and word(x + DATA) == word(out + DATA)
    return (in_place or apart(x, k, out, k_out)) and apart(weight, k_weight, out, k_out) and apart(bias, k_bias, out, k_out)

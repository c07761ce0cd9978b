"""Between arrays and vectors: loads, stores, and what surrounds them, for kernels that check nothing themselves.

Arrays are addressed by their data pointer and an element index alone. Their elements are float32, float64 or halves, see
`conversions`. With NUMBA_DISABLE_JIT=1 the same names are plain NumPy; with NUMBA_BOUNDSCHECK=1 an access outside an array
ends the process.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .conversions import (
    ELEMENTS,
    by_way_of_memory,
    call,
    copy_first,
    f32,
    f64,
    folds_conversions,
    has,
    i1,
    i8,
    i16,
    i32,
    i64,
    like,
    narrowed,
    takes_apart,
    widened,
)
from .objects import Memory
from .simd import FLOATS, SUFFIX, WIDTH, Lanes, first_lanes, halved, nbytes, vector

ONE = i64(1)
STACK = 14 * WIDTH  # see `stack`
STAGE = 1 << 14  # see `stage`


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any) -> Any:
    """A pointer to WIDTH elements from `index` on, of which `count` are meant; and the type of one element in memory."""
    pointer = pointer_to(context, builder, array_type, array, index, count)
    element = ELEMENTS[array_type.dtype]
    return builder.bitcast(pointer, vector(element).as_pointer()), element


def pointer_to(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any = ONE) -> Any:
    """A pointer to the element at `index`."""
    data = data_pointer(context, builder, array_type, array)
    if config.BOUNDSCHECK:
        view = context.make_array(array_type)(context, builder, array)
        low, high = _span(builder, array_type, view)
        first, end = (builder.mul(i, view.itemsize) for i in (index, builder.add(index, count)))
        outside = builder.or_(builder.icmp_signed("<", first, low), builder.icmp_signed(">", end, high))
        with builder.if_then(outside, likely=False):
            call(builder, "llvm.trap", ir.VoidType(), [])
    return builder.gep(data, [index])


def data_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """A pointer to the first element."""
    return array if isinstance(array_type, Memory) else context.make_array(array_type)(context, builder, array).data


def _span(builder: Any, array_type: Any, view: Any) -> tuple[Any, Any]:
    """How far an array's memory reaches on either side of its data pointer, in bytes."""
    low = high = i64(0)
    for n, step in zip(*(cgutils.unpack_tuple(builder, t, array_type.ndim) for t in (view.shape, view.strides)), strict=True):
        reach = builder.mul(builder.sub(n, i64(1)), step)
        backward = builder.icmp_signed("<", reach, i64(0))
        low, high = (
            builder.select(backward, builder.add(low, reach), low),
            builder.select(backward, high, builder.add(high, reach)),
        )
    return low, builder.add(high, view.itemsize)


@intrinsic
def load(typingctx: Any, array: Any, index: Any, compute: Any) -> Any:
    """WIDTH elements of a contiguous array from `index` on, as lanes of the float type `compute`."""

    return Lanes(compute.dtype)(array, types.intp, compute), _loaded


def _loaded(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pointer, element = _address(context, builder, sig.args[0], args[0], args[1], i64(WIDTH))
    to = FLOATS[sig.return_type.dtype]
    if element != i16 or to != f64 or folds_conversions():
        return widened(builder, builder.load(pointer, align=1), sig.args[0], to)
    # Eight at a time: what is read fills a register only once it is float64, and none has to be taken apart
    eight = builder.bitcast(pointer, ir.VectorType(element, WIDTH // 2).as_pointer())
    parts = [builder.load(builder.gep(eight, [i64(at)]), align=1) for at in (0, 1)]
    return _doubled(builder, [widened(builder, part, sig.args[0], f32) for part in parts])


def _doubled(builder: Any, parts: list[Any]) -> Any:
    """Lanes of float64 from two halves of them in float32."""
    if takes_apart():
        parts = by_way_of_memory(builder, parts)
    parts = [builder.fpext(part, like(part, f64)) for part in parts]
    return builder.shuffle_vector(*parts, ir.Constant(vector(i32), list(range(WIDTH))))


def _by_evens(array: Any) -> bool:
    return bool(array.dtype == types.int16) and sys.byteorder == "little"


@intrinsic
def load_evens(typingctx: Any, array: Any, index: Any) -> Any:
    """As `load` of float64, but for the order of lanes, which is that of `in_order`: of bfloat16 the even ones come first.

    Two of them are an integer: one half of it is a float32 with a shift, the other with an and.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _by_evens(sig.args[0]):
            return _loaded(context, builder, sig, args)
        pointer, _ = _address(context, builder, sig.args[0], args[0], args[1], i64(WIDTH))
        pairs = ir.VectorType(i32, WIDTH // 2)
        v = builder.load(builder.bitcast(pointer, pairs.as_pointer()), align=1)
        parts = builder.shl(v, like(v, i32, 16)), builder.and_(v, like(v, i32, 0xFFFF0000))
        return _doubled(builder, [builder.bitcast(part, like(part, f32)) for part in parts])

    return Lanes(types.float64)(array, types.intp), codegen


@intrinsic
def in_order(typingctx: Any, array: Any, lanes: Any) -> Any:
    """Lanes that were loaded by `load_evens` from the array, or are made of such, as `load` would have them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not _by_evens(sig.args[0]):
            return args[1]
        order = [i // 2 + i % 2 * (WIDTH // 2) for i in range(WIDTH)]
        return builder.shuffle_vector(args[1], args[1], ir.Constant(vector(i32), order))

    return lanes(array, lanes), codegen


@intrinsic
def load_first(typingctx: Any, array: Any, index: Any, count: Any, compute: Any) -> Any:
    """As `load`, but only `count` < WIDTH elements are read; the other lanes are 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, element = _address(context, builder, sig.args[0], args[0], args[1], args[2])
        v = vector(element)
        zero = ir.Constant(v, None)
        if element == i16 and not has("avx512bw"):  # there is no masked load of halves, which would be 16 branches
            place = cgutils.alloca_once_value(builder, zero)
            copy_first(builder, pointer, place, args[2], element)
            v = builder.load(place)
        else:
            arguments = [pointer, i32(1), first_lanes(builder, args[2], element), zero]
            v = call(builder, f"llvm.masked.load.v{WIDTH}{SUFFIX[element]}.p0", v, arguments)
        return widened(builder, v, sig.args[0], FLOATS[sig.return_type.dtype])

    return Lanes(compute.dtype)(array, types.intp, types.intp, compute), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Write the lanes to a contiguous array from `index` on."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, _ = _address(context, builder, sig.args[0], args[0], args[1], i64(WIDTH))
        builder.store(narrowed(builder, args[2], sig.args[0]), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def store_normal(typingctx: Any, array: Any, index: Any, lanes: Any) -> Any:
    """As `store`, of lanes that hold no subnormal numbers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, _ = _address(context, builder, sig.args[0], args[0], args[1], i64(WIDTH))
        builder.store(narrowed(builder, args[2], sig.args[0], normal=True), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def stream(typingctx: Any, array: Any, index: Any, lanes: Any) -> Any:
    """As `store`, past the caches; the address must be a multiple of 64, of 16 for halves, and `fence` must follow.

    Halves are streamed 16 bytes at a time: NumPy's arrays begin at a multiple of that, so that no row has ends to be put aside.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, element = _address(context, builder, sig.args[0], args[0], args[1], i64(WIDTH))
        written = builder.store(narrowed(builder, args[2], sig.args[0]), pointer, align=64 if nbytes(element) > 2 else 16)
        written.set_metadata("nontemporal", builder.module.add_metadata([i32(1)]))
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def store_first(typingctx: Any, array: Any, index: Any, count: Any, lanes: Any) -> Any:
    """Write the first `count` < WIDTH lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, element = _address(context, builder, sig.args[0], args[0], args[1], args[2])
        v = narrowed(builder, args[3], sig.args[0])
        place = cgutils.alloca_once_value(builder, v)
        builder.store(v, place)
        copy_first(builder, place, pointer, args[2], element)  # not a masked store, after which these CPUs wait for the line
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), codegen


@intrinsic
def load_apart(typingctx: Any, array: Any, index: Any, step: Any, compute: Any) -> Any:
    """As `load`, of WIDTH elements that are a step apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = ir.Constant(vector(ELEMENTS[sig.args[0].dtype]), ir.Undefined)
        for i, pointer in enumerate(_apart(context, builder, sig.args[0], *args[:3])):
            v = builder.insert_element(v, builder.load(pointer, align=1), i32(i))
        return widened(builder, v, sig.args[0], FLOATS[sig.return_type.dtype])

    return Lanes(compute.dtype)(array, types.intp, types.intp, compute), codegen


@intrinsic
def store_apart(typingctx: Any, array: Any, index: Any, step: Any, lanes: Any) -> Any:
    """As `store`, to WIDTH elements that are a step apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = narrowed(builder, args[3], sig.args[0])
        for i, pointer in enumerate(_apart(context, builder, sig.args[0], *args[:3])):
            builder.store(builder.extract_element(v, i32(i)), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), codegen


def _apart(context: Any, builder: Any, array_type: Any, array: Any, index: Any, step: Any) -> list[Any]:
    """Pointers to WIDTH elements, a step apart."""
    places = [index]
    while len(places) < WIDTH:
        places.append(builder.add(places[-1], step))
    return [pointer_to(context, builder, array_type, array, place) for place in places]


@intrinsic
def put_quarter(typingctx: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Write 4 float64: what is left of the lanes after the first two steps of `total`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = pointer_to(context, builder, sig.args[0], args[0], args[1])
        part = halved(builder, halved(builder, args[2]))
        builder.store(part, builder.bitcast(pointer, part.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def stack(typingctx: Any, compute: Any) -> Any:
    """An array of STACK floats on this thread's stack: it holds nothing yet, and is gone with the call."""
    array = types.Array(compute.dtype, 1, "C")
    element = FLOATS[compute.dtype]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.goto_entry_block():  # cgutils.alloca_once would fill it with zeros, in 40 ns
            memory = builder.alloca(ir.ArrayType(element, STACK))
        memory.align = 64
        view, size = context.make_array(array)(context, builder), i64(nbytes(element))
        populate_array(view, builder.bitcast(memory, view.data.type), [i64(STACK)], [size], size, None)
        return view._getvalue()

    return array(compute), codegen


@intrinsic
def has_stage(typingctx: Any, array: Any) -> Any:
    """Whether there is a `stage` for the array: a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i1(isinstance(sig.args[0], Memory))

    return types.boolean(array), codegen


@intrinsic
def stage(typingctx: Any, array: Any, wanted: Any) -> Any:
    """If it is wanted, STAGE bytes on this thread's stack in place of the array's memory; they hold nothing yet."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not isinstance(sig.args[0], Memory):
            return args[0]
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(i8, STAGE))
        memory.align = 64
        return builder.select(args[1], builder.bitcast(memory, args[0].type), args[0])

    return array(array, types.boolean), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any, ahead: Any) -> Any:
    """Ask for the cache lines of WIDTH elements `ahead` of index, into L1, or of None for nothing; they need not exist."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[2] == types.none:
            return context.get_dummy_value()
        data = data_pointer(context, builder, sig.args[0], args[0])
        line = builder.bitcast(builder.gep(data, [builder.add(args[1], args[2])]), i8.as_pointer())
        for at in range(0, WIDTH * nbytes(ELEMENTS[sig.args[0].dtype]), 64):
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [builder.gep(line, [i64(at)]), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, ahead), codegen


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """The array's data pointer as an integer, to look at its alignment."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = data_pointer(context, builder, sig.args[0], args[0])
        return builder.ptrtoint(data, i64)

    return types.intp(array), codegen


@intrinsic
def element(typingctx: Any, array: Any, index: Any) -> Any:
    """One element, as float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = builder.load(pointer_to(context, builder, sig.args[0], args[0], args[1]), align=1)
        return widened(builder, scalar, sig.args[0], f64)

    return types.float64(array, types.intp), codegen


@intrinsic
def put(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write one element, given as float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(narrowed(builder, args[2], sig.args[0]), pointer_to(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float64), codegen


@intrinsic
def take(typingctx: Any, taken: Any, index: Any, n: Any) -> Any:
    """Add n to one of an array's int64, in one step for all threads, and return what it was; 0 of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return i64(0)
        return builder.atomic_rmw("add", pointer_to(context, builder, sig.args[0], args[0], args[1]), args[2], "monotonic")

    return types.intp(taken, types.intp, types.intp), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Make streamed stores visible to other threads."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


if config.DISABLE_JIT:
    from .plain import *  # noqa: F403

"""Vectors for kernels: 16 lanes of float32 or float64 in registers, so that a kernel says what is summed in which order.

LLVM's vectorizer reorders sums as it sees fit for each loop and CPU. Here element k of a block always goes to lane k % 16,
and `total` adds the lanes in one fixed tree: the bits are the same in every kernel, on any number of threads. LLVM splits
the 16 lanes into whatever registers the CPU has.

Arrays are addressed by their data pointer and an element index alone. Their elements are float32, float64 or halves, see
`conversions`.
With NUMBA_DISABLE_JIT=1 the same names are plain NumPy; with NUMBA_BOUNDSCHECK=1 an access outside an array ends the process.
"""

from __future__ import annotations

import operator
import platform
import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model
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
    has_long_vectors,
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

WIDTH = 16
STACK = 14 * WIDTH  # see `stack`
STAGE = 1 << 14  # see `stage`


class Lanes(types.Type):
    """The Numba type of a vector of WIDTH floats."""

    def __init__(self, element: types.Float) -> None:
        super().__init__(name=f"Lanes({element})")
        self.dtype = element


@register_model(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, _vector(_FLOATS[fe_type.dtype]))


_FLOATS = {types.float32: f32, types.float64: f64}


def _vector(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, WIDTH)


def _constant(element: ir.Type, value: Any) -> ir.Constant:
    return ir.Constant(_vector(element), [value] * WIDTH)


def _broadcast(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_vector(scalar.type), ir.Undefined)
    first = builder.insert_element(undefined, scalar, i32(0))
    return builder.shuffle_vector(first, undefined, _constant(i32, 0))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any) -> Any:
    """A pointer to WIDTH elements from `index` on, of which `count` are meant; and the type of one element in memory."""
    pointer = _one(context, builder, array_type, array, index, count)
    element = ELEMENTS[array_type.dtype]
    return builder.bitcast(pointer, _vector(element).as_pointer()), element


def _one(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any = i64(1)) -> Any:  # noqa: B008
    """A pointer to the element at `index`."""
    data = _data(context, builder, array_type, array)
    if config.BOUNDSCHECK:
        view = context.make_array(array_type)(context, builder, array)
        low, high = _span(builder, array_type, view)
        first, end = (builder.mul(i, view.itemsize) for i in (index, builder.add(index, count)))
        outside = builder.or_(builder.icmp_signed("<", first, low), builder.icmp_signed(">", end, high))
        with builder.if_then(outside, likely=False):
            call(builder, "llvm.trap", ir.VoidType(), [])
    return builder.gep(data, [index])


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
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


def _first(builder: Any, count: Any, element: ir.Type) -> Any:
    """A mask of the first `count` lanes, compared as integers of their size: AVX would have to make one mask of another."""
    integer = i64 if element == f64 else i32
    numbers = ir.Constant(_vector(integer), list(range(WIDTH)))
    count = builder.trunc(count, integer) if integer != i64 else count
    return builder.icmp_signed("<", numbers, _broadcast(builder, count))


_SUFFIX = {f32: "f32", f64: "f64", i16: "i16"}


def _bytes(element: ir.Type) -> int:
    return 8 if element == f64 else 4 if element == f32 else 2


@intrinsic
def load(typingctx: Any, array: Any, index: Any, compute: Any) -> Any:
    """WIDTH elements of a contiguous array from `index` on, as lanes of the float type `compute`."""

    return Lanes(compute.dtype)(array, types.intp, compute), _loaded


def _loaded(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pointer, element = _address(context, builder, sig.args[0], args[0], args[1], i64(WIDTH))
    to = _FLOATS[sig.return_type.dtype]
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
    return builder.shuffle_vector(*parts, ir.Constant(_vector(i32), list(range(WIDTH))))


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
        return builder.shuffle_vector(args[1], args[1], ir.Constant(_vector(i32), order))

    return lanes(array, lanes), codegen


@intrinsic
def load_first(typingctx: Any, array: Any, index: Any, count: Any, compute: Any) -> Any:
    """As `load`, but only `count` < WIDTH elements are read; the other lanes are 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer, element = _address(context, builder, sig.args[0], args[0], args[1], args[2])
        v = _vector(element)
        zero = ir.Constant(v, None)
        if element == i16 and not has("avx512bw"):  # there is no masked load of halves, which would be 16 branches
            place = cgutils.alloca_once_value(builder, zero)
            copy_first(builder, pointer, place, args[2], element)
            v = builder.load(place)
        else:
            arguments = [pointer, i32(1), _first(builder, args[2], element), zero]
            v = call(builder, f"llvm.masked.load.v{WIDTH}{_SUFFIX[element]}.p0", v, arguments)
        return widened(builder, v, sig.args[0], _FLOATS[sig.return_type.dtype])

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
        written = builder.store(narrowed(builder, args[2], sig.args[0]), pointer, align=64 if _bytes(element) > 2 else 16)
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
def splat(typingctx: Any, scalar: Any, compute: Any) -> Any:
    """The same float64 in every lane, rounded to `compute`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        to = _FLOATS[sig.return_type.dtype]
        return _broadcast(builder, args[0] if to == f64 else builder.fptrunc(args[0], to))

    return Lanes(compute.dtype)(types.float64, compute), codegen


@intrinsic
def keep_first(typingctx: Any, lanes: Any, count: Any) -> Any:
    """The first `count` lanes, and 0 in the others."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_first(builder, args[1], args[0].type.element), args[0], ir.Constant(args[0].type, None))

    return lanes(lanes, types.intp), codegen


@intrinsic
def pick(typingctx: Any, flags: Any, a: Any, b: Any) -> Any:
    """Lanes of a where the flag is not 0, of b elsewhere; all of a if the flags are None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return args[1]
        return builder.select(builder.fcmp_unordered("une", args[0], ir.Constant(args[0].type, None)), args[1], args[2])

    return a(flags, a, b), codegen


@intrinsic
def cast(typingctx: Any, lanes: Any, compute: Any) -> Any:
    """The lanes as another float type."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v, to = args[0], _FLOATS[sig.return_type.dtype]
        if v.type.element == to:
            return v
        return builder.fpext(v, _vector(to)) if to == f64 else builder.fptrunc(v, _vector(to))

    return Lanes(compute.dtype)(lanes, compute), codegen


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = args[0].type
        return call(builder, f"llvm.fma.v{WIDTH}{_SUFFIX[v.element]}", v, list(args))

    return a(a, b, c), codegen


@intrinsic
def total(typingctx: Any, lanes: Any) -> Any:
    """The sum of all lanes of float64, halves onto halves."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = args[0]
        while v.type.count > 1:
            v = _halved(builder, v)
        return builder.extract_element(v, i32(0))

    return types.float64(lanes), codegen


@intrinsic
def put_quarter(typingctx: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Write 4 float64: what is left of the lanes after the first two steps of `total`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _one(context, builder, sig.args[0], args[0], args[1])
        part = _halved(builder, _halved(builder, args[2]))
        builder.store(part, builder.bitcast(pointer, part.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def crosswise(typingctx: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The last two steps of `total` for each 4 lanes of a, b, c, d: lane 4 k + 2 is that of the 4 from 4 k on in c."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b, c, d = args
        return _paired(builder, _paired(builder, a, c, 4), _paired(builder, b, d, 4), 2)

    return a(a, b, c, d), codegen


def _halved(builder: Any, v: Any) -> Any:
    """The sums of the lanes of either half."""
    n = v.type.count // 2
    low, high = (ir.Constant(ir.VectorType(i32, n), list(range(at, at + n))) for at in (0, n))
    return builder.fadd(builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high))


def _paired(builder: Any, a: Any, b: Any, n: int) -> Any:
    """For each n lanes, those of a and of b with their halves added onto each other, side by side."""
    low = [at + v + i for at in range(0, WIDTH, n) for v in (0, WIDTH) for i in range(n // 2)]
    low, high = (ir.Constant(_vector(i32), [i + half for i in low]) for half in (0, n // 2))
    return builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))


@intrinsic
def roots(typingctx: Any, lanes: Any) -> Any:
    """The square root of each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = args[0].type
        return call(builder, f"llvm.sqrt.v{WIDTH}{_SUFFIX[v.element]}", v, list(args))

    return lanes(lanes), codegen


@intrinsic
def above(typingctx: Any, a: Any, b: Any) -> Any:
    """1 in the lanes where a > b, 0 elsewhere."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one, zero = (like(args[0], args[0].type.element, value) for value in (1.0, 0.0))
        return builder.select(builder.fcmp_ordered(">", *args), one, zero)

    return a(a, b), codegen


@intrinsic
def magnitude(typingctx: Any, lanes: Any) -> Any:
    """The absolute value of each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = args[0].type
        return call(builder, f"llvm.fabs.v{WIDTH}{_SUFFIX[v.element]}", v, list(args))

    return lanes(lanes), codegen


@intrinsic
def any_of(typingctx: Any, lanes: Any) -> Any:
    """Whether any lane is not 0, which is rare: what follows then is kept out of the way."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.fcmp_unordered("une", args[0], ir.Constant(args[0].type, None))
        any_bit = builder.icmp_unsigned("!=", builder.bitcast(bits, i16), i16(0))
        return call(builder, "llvm.expect.i1", i1, [any_bit, i1(0)])

    return types.boolean(lanes), codegen


@intrinsic
def stack(typingctx: Any, compute: Any) -> Any:
    """An array of STACK floats on this thread's stack: it holds nothing yet, and is gone with the call."""
    array = types.Array(compute.dtype, 1, "C")
    element = _FLOATS[compute.dtype]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.goto_entry_block():  # cgutils.alloca_once would fill it with zeros, in 40 ns
            memory = builder.alloca(ir.ArrayType(element, STACK))
        memory.align = 64
        view, size = context.make_array(array)(context, builder), i64(_bytes(element))
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
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache lines of WIDTH elements, into L1; the address need not exist."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = _data(context, builder, sig.args[0], args[0])
        line = builder.bitcast(builder.gep(data, [args[1]]), i8.as_pointer())
        for at in range(0, WIDTH * _bytes(ELEMENTS[sig.args[0].dtype]), 64):
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [builder.gep(line, [i64(at)]), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """The array's data pointer as an integer, to look at its alignment."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = _data(context, builder, sig.args[0], args[0])
        return builder.ptrtoint(data, i64)

    return types.intp(array), codegen


@intrinsic
def element(typingctx: Any, array: Any, index: Any) -> Any:
    """One element, as float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = builder.load(_one(context, builder, sig.args[0], args[0], args[1]), align=1)
        return widened(builder, scalar, sig.args[0], f64)

    return types.float64(array, types.intp), codegen


@intrinsic
def put(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write one element, given as float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(narrowed(builder, args[2], sig.args[0]), _one(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float64), codegen


@intrinsic
def is_double(typingctx: Any, array: Any) -> Any:
    """Whether the elements, or the lanes, are float64: a constant, so that only one branch is left of a test on it."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i1(sig.args[0].dtype == types.float64)

    return types.boolean(array), codegen


@intrinsic
def is_bfloat16(typingctx: Any, array: Any) -> Any:
    """Whether the elements are bfloat16: a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i1(sig.args[0].dtype == types.int16)

    return types.boolean(array), codegen


@intrinsic
def pays_in_pairs(typingctx: Any, array: Any) -> Any:
    """Whether the sums of two rows can be kept in registers at once: a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i1(has_long_vectors())

    return types.boolean(array), codegen


@intrinsic
def itemsize(typingctx: Any, array: Any) -> Any:
    """Bytes of one element: a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i64(_bytes(ELEMENTS[sig.args[0].dtype]))

    return types.intp(array), codegen


@intrinsic
def one_by_one(typingctx: Any) -> Any:
    """In a loop: keep LLVM from making vectors or several copies of it, which is much code, and so much time, for little."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        call = builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True)
        call.attributes.add("convergent")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def unity(typingctx: Any, array: Any) -> Any:
    """1.0, which LLVM does not know to be 1.0: an addition as fma(a, 1, b) goes to units that would idle."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return f64(1.0)
        hidden = ir.InlineAsm(ir.FunctionType(f64, [f64]), "", "=x,0", False)
        return builder.call(hidden, [f64(1.0)])

    return types.float64(array), codegen


@intrinsic
def root(typingctx: Any, value: Any) -> Any:
    """The square root, as the instruction alone: np.sqrt calls a function on the way to NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, "llvm.sqrt.f64", f64, list(args))

    return types.float64(types.float64), codegen


@intrinsic
def take(typingctx: Any, taken: Any, index: Any, n: Any) -> Any:
    """Add n to one of an array's int64, in one step for all threads, and return what it was; 0 of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return i64(0)
        return builder.atomic_rmw("add", _one(context, builder, sig.args[0], args[0], args[1]), args[2], "monotonic")

    return types.intp(taken, types.intp, types.intp), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Make streamed stores visible to other threads."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


def _arithmetic(op: Any, method: str) -> None:
    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Lanes) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(op, Lanes, Lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, method)(*args)


_METHODS = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}
for _op, _method in _METHODS.items():
    _arithmetic(_op, _method)

if config.DISABLE_JIT:
    from .plain import *  # noqa: F403

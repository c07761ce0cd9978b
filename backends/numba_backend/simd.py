"""Vectors for kernels: 16 lanes of float32 or float64 in registers, so that a kernel says what is summed in which order.

LLVM's vectorizer reorders sums as it sees fit for each loop and CPU. Here element k of a block always goes to lane k % 16,
and `total` adds the lanes in one fixed tree: the bits are the same in every kernel, on any number of threads. LLVM splits
the 16 lanes into whatever registers the CPU has.

`memory` loads and stores them. With NUMBA_DISABLE_JIT=1 the same names are plain NumPy.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import config, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

from .conversions import ELEMENTS, architecture, call, f32, f64, has_long_vectors, i1, i16, i32, i64, like, tells_pages_apart

WIDTH = 16


class Lanes(types.Type):
    """The Numba type of a vector of WIDTH floats."""

    def __init__(self, element: types.Float) -> None:
        super().__init__(name=f"Lanes({element})")
        self.dtype = element


@register_model(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, vector(FLOATS[fe_type.dtype]))


FLOATS = {types.float32: f32, types.float64: f64}


def vector(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, WIDTH)


def constant(element: ir.Type, value: Any) -> ir.Constant:
    return ir.Constant(vector(element), [value] * WIDTH)


def broadcast(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(vector(scalar.type), ir.Undefined)
    first = builder.insert_element(undefined, scalar, i32(0))
    return builder.shuffle_vector(first, undefined, constant(i32, 0))


def first_lanes(builder: Any, count: Any, element: ir.Type) -> Any:
    """A mask of the first `count` lanes, compared as integers of their size: AVX would have to make one mask of another."""
    integer = i64 if element == f64 else i32
    numbers = ir.Constant(vector(integer), list(range(WIDTH)))
    count = builder.trunc(count, integer) if integer != i64 else count
    return builder.icmp_signed("<", numbers, broadcast(builder, count))


SUFFIX = {f32: "f32", f64: "f64", i16: "i16"}


def nbytes(element: ir.Type) -> int:
    return 8 if element == f64 else 4 if element == f32 else 2


@intrinsic
def splat(typingctx: Any, scalar: Any, compute: Any) -> Any:
    """The same float64 in every lane, rounded to `compute`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        to = FLOATS[sig.return_type.dtype]
        return broadcast(builder, args[0] if to == f64 else builder.fptrunc(args[0], to))

    return Lanes(compute.dtype)(types.float64, compute), codegen


@intrinsic
def keep_first(typingctx: Any, lanes: Any, count: Any) -> Any:
    """The first `count` lanes, and 0 in the others."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(first_lanes(builder, args[1], args[0].type.element), args[0], ir.Constant(args[0].type, None))

    return lanes(lanes, types.intp), codegen


@intrinsic
def joined(typingctx: Any, a: Any, b: Any, count: Any) -> Any:
    """The first `count` lanes of a, and the others of b."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(first_lanes(builder, args[2], args[0].type.element), args[0], args[1])

    return a(a, b, types.intp), codegen


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
        v, to = args[0], FLOATS[sig.return_type.dtype]
        if v.type.element == to:
            return v
        return builder.fpext(v, vector(to)) if to == f64 else builder.fptrunc(v, vector(to))

    return Lanes(compute.dtype)(lanes, compute), codegen


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = args[0].type
        return call(builder, f"llvm.fma.v{WIDTH}{SUFFIX[v.element]}", v, list(args))

    return a(a, b, c), codegen


@intrinsic
def total(typingctx: Any, lanes: Any) -> Any:
    """The sum of all lanes of float64, halves onto halves."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = args[0]
        while v.type.count > 1:
            v = halved(builder, v)
        return builder.extract_element(v, i32(0))

    return types.float64(lanes), codegen


@intrinsic
def crosswise(typingctx: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The last two steps of `total` for each 4 lanes of a, b, c, d: lane 4 k + 2 is that of the 4 from 4 k on in c."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b, c, d = args
        return _paired(builder, _paired(builder, a, c, 4), _paired(builder, b, d, 4), 2)

    return a(a, b, c, d), codegen


def halved(builder: Any, v: Any) -> Any:
    """The sums of the lanes of either half."""
    n = v.type.count // 2
    low, high = (ir.Constant(ir.VectorType(i32, n), list(range(at, at + n))) for at in (0, n))
    return builder.fadd(builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high))


def _paired(builder: Any, a: Any, b: Any, n: int) -> Any:
    """For each n lanes, those of a and of b with their halves added onto each other, side by side."""
    low = [at + v + i for at in range(0, WIDTH, n) for v in (0, WIDTH) for i in range(n // 2)]
    low, high = (ir.Constant(vector(i32), [i + half for i in low]) for half in (0, n // 2))
    return builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))


@intrinsic
def roots(typingctx: Any, lanes: Any) -> Any:
    """The square root of each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = args[0].type
        return call(builder, f"llvm.sqrt.v{WIDTH}{SUFFIX[v.element]}", v, list(args))

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
        return call(builder, f"llvm.fabs.v{WIDTH}{SUFFIX[v.element]}", v, list(args))

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
def forwards_from_memory(typingctx: Any, array: Any) -> Any:
    """Whether what comes from memory is best gone through forwards, wherever out lies: a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i1(tells_pages_apart())

    return types.boolean(array), codegen


@intrinsic
def itemsize(typingctx: Any, array: Any) -> Any:
    """Bytes of one element: a constant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i64(nbytes(ELEMENTS[sig.args[0].dtype]))

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
        if architecture() != "x86_64":
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

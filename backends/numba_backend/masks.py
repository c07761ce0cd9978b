"""Masks as WIDTH flags, which select and count at once. A kernel that is given None for a mask is compiled without any."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

from .conversions import call, f64, i1, i8, i16, i32, i64
from .memory import data_pointer, pointer_to
from .simd import WIDTH, broadcast, constant, vector


class Flags(types.Type):
    """The Numba type of a vector of WIDTH bits."""

    def __init__(self) -> None:
        super().__init__(name="Flags")


@register_model(Flags)
class _FlagsModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Flags) -> None:
        super().__init__(dmm, fe_type, vector(i1))


@intrinsic
def flags(typingctx: Any, mask: Any, index: Any, step: Any) -> Any:
    """WIDTH elements of a mask from `index` on, or one of them in all lanes if `step` is 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return context.get_dummy_value()
        same = builder.icmp_signed("==", args[2], i64(0))
        count = builder.select(same, i64(1), i64(WIDTH))
        pointer = pointer_to(context, builder, sig.args[0], args[0], args[1], count)
        with builder.if_else(same) as (one, many):
            with one:
                v_one = broadcast(builder, builder.load(pointer))
                after_one = builder.block
            with many:
                v_many = builder.load(builder.bitcast(pointer, vector(i8).as_pointer()), align=1)
                after_many = builder.block
        v = builder.phi(vector(i8))
        v.add_incoming(v_one, after_one)
        v.add_incoming(v_many, after_many)
        return _as_flags(builder, v)

    return _flags_of(mask)(mask, types.intp, types.intp), codegen


@intrinsic
def flags_first(typingctx: Any, mask: Any, index: Any, step: Any, count: Any) -> Any:
    """As `flags`, for the first `count` < WIDTH lanes; the others are unset."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return context.get_dummy_value()
        v = cgutils.alloca_once_value(builder, ir.Constant(vector(i8), None))
        builder.store(ir.Constant(vector(i8), None), v)
        with cgutils.for_range(builder, args[3]) as loop:  # not a masked load, which few CPUs have for bytes
            at = builder.add(args[1], builder.mul(loop.index, args[2]))
            byte = builder.load(pointer_to(context, builder, sig.args[0], args[0], at))
            builder.store(builder.insert_element(builder.load(v), byte, builder.trunc(loop.index, i32)), v)
        return _as_flags(builder, builder.load(v))

    return _flags_of(mask)(mask, types.intp, types.intp, types.intp), codegen


@intrinsic
def prefetch_flags(typingctx: Any, mask: Any, index: Any) -> Any:
    """Ask for the cache line of an element of a mask, into L2; it need not exist. Nothing of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] != types.none:
            line = builder.gep(data_pointer(context, builder, sig.args[0], args[0]), [args[1]])
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [line, i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(mask, types.intp), codegen


@intrinsic
def copy_flag(typingctx: Any, mask: Any, index: Any, into: Any, at: Any) -> Any:
    """Copy one element of a mask to another array; nothing of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] != types.none:
            byte = builder.load(pointer_to(context, builder, sig.args[0], args[0], args[1]))
            builder.store(byte, pointer_to(context, builder, sig.args[2], args[2], args[3]))
        return context.get_dummy_value()

    return types.void(mask, types.intp, into, types.intp), codegen


@intrinsic
def copy_flags(typingctx: Any, mask: Any, index: Any, into: Any, at: Any) -> Any:
    """Copy one element of a mask to WIDTH places of another array; nothing of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] != types.none:
            byte = builder.load(pointer_to(context, builder, sig.args[0], args[0], args[1]))
            pointer = pointer_to(context, builder, sig.args[2], args[2], args[3], i64(WIDTH))
            builder.store(broadcast(builder, byte), builder.bitcast(pointer, vector(i8).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(mask, types.intp, into, types.intp), codegen


@intrinsic
def tally(typingctx: Any, count: Any, flags: Any) -> Any:
    """count + 1 in the lanes whose flag is set; the count itself if the flags are None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[1] == types.none:
            return args[0]
        return builder.fadd(args[0], builder.select(args[1], constant(f64, 1.0), constant(f64, 0.0)))

    return count(count, flags), codegen


@intrinsic
def unless(typingctx: Any, seen: Any, flags: Any) -> Any:
    """The flags of the lanes where `seen` is 0; None of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[1] == types.none:
            return args[1]
        return builder.and_(args[1], builder.fcmp_ordered("oeq", args[0], ir.Constant(args[0].type, None)))

    return flags(seen, flags), codegen


@intrinsic
def choose(typingctx: Any, flags: Any, a: Any, b: Any) -> Any:
    """Lanes of a where the flag is set, of b elsewhere; all of a if the flags are None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[1] if sig.args[0] == types.none else builder.select(*args)

    return a(flags, a, b), codegen


@intrinsic
def number(typingctx: Any, flags: Any) -> Any:
    """How many flags are set; 0 of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return i64(0)
        return builder.zext(call(builder, "llvm.ctpop.i16", i16, [builder.bitcast(args[0], i16)]), i64)

    return types.intp(flags), codegen


@intrinsic
def first_set(typingctx: Any, flags: Any) -> Any:
    """The position of the first flag that is set; WIDTH if none is; 0 of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return i64(0)
        return builder.zext(call(builder, "llvm.cttz.i16", i16, [builder.bitcast(args[0], i16), i1(0)]), i64)

    return types.intp(flags), codegen


@intrinsic
def is_none(typingctx: Any, value: Any) -> Any:
    """Whether the value is None: a constant, so that only one branch is left of a test on it."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i1(sig.args[0] == types.none)

    return types.boolean(value), codegen


def _flags_of(mask: Any) -> Any:
    return types.none if mask == types.none else Flags()


def _as_flags(builder: Any, v: Any) -> Any:
    return builder.icmp_unsigned("!=", v, ir.Constant(v.type, None))


if config.DISABLE_JIT:
    from .plain import (  # noqa: F401
        choose,
        copy_flag,
        copy_flags,
        first_set,
        flags,
        flags_first,
        is_none,
        number,
        prefetch_flags,
        tally,
        unless,
    )

"""Masks as lanes of 1 and 0, which select and count at once. A kernel that is given None for a mask is compiled without any."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .simd import WIDTH, Lanes, _broadcast, _constant, _one, _vector, f64, i1, i8, i32, i64


@intrinsic
def flags(typingctx: Any, mask: Any, index: Any, step: Any) -> Any:
    """WIDTH elements of a mask from `index` on, or one of them in all lanes if `step` is 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return context.get_dummy_value()
        same = builder.icmp_signed("==", args[2], i64(0))
        count = builder.select(same, i64(1), i64(WIDTH))
        pointer = _one(context, builder, sig.args[0], args[0], args[1], count)
        with builder.if_else(same) as (one, many):
            with one:
                v_one = _broadcast(builder, builder.load(pointer))
                after_one = builder.block
            with many:
                v_many = builder.load(builder.bitcast(pointer, _vector(i8).as_pointer()), align=1)
                after_many = builder.block
        v = builder.phi(_vector(i8))
        v.add_incoming(v_one, after_one)
        v.add_incoming(v_many, after_many)
        return _as_flags(builder, v)

    return _flags_of(mask)(mask, types.intp, types.intp), codegen


@intrinsic
def flags_first(typingctx: Any, mask: Any, index: Any, step: Any, count: Any) -> Any:
    """As `flags`, for the first `count` < WIDTH lanes; the others are 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == types.none:
            return context.get_dummy_value()
        v = cgutils.alloca_once_value(builder, ir.Constant(_vector(i8), None))
        builder.store(ir.Constant(_vector(i8), None), v)
        with cgutils.for_range(builder, args[3]) as loop:  # not a masked load, which few CPUs have for bytes
            at = builder.add(args[1], builder.mul(loop.index, args[2]))
            byte = builder.load(_one(context, builder, sig.args[0], args[0], at))
            builder.store(builder.insert_element(builder.load(v), byte, builder.trunc(loop.index, i32)), v)
        return _as_flags(builder, builder.load(v))

    return _flags_of(mask)(mask, types.intp, types.intp, types.intp), codegen


@intrinsic
def copy_flag(typingctx: Any, mask: Any, index: Any, into: Any, at: Any) -> Any:
    """Copy one element of a mask to another array; nothing of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] != types.none:
            byte = builder.load(_one(context, builder, sig.args[0], args[0], args[1]))
            builder.store(byte, _one(context, builder, sig.args[2], args[2], args[3]))
        return context.get_dummy_value()

    return types.void(mask, types.intp, into, types.intp), codegen


@intrinsic
def tally(typingctx: Any, count: Any, flags: Any) -> Any:
    """count + flags; the count itself if the flags are None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[0] if sig.args[1] == types.none else builder.fadd(*args)

    return count(count, flags), codegen


@intrinsic
def unless(typingctx: Any, seen: Any, flags: Any) -> Any:
    """The flags where `seen` is 0, and 0 elsewhere; None of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sig.args[1] == types.none:
            return args[1]
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered("oeq", args[0], zero), args[1], zero)

    return flags(seen, flags), codegen


@intrinsic
def is_none(typingctx: Any, value: Any) -> Any:
    """Whether the value is None: a constant, so that only one branch is left of a test on it."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return i1(sig.args[0] == types.none)

    return types.boolean(value), codegen


def _flags_of(mask: Any) -> Any:
    return types.none if mask == types.none else Lanes(types.float64)


def _as_flags(builder: Any, v: Any) -> Any:
    yes = builder.icmp_unsigned("!=", v, ir.Constant(v.type, None))
    return builder.select(yes, _constant(f64, 1.0), _constant(f64, 0.0))


if config.DISABLE_JIT:
    from .plain import copy_flag, flags, flags_first, is_none, tally, unless  # noqa: F401

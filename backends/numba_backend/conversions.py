"""Between elements as they lie in memory and the floats of registers: what LLVM is told, for one element or for lanes.

Halves are typed as the integers of that size: uint16 is float16, int16 is bfloat16. They become float32 and back by the CPU's
instructions, or, where it has none, by integer arithmetic with the same bits: LLVM would call functions that no library here
provides.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.binding import llvm_version_info
from numba.core import cgutils, types
from numba.core.registry import cpu_target

SUBNORMAL = 0x20  # a class of floats, in the numbers of AVX-512

i1, i8, i16, i32, i64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
f16, f32, f64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
ELEMENTS = {types.float32: f32, types.float64: f64, types.uint16: i16, types.int16: i16}


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"


def converts_halves() -> bool:
    """Whether the CPU that Numba compiles for has instructions between float16 and float32."""
    return has("f16c") if architecture() == "x86_64" else architecture() in ("aarch64", "arm64")


def architecture() -> str:
    """What code is compiled for, by LLVM's name. The machine's own name tells something else where it emulates another."""
    return str(cpu_target.target_context.codegen().magic_tuple()[0]).partition("-")[0]


def rounds_to_bfloat16() -> bool:
    """Whether the CPU has an instruction for it, and LLVM gives it the type that is expected here."""
    return has("avx512bf16") and llvm_version_info >= (16,)


def has(feature: str) -> bool:
    """Whether the CPU that Numba compiles for has it; by LLVM's name."""
    return f"+{feature}" in str(cpu_target.target_context.codegen()._tm_features).split(",")


def folds_conversions() -> bool:
    """Whether LLVM makes one instruction of float16 to float32 to float64, which takes twice as long as the two."""
    return has("avx512fp16")


def takes_apart() -> bool:
    """Whether a register of float32 has to be taken apart to become float64: from memory AVX is twice as fast."""
    return has("avx") and not has("avx512f")


def tells_pages_apart() -> bool:
    """Whether a load hardly waits for an earlier store to the same place of another page; elsewhere that doubles the time."""
    return cpu_target.target_context.codegen().magic_tuple()[1] == "znver5"


def has_long_vectors() -> bool:
    """Whether the sums of two times 16 elements in float64 fit in half of the registers."""
    return has("avx512f")


def like(v: Any, element: ir.Type, value: Any = None) -> Any:
    """A constant of that element type for v, or only the type if there is no value: a vector if v is one."""
    kind = ir.VectorType(element, v.type.count) if isinstance(v.type, ir.VectorType) else element
    if value is None:
        return kind
    return ir.Constant(kind, [value] * v.type.count if kind != element else value)


def widened(builder: Any, v: Any, memory: Any, to: ir.Type) -> Any:
    """What was read from an array of type `memory`, as float32 or float64: exact unless float64 is asked for as float32."""
    if memory.dtype == types.uint16:
        v = _from_float16(builder, v)
    elif memory.dtype == types.int16:  # bfloat16 is the upper half of a float32
        bits = builder.shl(builder.zext(v, like(v, i32)), like(v, i32, 16))
        v = builder.bitcast(bits, like(v, f32))
    if v.type == like(v, to):
        return v
    return builder.fpext(v, like(v, to)) if to == f64 else builder.fptrunc(v, like(v, to))


def narrowed(builder: Any, v: Any, memory: Any, normal: bool = False) -> Any:
    """Floats as an array of type `memory` holds them: rounded once to nearest even, twice from float64 to a half.

    If they are `normal`, none is subnormal.
    """
    to = ELEMENTS[memory.dtype]
    if v.type == like(v, f64) and to != f64:
        v = builder.fptrunc(v, like(v, f32))
    if memory.dtype == types.uint16:
        return _to_float16(builder, v)
    if memory.dtype == types.int16:
        return _to_bfloat16(builder, v, normal)
    return v if v.type == like(v, to) else builder.fpext(v, like(v, to))


def copy_first(builder: Any, source: Any, target: Any, count: Any, element: ir.Type) -> None:
    """Copy `count` < 16 elements, as pieces of 8, 4, 2 and 1."""
    at, (source, target) = i64(0), [builder.bitcast(pointer, element.as_pointer()) for pointer in (source, target)]
    for n in (8, 4, 2, 1):
        some = builder.and_(count, i64(n))
        with builder.if_then(builder.icmp_unsigned("!=", some, i64(0))):
            kind = ir.VectorType(element, n).as_pointer()
            part = builder.load(builder.bitcast(builder.gep(source, [at]), kind), align=1)
            builder.store(part, builder.bitcast(builder.gep(target, [at]), kind), align=1)
        at = builder.add(at, some)


def by_way_of_memory(builder: Any, parts: list[Any]) -> list[Any]:
    """The same vectors, written and read again; LLVM is not to know that they are what is in registers."""
    with builder.goto_entry_block():
        place = builder.alloca(ir.ArrayType(parts[0].type, len(parts)))
    place.align = 64
    places = [builder.gep(place, [i32(0), i32(i)]) for i in range(len(parts))]
    for part, at in zip(parts, places, strict=True):
        builder.store(part, at, align=32)
    builder.asm(ir.FunctionType(ir.VoidType(), [place.type]), "", "r,~{memory}", [place], True)
    return [builder.load(at, align=32) for at in places]


def _to_bfloat16(builder: Any, v: Any, normal: bool) -> Any:
    if not isinstance(v.type, ir.VectorType):
        return _rounded_to_bfloat16(builder, v, quiet=True)
    by_instruction = rounds_to_bfloat16()
    if by_instruction and normal:
        return _by_instruction(builder, v)
    if by_instruction:  # which makes zeros of subnormals
        special = call(builder, "llvm.x86.avx512.fpclass.ps.512", like(v, i1), [v, i32(SUBNORMAL)])
    else:
        half = v.type.count // 2
        low, high = (ir.Constant(ir.VectorType(i32, half), list(range(at, at + half))) for at in (0, half))
        special = builder.fcmp_unordered("uno", builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high))
    bits = builder.bitcast(special, ir.IntType(special.type.count))
    with builder.if_else(builder.icmp_unsigned("!=", bits, bits.type(0)), likely=False) as (some, none):
        with some:
            slow, slow_end = _rounded_to_bfloat16(builder, v, quiet=True), builder.block
        with none:
            fast = _by_instruction(builder, v) if by_instruction else _rounded_to_bfloat16(builder, v, quiet=False)
            fast_end = builder.block
    result = builder.phi(like(v, i16))
    result.add_incoming(slow, slow_end)
    result.add_incoming(fast, fast_end)
    return result


def _by_instruction(builder: Any, v: Any) -> Any:
    result = call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", like(v, BFloat()), [v])
    return builder.bitcast(result, like(v, i16))


def _rounded_to_bfloat16(builder: Any, v: Any, quiet: bool) -> Any:
    bits = builder.bitcast(v, like(v, i32))
    odd = builder.lshr(builder.shl(bits, like(v, i32, 15)), like(v, i32, 31))
    rounded = builder.add(bits, builder.add(odd, like(v, i32, 0x7FFF)))
    if quiet:  # rounding could turn a NaN into Inf
        rounded = builder.select(builder.fcmp_unordered("uno", v, v), builder.or_(bits, like(v, i32, 1 << 22)), rounded)
    return builder.trunc(builder.lshr(rounded, like(v, i32, 16)), like(v, i16))


def _from_float16(builder: Any, v: Any) -> Any:
    if folds_conversions() and isinstance(v.type, ir.VectorType):
        same = ir.Constant(like(v, f32), ir.Undefined)
        return call(builder, "llvm.x86.avx512.mask.vcvtph2ps.512", like(v, f32), [v, same, i16(-1), i32(4)])
    if converts_halves():
        return builder.fpext(builder.bitcast(v, like(v, f16)), like(v, f32))
    bits = builder.zext(v, like(v, i32))
    sign = builder.shl(builder.and_(bits, like(v, i32, 0x8000)), like(v, i32, 16))
    size = builder.shl(builder.and_(bits, like(v, i32, 0x7FFF)), like(v, i32, 13))  # where float32 has exponent and fraction
    normal = builder.add(size, like(v, i32, 112 << 23))
    least = like(v, i32, 113 << 23)  # 2**-14, from which a subnormal is a number of steps away
    subnormal = builder.fsub(builder.bitcast(builder.add(size, least), like(v, f32)), builder.bitcast(least, like(v, f32)))
    special = builder.add(size, like(v, i32, 224 << 23))
    quiet = builder.or_(special, like(v, i32, 1 << 22))
    special = builder.select(builder.icmp_unsigned(">", size, like(v, i32, 0x7C00 << 13)), quiet, special)
    bits = builder.select(builder.icmp_unsigned("<", size, like(v, i32, 1 << 23)), _bits(builder, subnormal), normal)
    bits = builder.select(builder.icmp_unsigned(">=", size, like(v, i32, 0x7C00 << 13)), special, bits)
    return builder.bitcast(builder.or_(bits, sign), like(v, f32))


def _to_float16(builder: Any, v: Any) -> Any:
    if converts_halves():
        return builder.bitcast(builder.fptrunc(v, like(v, f16)), like(v, i16))
    bits = _bits(builder, v)
    sign = builder.lshr(builder.and_(bits, like(v, i32, 1 << 31)), like(v, i32, 16))
    size = builder.and_(bits, like(v, i32, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(size, like(v, i32, 13)), like(v, i32, 1))
    normal = builder.add(size, builder.add(odd, like(v, i32, (0xFFF - (112 << 23)) & 0xFFFFFFFF)))
    normal = builder.lshr(normal, like(v, i32, 13))
    half = like(v, f32, 0.5)  # whose last place is that of a subnormal float16: the addition rounds
    steps = builder.fadd(builder.bitcast(size, like(v, f32)), half)
    subnormal = builder.sub(_bits(builder, steps), _bits(builder, half))
    payload = builder.and_(builder.lshr(size, like(v, i32, 13)), like(v, i32, 0x1FF))
    nan = builder.or_(payload, like(v, i32, 0x7E00))
    special = builder.select(builder.icmp_unsigned(">", size, like(v, i32, 0xFF << 23)), nan, like(v, i32, 0x7C00))
    bits = builder.select(builder.icmp_unsigned("<", size, like(v, i32, 113 << 23)), subnormal, normal)
    bits = builder.select(builder.icmp_unsigned(">=", size, like(v, i32, 143 << 23)), special, bits)
    return builder.trunc(builder.or_(bits, sign), like(v, i16))


def _bits(builder: Any, v: Any) -> Any:
    return builder.bitcast(v, like(v, i32))


def call(builder: Any, name: str, result: ir.Type, args: list[Any]) -> Any:
    """A call of one of LLVM's own functions."""
    function = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)

"""Emits SIMD instructions with llvmlite: one function an operation, the tier where it counts.

No Numba here: `simd` makes Numba functions of these, `linear_emit` whole inner loops, and tests
compile them for processors that are not at hand. Unless it says otherwise, a function takes vectors
of any length; the caller chooses one that the tier has registers for, or lets LLVM split them.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import llvmlite.binding as llvm
from llvmlite import ir

from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import F16, F32, I8, I16, I32, I64, BFloatType

Value: TypeAlias = ir.Value
Builder: TypeAlias = ir.IRBuilder

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.428606765330187e-06
"""ln 2 in two parts, so that n * ln 2 is exact enough."""
_EXP_COEFFICIENTS = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_EXP_MIN, _EXP_MAX = -87.3, 88.3
_EXP2_COEFFICIENTS = (0.05500893, 0.24221096, 0.69328293, 1.0)
"""Of 2 to the power of -0.5 to 0.5: with the least largest relative error where 0 gives 1."""


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """The type of `count` elements."""
    return ir.VectorType(element, count)


def constant(kind: ir.Type, number: float) -> Value:
    """A scalar, or a vector with the number in every lane."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [number] * kind.count)
    return ir.Constant(kind, number)


def call(b: Builder, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
    """Calls an intrinsic of LLVM by its full name."""
    function = b.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = ir.Function(b.module, kind, name)
    return b.call(function, arguments)


def _suffix(kind: ir.Type) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_suffix(kind.element)}"
    return {F32: "f32", F16: "f16", I8: "i8", I16: "i16", I32: "i32", I64: "i64"}[kind]


def offset(b: Builder, address: Value, num_bytes: int) -> Value:
    """The address a constant number of bytes further on."""
    return b.add(address, ir.Constant(I64, num_bytes)) if num_bytes else address


# Memory. Addresses are 64-bit integers and need not be aligned.


def load(b: Builder, address: Value, kind: ir.Type) -> Value:
    """A value of a scalar or vector type."""
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(b: Builder, address: Value, value: Value) -> None:
    """A scalar or vector, as it is."""
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def splat(b: Builder, scalar: Value, count: int) -> Value:
    """The scalar in every lane."""
    undefined = ir.Constant(vector(scalar.type, count), ir.Undefined)
    first = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(first, undefined, constant(vector(I32, count), 0))


def load_half(b: Builder, address: Value, count: int) -> Value:
    """float16 in memory to float32."""
    return b.fpext(load(b, address, vector(F16, count)), vector(F32, count))


def load_bfloat(b: Builder, address: Value, count: int) -> Value:
    """bfloat16 in memory to float32."""
    return bfloat_to_float(b, load(b, address, vector(I16, count)))


def bfloat_to_float(b: Builder, bits: Value) -> Value:
    """The bits of bfloat16, as i16, to float32."""
    count = bits.type.count
    wide = b.zext(bits, vector(I32, count))
    return b.bitcast(b.shl(wide, constant(wide.type, 16)), vector(F32, count))


def store_half(b: Builder, address: Value, value: Value) -> None:
    """float32 to float16 in memory, rounded to nearest."""
    store(b, address, b.fptrunc(value, vector(F16, value.type.count)))


def store_bfloat(b: Builder, address: Value, value: Value) -> None:
    """float32 to bfloat16 in memory, rounded to nearest even; not for NaN."""
    bits = b.bitcast(value, vector(I32, value.type.count))
    odd = b.and_(b.lshr(bits, constant(bits.type, 16)), constant(bits.type, 1))
    rounded = b.add(b.add(bits, constant(bits.type, 0x7FFF)), odd)
    top = b.lshr(rounded, constant(bits.type, 16))
    store(b, address, b.trunc(top, vector(I16, value.type.count)))


def first_lanes(b: Builder, num_lanes: Value, count: int) -> Value:
    """A mask: which lanes are among the first `num_lanes`, a 64-bit integer."""
    indices = ir.Constant(vector(I32, count), list(range(count)))
    limit = splat(b, b.trunc(num_lanes, I32), count)
    return b.icmp_signed("<", indices, limit)


def masked_store(b: Builder, address: Value, value: Value, mask: Value) -> None:
    """Writes only the lanes of a mask; the others' memory is not touched."""
    name = f"llvm.masked.store.{_suffix(value.type)}.p0"
    pointer = b.inttoptr(address, value.type.as_pointer())
    if llvm.llvm_version_info[0] < 22:
        call(b, name, ir.VoidType(), [value, pointer, ir.Constant(I32, 1), mask])
    else:
        call(b, name, ir.VoidType(), [value, pointer, mask])


def masked_load(b: Builder, address: Value, fallback: Value, mask: Value) -> Value:
    """Reads only the lanes of a mask; the others come from `fallback`."""
    name = f"llvm.masked.load.{_suffix(fallback.type)}.p0"
    pointer = b.inttoptr(address, fallback.type.as_pointer())
    if llvm.llvm_version_info[0] < 22:
        return call(b, name, fallback.type, [pointer, ir.Constant(I32, 1), mask, fallback])
    return call(b, name, fallback.type, [pointer, mask, fallback])


def prefetch(b: Builder, address: Value) -> None:
    """Asks for a cache line that will be read, into the second cache.

    The first one waits for few lines at a time: asking for it halved the rate of one core of Zen 4.
    """
    arguments = [b.inttoptr(address, I8.as_pointer())]
    arguments += [ir.Constant(I32, number) for number in (0, 2, 1)]
    call(b, "llvm.prefetch.p0", ir.VoidType(), arguments)


def pause(b: Builder, tier: Tier) -> None:
    """Tells the processor that a loop waits for memory to change."""
    if tier is Tier.NEON:
        call(b, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(I32, 1)])
    else:
        call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])


# Arithmetic.


def fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once."""
    return call(b, f"llvm.fma.{_suffix(x.type)}", x.type, [x, y, z])


def absolute(b: Builder, x: Value) -> Value:
    """Of float32."""
    return call(b, f"llvm.fabs.{_suffix(x.type)}", x.type, [x])


def maximum(b: Builder, x: Value, y: Value) -> Value:
    """Lane by lane; y where either is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def minimum(b: Builder, x: Value, y: Value) -> Value:
    """Lane by lane; not for NaN."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def square_root(b: Builder, x: Value) -> Value:
    """Of float32."""
    return call(b, f"llvm.sqrt.{_suffix(x.type)}", x.type, [x])


def to_float(b: Builder, x: Value) -> Value:
    """Signed integers to float32."""
    return b.sitofp(x, vector(F32, x.type.count))


def round_to_int(b: Builder, x: Value) -> Value:
    """To the nearest integer, ties to even."""
    rounded = call(b, f"llvm.nearbyint.{_suffix(x.type)}", x.type, [x])
    return b.fptosi(rounded, vector(I32, x.type.count))


def reduce(b: Builder, operation: str, x: Value) -> Value:
    """All lanes to one: `fadd` or `fmax` of float32, `add` of integers; in any order."""
    name = f"llvm.vector.reduce.{operation}.{_suffix(x.type)}"
    arguments = [ir.Constant(F32, -0.0), x] if operation == "fadd" else [x]
    result = call(b, name, x.type.element, arguments)
    # Not `fast`: infinities are valid, attention begins with them.
    for flag in {"fadd": ("reassoc",), "fmax": ("nnan", "nsz")}.get(operation, ()):
        result.fastmath.add(flag)
    return result


def exp(b: Builder, x: Value) -> Value:
    """e to the power of each lane, within 2 units in the last place; below -87.3 it is 1e-38."""
    kind = x.type
    clamped = minimum(b, maximum(b, x, constant(kind, _EXP_MIN)), constant(kind, _EXP_MAX))
    scaled = b.fmul(clamped, constant(kind, _LOG2_E))
    powers = call(b, f"llvm.nearbyint.{_suffix(kind)}", kind, [scaled])
    rest = fma(b, powers, constant(kind, -_LN2_HIGH), clamped)
    rest = fma(b, powers, constant(kind, -_LN2_LOW), rest)
    result = constant(kind, _EXP_COEFFICIENTS[0])
    for coefficient in _EXP_COEFFICIENTS[1:]:
        result = fma(b, result, rest, constant(kind, coefficient))
    exponents = b.fptosi(powers, vector(I32, kind.count))
    bits = b.add(b.bitcast(result, exponents.type), b.shl(exponents, constant(exponents.type, 23)))
    return b.bitcast(bits, kind)


# Dot products of bytes. A lane of the result takes four neighbouring bytes of each factor.


def register_lanes(tier: Tier) -> int:
    """32-bit numbers in one register."""
    return {Tier.AVX512VNNI: 16, Tier.NEON: 4}.get(tier, 8)


def slices(b: Builder, x: Value, count: int) -> list[Value]:
    """A vector in pieces of `count` lanes."""
    if x.type.count == count:
        return [x]
    return [
        b.shuffle_vector(x, x, ir.Constant(vector(I32, count), list(range(i, i + count))))
        for i in range(0, x.type.count, count)
    ]


def concatenate(b: Builder, parts: Sequence[Value]) -> Value:
    """Pieces of equal length, put together; their number is a power of two."""
    while len(parts) > 1:
        count = parts[0].type.count
        both = ir.Constant(vector(I32, 2 * count), list(range(2 * count)))
        parts = [b.shuffle_vector(x, y, both) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def pairs_of_bytes(b: Builder, codes: Value, signed: Value) -> Value:
    """AVX2: [8 x i32] of u8 times [8 x i32] of i8, neighbours added, saturated, as [16 x i16]."""
    bytes_ = vector(I8, 32)
    arguments = [b.bitcast(codes, bytes_), b.bitcast(signed, bytes_)]
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16), arguments)


def pairs_of_words(b: Builder, x: Value, y: Value) -> Value:
    """AVX2: [16 x i16] times [16 x i16], neighbours added, as [8 x i32]."""
    return call(b, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), [x, y])


def with_sign_of(b: Builder, x: Value, signs: Value) -> Value:
    """AVX2: bytes of [8 x i32] negated where those of `signs` are negative, 0 where they are 0."""
    bytes_ = vector(I8, 32)
    arguments = [b.bitcast(x, bytes_), b.bitcast(signs, bytes_)]
    return b.bitcast(call(b, "llvm.x86.avx2.psign.b", bytes_, arguments), vector(I32, 8))


def dot_vnni(b: Builder, total: Value, codes: Value, signed: Value) -> Value:
    """VNNI: total + u8 times i8, for 8 or 16 lanes of i32; exact."""
    lanes = total.type.count
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    if llvm.llvm_version_info[0] >= 22:
        bytes_ = vector(I8, 4 * lanes)
        codes, signed = b.bitcast(codes, bytes_), b.bitcast(signed, bytes_)
    return call(b, name, total.type, [total, codes, signed])


def dot_neon(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """ARM: total + i8 times i8, for 4 lanes of i32; exact."""
    bytes_ = vector(I8, 16)
    arguments = [total, b.bitcast(x, bytes_), b.bitcast(y, bytes_)]
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", vector(I32, 4), arguments)


def dot(b: Builder, tier: Tier, total: Value, codes: Value, signed: Value) -> Value:
    """total + codes (u8, all of 0 to 255) times signed (i8); exact on every tier.

    Kernels that know more of their codes have faster ways; this one suits all.
    """
    lanes = register_lanes(tier)
    triples = zip(*(slices(b, x, lanes) for x in (total, codes, signed)), strict=True)
    if tier in (Tier.AVX512VNNI, Tier.AVXVNNI):
        return concatenate(b, [dot_vnni(b, *triple) for triple in triples])
    nibble = constant(vector(I32, lanes), 0x0F0F0F0F)
    four = constant(vector(I32, lanes), 4)
    totals = []
    for sums, unsigned, factors in triples:
        low = b.and_(unsigned, nibble)
        high = b.and_(b.lshr(unsigned, four), nibble)
        if tier is Tier.NEON:
            highs = dot_neon(b, constant(sums.type, 0), high, factors)
            totals.append(dot_neon(b, b.add(sums, b.shl(highs, four)), low, factors))
            continue
        words = vector(I16, 16)
        lows = pairs_of_words(b, pairs_of_bytes(b, low, factors), constant(words, 1))
        highs = pairs_of_words(b, pairs_of_bytes(b, high, factors), constant(words, 16))
        totals.append(b.add(sums, b.add(lows, highs)))
    return concatenate(b, totals)


# Dot products of pairs of 16 bits, where `simd_tier.has_bfloat_dots`. A pair is held as an i32, the
# first in the lower half.


def to_words(b: Builder, x: Value) -> Value:
    """Sixteen float32 to the nearest i16; all must be within their bounds."""
    return b.trunc(_nearest(b, x), vector(I16, 16))


def to_word_pairs(b: Builder, first: Value, second: Value) -> Value:
    """Two vectors of sixteen float32 to pairs of the nearest i16, one of each."""
    low, high = _nearest(b, first), _nearest(b, second)
    masked = b.and_(low, constant(low.type, 0xFFFF))
    return b.or_(masked, b.shl(high, constant(high.type, 16)))


def _nearest(b: Builder, x: Value) -> Value:
    return call(b, "llvm.lrint.v16i32.v16f32", vector(I32, 16), [x])


def dot_words(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """total + the products of two pairs of i16 in each of sixteen lanes of i32; wraps."""
    kind = vector(I16, 32)
    arguments = [total, b.bitcast(x, kind), b.bitcast(y, kind)]
    return call(b, "llvm.x86.avx512.vpdpwssd.512", total.type, arguments)


def to_bfloat(b: Builder, x: Value) -> Value:
    """Sixteen float32 to the bits of bfloat16, as i16, rounded to nearest even."""
    rounded = call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", vector(BFloatType(), 16), [x])
    return b.bitcast(rounded, vector(I16, 16))


def to_bfloat_pairs(b: Builder, first: Value, second: Value) -> Value:
    """Two vectors of sixteen float32 to pairs of bfloat16, one of each, rounded to nearest even."""
    both = call(
        b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", vector(BFloatType(), 32), [second, first]
    )
    halves = b.bitcast(both, vector(I16, 32))
    order = [place for lane in range(16) for place in (lane, 16 + lane)]
    paired = b.shuffle_vector(halves, halves, ir.Constant(vector(I32, 32), order))
    return b.bitcast(paired, vector(I32, 16))


def dot_bfloat(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """total + the products of two pairs in each of sixteen lanes of float32."""
    kind = vector(BFloatType(), 32)
    arguments = [total, b.bitcast(x, kind), b.bitcast(y, kind)]
    return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", total.type, arguments)


def exp2_coarse(b: Builder, x: Value) -> Value:
    """2 to the power of each of sixteen lanes, x at most 0, within 2e-4 of itself."""
    kind = x.type
    clamped = maximum(b, x, constant(kind, -126.0))
    powers = call(b, f"llvm.nearbyint.{_suffix(kind)}", kind, [clamped])
    rest = b.fsub(clamped, powers)
    result = constant(kind, _EXP2_COEFFICIENTS[0])
    for coefficient in _EXP2_COEFFICIENTS[1:]:
        result = fma(b, result, rest, constant(kind, coefficient))
    exponents = b.fptosi(powers, vector(I32, kind.count))
    bits = b.add(b.bitcast(result, exponents.type), b.shl(exponents, constant(exponents.type, 23)))
    return b.bitcast(bits, kind)


# Order.


def keep_order(b: Builder, tier: Tier, values: Sequence[Value]) -> list[Value]:
    """The same vectors, behind a line that no instruction which makes or reads them crosses.

    LLVM likes to sort long sums anew; where registers are scarce, it then spills most of them. The
    line itself is no instruction.
    """
    register = {Tier.NEON: "w", Tier.AVX512VNNI: "v"}.get(tier, "x")
    kind = ir.LiteralStructType([value.type for value in values])
    constraints = [f"={register}"] * len(values) + [str(i) for i in range(len(values))]
    constraints.append("~{memory}")
    line = ir.FunctionType(kind, [value.type for value in values])
    assembly = ir.InlineAsm(line, "", ",".join(constraints), side_effect=True)
    results = b.call(assembly, list(values))
    return [b.extract_value(results, i) for i in range(len(values))]


# Control flow.


def loop(
    b: Builder,
    count: Value,
    initial: Sequence[Value],
    body: Callable[[Value, list[Value]], Sequence[Value]],
) -> list[Value]:
    """Repeats a body `count` times (a 64-bit integer, 0 or more) and carries values along.

    Args:
        initial: the values before the first time.
        body: takes the number of the time, from 0, and the values; returns their next ones.

    Returns:
        The values after the last time.
    """
    before = b.block
    header = b.append_basic_block("loop")
    inside = b.append_basic_block("body")
    after = b.append_basic_block("after")
    b.branch(header)
    b.position_at_end(header)
    index = b.phi(I64)
    values = [b.phi(value.type) for value in initial]
    b.cbranch(b.icmp_signed("<", index, count), inside, after)
    b.position_at_end(inside)
    results = body(index, list(values))
    following = b.add(index, ir.Constant(I64, 1))
    index.add_incoming(ir.Constant(I64, 0), before)
    index.add_incoming(following, b.block)
    for phi, first, result in zip(values, initial, results, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(result, b.block)
    b.branch(header)
    b.position_at_end(after)
    return values

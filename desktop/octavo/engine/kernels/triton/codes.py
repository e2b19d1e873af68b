"""From the bits of packed matrices to numbers: what kernels over `tiles` share.

Two ways, by what the numbers are for. A vector product wants float32, one after the other: a code
is put into the mantissa of a float, which is then the code and a constant that is taken away later,
for all codes at once. A product of matrices wants two numbers of 16 bits in a register.
"""

import triton
import triton.language as tl

# The compiler does not merge "and" and "or" with two constants into one instruction: it is told.
_MERGE_ASM = tl.constexpr("lop3.b32 $0, $1, $2, $3, 0xEA;")
FLOAT8_FACTOR = tl.constexpr(256.0)
"""What the values of `float8_pair` and `part_values` are to be multiplied by."""


@triton.constexpr_function
def landing(first, bits):
    """Where in the mantissa a field is put: so high that the constant is small, and by few shifts.

    Args:
        first: bit of the word at which the field begins.
        bits: of the field.
    """
    last = 23 - bits
    if 11 <= first <= last:
        return first
    if first + 11 <= last:
        return first + 11
    shared = bits * (last // bits + 1) - 11  # brings the first field beyond the mantissa to bit 11
    return first - shared if 11 <= first - shared <= last else 11


@triton.constexpr_function
def raise_of(first, bits):
    """The constant that `raised` adds to a field."""
    return 2.0 ** (23 - landing(first, bits))


@triton.constexpr_function
def _exponent(place):
    """The bits of the float whose mantissa counts in ones from a place on."""
    return (23 - place + 127) << 23


@triton.jit
def _moved(word, LEFT: tl.constexpr):
    if LEFT > 0:
        result = word << LEFT
    elif LEFT < 0:
        result = word >> -LEFT
    else:
        result = word
    return result


@triton.jit
def _merged(word, MASK: tl.constexpr, rest, ASM: tl.constexpr):
    """(word & MASK) | rest."""
    if ASM:
        result = tl.inline_asm_elementwise(
            _MERGE_ASM, "=r,r,r,r", [word, MASK, rest], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        result = (word & MASK) | rest
    return result


@triton.jit
def raised(word, FIRST: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):
    """A field of a word and `raise_of` it, float32."""
    PLACE: tl.constexpr = landing(FIRST, BITS)
    MASK: tl.constexpr = ((1 << BITS) - 1) << PLACE
    MAGIC: tl.constexpr = _exponent(PLACE)
    return _merged(_moved(word, PLACE - FIRST), MASK, MAGIC, ASM).to(tl.float32, bitcast=True)


@triton.jit
def _raised_in_two(
    word, high, FIRST: tl.constexpr, HIGH_FIRST: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr
):
    """As `raised`, of a code whose bits above four lie elsewhere."""
    PLACE: tl.constexpr = landing(FIRST, BITS)
    MAGIC: tl.constexpr = _exponent(PLACE)
    HIGH_MASK: tl.constexpr = ((1 << (BITS - 4)) - 1) << (PLACE + 4)
    bits = _merged(_moved(word, PLACE - FIRST), 15 << PLACE, MAGIC, ASM)
    bits = _merged(_moved(high, PLACE + 4 - HIGH_FIRST), HIGH_MASK, bits, ASM)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def code_raised(
    word, high, HALF: tl.constexpr, BYTE: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """The code of a part in a half of a word; its upper bits are in a byte of `high`."""
    WIDTH: tl.constexpr = 8 if BITS == 8 else 4
    FIRST: tl.constexpr = 16 * HALF + WIDTH * PART
    if BITS == 5 or BITS == 6:
        HIGH_FIRST: tl.constexpr = 8 * BYTE + (BITS - 4) * PART
        code = _raised_in_two(word, high, FIRST, HIGH_FIRST, BITS, ASM)
    else:
        code = raised(word, FIRST, BITS, ASM)
    return code


@triton.constexpr_function
def code_raise(half, part, bits):
    """What `code_raised` has too much."""
    return raise_of(16 * half + (8 if bits == 8 else 4) * part, bits)


@triton.jit
def float16_pair(pair):
    """The two float16 in a word, as float32."""
    low = (pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    high = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def bfloat16_pair(pair):
    """The two bfloat16 in a word, as float32."""
    return (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def float8_pair(word, PART: tl.constexpr):
    """The numbers of a part in the two halves of a word, float32, each divided by 256.

    Exponents of float8_e4m3 are eight less than those of float16.
    """
    if PART == 0:
        pair = ((word << 7) & 0x3F803F80) | ((word << 8) & -2147450880)
    else:
        pair = ((word >> 1) & 0x3F803F80) | (word & -2147450880)
    return float16_pair(pair)


@triton.constexpr_function
def _minus_twice(value, is_bfloat16):
    """A whole number, exact in 16 bits, below zero in both halves of a register."""
    fraction, bias = (7, 127) if is_bfloat16 else (10, 15)
    exponent = value.bit_length() - 1
    bits = (1 << 15) + ((exponent + bias - 1) << fraction) + ((value << fraction) >> exponent)
    return f"0x{bits:04x}{bits:04x}"


@triton.constexpr_function
def _part_asm(part, bits, centre, is_float8, is_bfloat16):
    """Instructions for `part_values`: two half words to two numbers, exactly.

    A code of up to seven bits is put into the mantissa of 128 (bfloat16) or of 1024 (float16), and
    that and the centre are taken away. Eight bits are too many for bfloat16's mantissa: both halves
    of the code are put there.
    """
    kind = "bf16x2" if is_bfloat16 else "f16x2"
    one = "0x3f803f80" if is_bfloat16 else "0x3c003c00"
    lines = [".reg .b32 t, h, u, c, o;", f"mov.b32 o, {one};"]
    if is_float8:
        sign = "shl.b32 h, $1, 8;" if part == 0 else "mov.b32 h, $1;"
        # To the exponent's place: 4 bits of it and 3 of the mantissa.
        left = (-8 * part + 4) if is_bfloat16 else (-8 * part + 7)
        move = f"shl.b32 t, $1, {left};" if left >= 0 else f"shr.u32 t, $1, {-left};"
        mask = "0x07f007f0" if is_bfloat16 else "0x3f803f80"
        lines += [sign, "and.b32 h, h, 0x80008000;", move]
        lines += [f"lop3.b32 t, t, {mask}, h, 0xEA;"]
        # 2 ** 120 / 256, or one: what is left is `FLOAT8_FACTOR`.
        factor = "0x77807780" if is_bfloat16 else one
        lines += [f"mov.b32 c, {factor};", "mov.b32 u, 0x80008000;", f"fma.rn.{kind} $0, t, c, u;"]
        return "{" + " ".join(lines) + "}"
    if bits == 8 and is_bfloat16:
        # 16 (128 + upper) - (2048 + 128 + centre) + (128 + lower)
        shift = 8 * part
        lines += [f"shr.u32 t, $1, {shift};" if shift else "mov.b32 t, $1;"]
        lines += ["shr.u32 h, t, 4;", "lop3.b32 t, t, 0x000f000f, 0x43004300, 0xEA;"]
        lines += ["lop3.b32 h, h, 0x000f000f, 0x43004300, 0xEA;"]
        lines += [
            "mov.b32 u, 0x41804180;",
            f"mov.b32 c, {_minus_twice(2048 + 128 + centre, True)};",
        ]
        lines += [f"fma.rn.{kind} h, h, u, c;", f"fma.rn.{kind} $0, h, o, t;"]
        return "{" + " ".join(lines) + "}"
    base = 128 if is_bfloat16 else 1024
    magic = "0x43004300" if is_bfloat16 else "0x64006400"
    width = 8 if bits == 8 else 4
    mask = "0x00ff00ff" if bits == 8 else "0x000f000f"
    shift = width * part
    lines += [f"shr.u32 t, $1, {shift};" if shift else "mov.b32 t, $1;"]
    lines += [f"lop3.b32 t, t, {mask}, {magic}, 0xEA;"]
    if bits in (5, 6):
        extra = bits - 4
        left = 4 - extra * part
        lines += [f"shl.b32 h, $2, {left};" if left >= 0 else f"shr.u32 h, $2, {-left};"]
        lines += [f"lop3.b32 t, h, {'0x00100010' if bits == 5 else '0x00300030'}, t, 0xEA;"]
    lines += [
        f"mov.b32 c, {_minus_twice(base + centre, is_bfloat16)};",
        f"fma.rn.{kind} $0, t, o, c;",
    ]
    return "{" + " ".join(lines) + "}"


@triton.jit
def part_values(
    halves, high, PART: tl.constexpr, BITS: tl.constexpr, CENTRE: tl.constexpr,
    IS_FLOAT8: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The codes of a part less the centre, exactly, in float16 or bfloat16.

    Args:
        halves: half words, int16.
        high: of codes of five and six bits: the bits above four, where `tiles` says, int16.
    """
    if ASM:
        IS_BFLOAT16: tl.constexpr = tl.bfloat16 == DTYPE
        if BITS == 5 or BITS == 6:
            bits = tl.inline_asm_elementwise(
                _part_asm(PART, BITS, CENTRE, False, IS_BFLOAT16), "=r,r,r", [halves, high],
                dtype=tl.int16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            bits = tl.inline_asm_elementwise(
                _part_asm(PART, BITS, CENTRE, IS_FLOAT8, IS_BFLOAT16), "=r,r", [halves],
                dtype=tl.int16, is_pure=True, pack=2,
            )  # fmt: skip
        values = bits.to(DTYPE, bitcast=True)
    else:
        word = halves.to(tl.int32)
        if IS_FLOAT8:
            value, _ = float8_pair(word & 0xFFFF, PART)
            # Through float32: 1 / 256 of the smallest numbers is exact in bfloat16 as well.
            values = value.to(DTYPE)
        else:
            WIDTH: tl.constexpr = 8 if BITS == 8 else 4
            code = (word >> (WIDTH * PART)) & ((1 << WIDTH) - 1)
            if BITS == 5 or BITS == 6:
                EXTRA: tl.constexpr = BITS - 4
                code |= ((high.to(tl.int32) >> (EXTRA * PART)) & ((1 << EXTRA) - 1)) << 4
            values = (code - CENTRE).to(tl.float32).to(DTYPE)
    return values

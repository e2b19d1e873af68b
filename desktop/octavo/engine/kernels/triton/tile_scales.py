"""Scales and shifts of packed matrices, as `tiles` lays them out, for any number of rows at a time.

Loads are those of the hardware: Triton's own choose the layouts of what they load, and those of
small tensors do not agree with the words', so that every scale would go through shared memory.
"""

import triton
import triton.language as tl

from octavo.engine.kernels.triton.codes import float16_pair, raise_of, raised


@triton.jit
def load_four(place, ASM: tl.constexpr):
    """Four words, int32."""
    if ASM:
        a, b, c, d = tl.inline_asm_elementwise(
            "ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l",
            [place], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        a, b, c, d = tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)
    return a, b, c, d


@triton.jit
def _load_word(place, ASM: tl.constexpr):
    if ASM:
        word = tl.inline_asm_elementwise(
            "ld.global.nc.b32 $0, [$1];", "=r,l", [place], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        word = tl.load(place)
    return word


@triton.jit
def _load_float(place, ASM: tl.constexpr):
    """A float16 or float32, as float32."""
    if ASM:
        if place.dtype.element_ty == tl.float16:
            bits = tl.inline_asm_elementwise(
                "{.reg .u16 t; ld.global.nc.u16 t, [$1]; cvt.u32.u16 $0, t;}", "=r,l",
                [place], dtype=tl.int32, is_pure=True, pack=1,
            )  # fmt: skip
            value, _ = float16_pair(bits)
        else:
            value = _load_word(place, ASM).to(tl.float32, bitcast=True)
    else:
        value = tl.load(place).to(tl.float32)
    return value


@triton.jit
def load_scales(
    scales, shifts, factors, rows, tile, num_columns, TILE: tl.constexpr,
    GROUP: tl.constexpr, SCALES: tl.constexpr, HAS_SHIFTS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """All that `part_scale` needs of a tile.

    Args:
        rows: of any shape; `tile` of one that goes with it.

    Returns:
        Eight tensors of that shape: of plain numbers, the scales of the tile's groups and their
        shifts; of the K formats, words.
    """
    if SCALES == 1:
        record = scales + rows * (num_columns // 64) + (tile // 2) * 4
        r0, first, second, rest = load_four(record, ASM)
        is_odd = tile % 2
        r1 = tl.where(is_odd == 0, first, second)
        r2 = rest >> (is_odd * 16)
        r3, t0, t1, t2, t3 = r0, r0, r0, r0, r0
    elif SCALES == 2:
        record = scales + rows * (num_columns // 64) + tile * 2
        r0 = _load_float(factors + rows * (num_columns // 256) + tile // 2, ASM)
        r1 = _load_word(record, ASM)
        r2 = _load_word(record + 1, ASM)
        r3, t0, t1, t2, t3 = r0, r0, r0, r0, r0
    else:
        # A group that is all of a row may be said to be longer.
        num_groups = (num_columns + GROUP - 1) // GROUP
        EACH: tl.constexpr = TILE // GROUP if GROUP < TILE else 1
        if GROUP >= TILE:
            place = rows * num_groups + tile // (GROUP // TILE)
        else:
            place = rows * num_groups + tile * EACH
        r0 = _load_float(scales + place, ASM)
        r1 = _load_float(scales + place + 1, ASM) if EACH > 1 else r0
        r2 = _load_float(scales + place + 2, ASM) if EACH > 2 else r0
        r3 = _load_float(scales + place + 3, ASM) if EACH > 2 else r0
        t0 = _load_float(shifts + place, ASM) if HAS_SHIFTS else r0
        t1 = _load_float(shifts + place + 1, ASM) if HAS_SHIFTS and EACH > 1 else t0
        t2 = _load_float(shifts + place + 2, ASM) if HAS_SHIFTS and EACH > 2 else t0
        t3 = _load_float(shifts + place + 3, ASM) if HAS_SHIFTS and EACH > 2 else t0
    return r0, r1, r2, r3, t0, t1, t2, t3


@triton.jit
def part_scale(
    r0, r1, r2, r3, t0, t1, t2, t3, PART: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Scale and shift of a part, float32, out of what `load_scales` gave; exactly.

    Of Q6_K, whose groups are halves of parts: the scales of both halves.
    """
    if SCALES == 1:
        factor, minimum_factor = float16_pair(r0)
        RAISE: tl.constexpr = raise_of(6 * PART, 6)
        scale = raised(r1, 6 * PART, 6, ASM) * factor - factor * RAISE
        FIRST: tl.constexpr = 0 if PART == 3 else (24 if PART == 0 else 6 * PART - 6)
        if PART == 3:
            bits = ((r2 >> 12) & 15) | ((r1 >> 26) & 48)
        elif PART == 0:
            bits = r1
        else:
            bits = r2
        MINIMUM_RAISE: tl.constexpr = raise_of(FIRST, 6)
        minimum = raised(bits, FIRST, 6, ASM)
        shift = minimum_factor * MINIMUM_RAISE - minimum * minimum_factor
    elif SCALES == 2:
        scale = r0 * ((r1 << (24 - 8 * PART)) >> 24).to(tl.float32)
        shift = r0 * ((r2 << (24 - 8 * PART)) >> 24).to(tl.float32)
    else:
        INDEX: tl.constexpr = 0 if GROUP >= TILE else PART * 32 // GROUP
        if INDEX == 0:
            scale, shift = r0, t0
        elif INDEX == 1:
            scale, shift = r1, t1
        elif INDEX == 2:
            scale, shift = r2, t2
        else:
            scale, shift = r3, t3
    return scale, shift

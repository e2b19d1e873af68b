"""Four-bit weights: one layout for all formats, and the kernels that multiply by it.

A weight is scale * (code - 8) + shift, with a scale and a shift for each group of 32, 64 or 128
input features; symmetric formats have no shift. Rows are cut into tiles of 128 codes, 16 words
each: word j holds, at bits 4 i + 16 h, the code of feature 32 i + 2 j + h. So quarter i of a tile,
which no group is smaller than, is read by one shift and one mask, and neighbouring features sit in
the two halves of a register.

The plain-torch twin is `Int4Weights.unpack`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.gated_activation import activate
from octavo.engine.kernels.triton.gemv import GATED, PLAIN, InputNorm
from octavo.engine.kernels.triton.launch import follow, launch_options

TILE = 128
"""Codes of a tile."""
GROUP_SIZES = (32, 64, 128)
_PLANES = 9
_MAX_HALF, _MIN_HALF = 65504.0, 2.0**-14


@dataclass(frozen=True, slots=True)
class Int4Weights:
    """A matrix in the layout above."""

    words: torch.Tensor
    """[out_features, in_features / 8], int32."""
    scales: torch.Tensor
    """[out_features, num_groups], float16 or float32."""
    shifts: torch.Tensor | None
    """As `scales`; None: all are 0."""

    @property
    def out_features(self) -> int:
        return len(self.words)

    @property
    def in_features(self) -> int:
        return self.words.shape[1] * 8

    @property
    def groups_per_tile(self) -> int:
        return self.scales.shape[1] * TILE // self.in_features

    @property
    def num_bytes(self) -> int:
        shifts = 0 if self.shifts is None else self.shifts.nbytes
        return self.words.nbytes + self.scales.nbytes + shifts

    def unpack(self) -> torch.Tensor:
        """[out_features, in_features], float32."""
        num_rows = self.out_features
        tiles = self.words.view(num_rows, -1, 16)
        codes = torch.stack(
            [
                torch.stack([(tiles >> (4 * i + 16 * h)) & 15 for h in range(2)], -1)
                for i in range(4)
            ],
            2,
        )
        groups = (codes.float() - 8).reshape(*self.scales.shape, -1)
        values = groups * self.scales.float().unsqueeze(-1)
        if self.shifts is not None:
            values += self.shifts.float().unsqueeze(-1)
        return values.view(num_rows, -1)


def pack_int4(codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> Int4Weights:
    """Brings weights of the form scale * code + offset into the layout.

    Args:
        codes: [out_features, in_features], uint8, 0 to 15; in_features a multiple of 128.
        scales: [out_features, num_groups], float32; groups of one of `GROUP_SIZES`.
        offsets: as scales.
    """
    num_rows, num_columns = codes.shape
    assert num_columns % TILE == 0
    assert num_columns // scales.shape[1] in GROUP_SIZES
    parts = codes.view(num_rows, -1, 4, 16, 2).int()
    words = torch.zeros(num_rows, num_columns // TILE, 16, dtype=torch.int32, device=codes.device)
    for i in range(4):
        for h in range(2):
            words |= parts[:, :, i, :, h] << (4 * i + 16 * h)
    shifts = offsets + 8 * scales
    is_symmetric = bool((shifts == 0).all())
    return Int4Weights(
        words.view(num_rows, -1), _narrow(scales), None if is_symmetric else _narrow(shifts)
    )


def _narrow(values: torch.Tensor) -> torch.Tensor:
    """float16 where nothing overflows or fades; the rounding is far below that of the codes."""
    sizes = values.abs()
    fits = (sizes <= _MAX_HALF) & ((sizes >= _MIN_HALF) | (sizes == 0))
    return values.half() if bool(fits.all()) else values.float()


@triton.jit
def _low(pair):
    """The first of two bfloat16 in a word."""
    return (pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def _high(pair):
    """The second of two bfloat16 in a word."""
    return (pair & -65536).to(tl.float32, bitcast=True)


# The compiler does not merge "and" and "or" with two constants into one instruction: it is told.
@triton.jit
def _plus_2048(word, ASM: tl.constexpr):
    """2048 + the code at bits 12 to 15, a float whose mantissa the code was put into."""
    if ASM:
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, 0xf000, 0x45000000, 0xEA;",
            "=r,r",
            [word],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        bits = (word & 0xF000) | 0x45000000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _plus_128(word, ASM: tl.constexpr):
    """128 + the code at bits 16 to 19."""
    if ASM:
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, 0xf0000, 0x43000000, 0xEA;",
            "=r,r",
            [word],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        bits = (word & 0xF0000) | 0x43000000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _quarter(word, low, high, start, QUARTER: tl.constexpr, ASM: tl.constexpr):
    """start + the codes of a quarter, each raised by 2048 or 128, times their two inputs."""
    if QUARTER == 0:
        total = _plus_2048(word << 12, ASM) * low + start
        total = _plus_128(word, ASM) * high + total
    elif QUARTER == 1:
        total = _plus_2048(word << 8, ASM) * low + start
        total = _plus_2048(word >> 8, ASM) * high + total
    elif QUARTER == 2:
        total = _plus_128(word << 8, ASM) * low + start
        total = _plus_128(word >> 8, ASM) * high + total
    else:
        total = _plus_2048(word, ASM) * low + start
        total = _plus_128(word >> 12, ASM) * high + total
    return total


@triton.jit
def _raised(low, high, QUARTER: tl.constexpr):
    """What `_quarter` has too much, and the 8 that codes are lowered by, times the inputs."""
    if QUARTER == 1:
        return (low + high) * 2056.0
    if QUARTER == 2:
        return (low + high) * 136.0
    return low * 2056.0 + high * 136.0


@triton.jit
def _load_group(place, group, IS_THERE: tl.constexpr):
    """The scales or shifts of a group, float32; 0 where there are none."""
    if IS_THERE:
        values = tl.load(place + group).to(tl.float32)
    else:
        values = 0.0
    return values


@triton.jit
def _dot_word(
    word,
    a0,
    a1,
    b0,
    b1,
    c0,
    c1,
    d0,
    d1,
    raised,
    s0,
    s1,
    s2,
    s3,
    z0,
    z1,
    z2,
    z3,
    HAS_SHIFTS: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_RAISED: tl.constexpr,
    ASM: tl.constexpr,
):
    """One word's eight weights, of groups with scales s and shifts z, times its eight inputs."""
    if GROUPS == 1:
        if HAS_RAISED:
            start = -raised
        else:
            start = _raised(a0, a1, 0) + _raised(b0, b1, 1) + _raised(c0, c1, 2)
            start = -(start + _raised(d0, d1, 3))
        total = _quarter(word, a0, a1, start, 0, ASM)
        total = _quarter(word, b0, b1, total, 1, ASM)
        total = _quarter(word, c0, c1, total, 2, ASM)
        total = _quarter(word, d0, d1, total, 3, ASM)
        result = total * s0
        if HAS_SHIFTS:
            result += (a0 + a1 + b0 + b1 + c0 + c1 + d0 + d1) * z0
    elif GROUPS == 2:
        first = _quarter(word, a0, a1, -(_raised(a0, a1, 0) + _raised(b0, b1, 1)), 0, ASM)
        first = _quarter(word, b0, b1, first, 1, ASM)
        second = _quarter(word, c0, c1, -(_raised(c0, c1, 2) + _raised(d0, d1, 3)), 2, ASM)
        second = _quarter(word, d0, d1, second, 3, ASM)
        result = first * s0 + second * s1
        if HAS_SHIFTS:
            result += (a0 + a1 + b0 + b1) * z0 + (c0 + c1 + d0 + d1) * z1
    else:
        result = _quarter(word, a0, a1, -_raised(a0, a1, 0), 0, ASM) * s0
        result += _quarter(word, b0, b1, -_raised(b0, b1, 1), 1, ASM) * s1
        result += _quarter(word, c0, c1, -_raised(c0, c1, 2), 2, ASM) * s2
        result += _quarter(word, d0, d1, -_raised(d0, d1, 3), 3, ASM) * s3
        if HAS_SHIFTS:
            result += (a0 + a1) * z0 + (b0 + b1) * z1 + (c0 + c1) * z2 + (d0 + d1) * z3
    return result


@triton.jit
def _int4_gemv(
    vector,
    words,
    scales,
    shifts,
    bias,
    output,
    num_rows,
    residual_scale,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
    TILES: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_PREPARED: tl.constexpr,
    EPILOGUE: tl.constexpr,
    IS_GELU: tl.constexpr,
    ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Tiles are [rows, words], so that threads run along the columns: each keeps its inputs."""
    program = tl.program_id(0)
    WORDS: tl.constexpr = NUM_COLUMNS // 8
    NUM_TILES: tl.constexpr = NUM_COLUMNS // 128
    NUM_GROUPS: tl.constexpr = NUM_TILES * GROUPS
    WIDTH: tl.constexpr = TILES * 16
    rows = program * ROWS + tl.arange(0, ROWS)
    in_matrix = rows < num_rows
    # 32 bits: wider addresses cost registers, and no matrix has so many words.
    safe_rows = rows
    if not EVEN_ROWS:
        safe_rows = tl.minimum(rows, num_rows - 1)
    columns = tl.arange(0, WIDTH)
    tiles = columns // 16
    word_place = words + safe_rows[:, None] * WORDS + columns[None, :]
    scale_place = scales + safe_rows[:, None] * NUM_GROUPS + (tiles * GROUPS)[None, :]
    shift_place = shifts + safe_rows[:, None] * NUM_GROUPS + (tiles * GROUPS)[None, :]
    input_place = (tiles * 64 + columns % 16)[None, :]
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    up_sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in tl.static_range(0, NUM_TILES, TILES):
        word = tl.load(word_place + first * 16, eviction_policy="evict_first")
        group = first * GROUPS
        s0 = _load_group(scale_place, group, True)
        s1 = _load_group(scale_place, group + 1, GROUPS > 1)
        s2 = _load_group(scale_place, group + 2, GROUPS > 2)
        s3 = _load_group(scale_place, group + 3, GROUPS > 2)
        z0 = _load_group(shift_place, group, HAS_SHIFTS)
        z1 = _load_group(shift_place, group + 1, HAS_SHIFTS and GROUPS > 1)
        z2 = _load_group(shift_place, group + 2, HAS_SHIFTS and GROUPS > 2)
        z3 = _load_group(shift_place, group + 3, HAS_SHIFTS and GROUPS > 2)
        if EPILOGUE == 2:
            up_place = word_place + num_rows * WORDS
            up_word = tl.load(up_place + first * 16, eviction_policy="evict_first")
            up_group = num_rows * NUM_GROUPS + first * GROUPS
            t0 = _load_group(scale_place, up_group, True)
            t1 = _load_group(scale_place, up_group + 1, GROUPS > 1)
            t2 = _load_group(scale_place, up_group + 2, GROUPS > 2)
            t3 = _load_group(scale_place, up_group + 3, GROUPS > 2)
            y0 = _load_group(shift_place, up_group, HAS_SHIFTS)
            y1 = _load_group(shift_place, up_group + 1, HAS_SHIFTS and GROUPS > 1)
            y2 = _load_group(shift_place, up_group + 2, HAS_SHIFTS and GROUPS > 2)
            y3 = _load_group(shift_place, up_group + 3, HAS_SHIFTS and GROUPS > 2)
        if first == 0:
            follow(OVERLAP)
        raised = 0.0
        if IS_PREPARED:
            plane = vector + first * 16 + columns[None, :]
            a0 = tl.load(plane)
            a1 = tl.load(plane + WORDS)
            b0 = tl.load(plane + 2 * WORDS)
            b1 = tl.load(plane + 3 * WORDS)
            c0 = tl.load(plane + 4 * WORDS)
            c1 = tl.load(plane + 5 * WORDS)
            d0 = tl.load(plane + 6 * WORDS)
            d1 = tl.load(plane + 7 * WORDS)
            if GROUPS == 1:
                raised = tl.load(plane + 8 * WORDS)
        else:
            place = vector + first * 64 + input_place
            pair = tl.load(place)
            a0 = _low(pair)
            a1 = _high(pair)
            pair = tl.load(place + 16)
            b0 = _low(pair)
            b1 = _high(pair)
            pair = tl.load(place + 32)
            c0 = _low(pair)
            c1 = _high(pair)
            pair = tl.load(place + 48)
            d0 = _low(pair)
            d1 = _high(pair)
        sums += _dot_word(
            word, a0, a1, b0, b1, c0, c1, d0, d1, raised, s0, s1, s2, s3, z0, z1, z2, z3,
            HAS_SHIFTS, GROUPS, IS_PREPARED, ASM,
        )  # fmt: skip
        if EPILOGUE == 2:
            up_sums += _dot_word(
                up_word, a0, a1, b0, b1, c0, c1, d0, d1, raised, t0, t1, t2, t3, y0, y1, y2, y3,
                HAS_SHIFTS, GROUPS, IS_PREPARED, ASM,
            )  # fmt: skip
    result = tl.sum(sums, 1)
    dtype = output.dtype.element_ty
    if HAS_BIAS:
        result += tl.load(bias + rows, mask=in_matrix, other=0.0).to(tl.float32)
    if EPILOGUE == 1:
        result = result.to(dtype).to(tl.float32) * residual_scale
        result += tl.load(output + rows, mask=in_matrix, other=0.0).to(tl.float32)
    if EPILOGUE == 2:
        up = tl.sum(up_sums, 1)
        if HAS_BIAS:
            up += tl.load(bias + num_rows + rows, mask=in_matrix, other=0.0).to(tl.float32)
        gate = result.to(dtype).to(tl.float32)
        result = activate(gate, IS_GELU).to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)
    tl.store(output + rows, result.to(dtype), mask=in_matrix)


@triton.jit
def _prepare_vector(
    vector,
    weight,
    planes,
    eps,
    offset,
    NUM_COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The inputs in the order of the nibbles, normalised and in float32: once, not per program."""
    WORDS: tl.constexpr = NUM_COLUMNS // 8
    words = tl.arange(0, BLOCK)
    exists = words < WORDS
    place = (words // 16) * 64 + words % 16
    follow(OVERLAP)
    pair = tl.load(vector + place, mask=exists, other=0)
    a0 = _low(pair)
    a1 = _high(pair)
    pair = tl.load(vector + place + 16, mask=exists, other=0)
    b0 = _low(pair)
    b1 = _high(pair)
    pair = tl.load(vector + place + 32, mask=exists, other=0)
    c0 = _low(pair)
    c1 = _high(pair)
    pair = tl.load(vector + place + 48, mask=exists, other=0)
    d0 = _low(pair)
    d1 = _high(pair)
    if NORM:
        squares = a0 * a0 + a1 * a1 + b0 * b0 + b1 * b1
        squares += c0 * c0 + c1 * c1 + d0 * d0 + d1 * d1
        factor = tl.rsqrt(tl.sum(squares, 0) / NUM_COLUMNS + eps)
        shift = 0.0
        if IN_FLOAT32:
            shift = offset
        gain = tl.load(weight + place, mask=exists, other=0)
        a0 *= factor * (_low(gain) + shift)
        a1 *= factor * (_high(gain) + shift)
        gain = tl.load(weight + place + 16, mask=exists, other=0)
        b0 *= factor * (_low(gain) + shift)
        b1 *= factor * (_high(gain) + shift)
        gain = tl.load(weight + place + 32, mask=exists, other=0)
        c0 *= factor * (_low(gain) + shift)
        c1 *= factor * (_high(gain) + shift)
        gain = tl.load(weight + place + 48, mask=exists, other=0)
        d0 *= factor * (_low(gain) + shift)
        d1 *= factor * (_high(gain) + shift)
    raised = _raised(a0, a1, 0) + _raised(b0, b1, 1) + _raised(c0, c1, 2) + _raised(d0, d1, 3)
    plane = planes + words
    tl.store(plane, a0, mask=exists)
    tl.store(plane + WORDS, a1, mask=exists)
    tl.store(plane + 2 * WORDS, b0, mask=exists)
    tl.store(plane + 3 * WORDS, b1, mask=exists)
    tl.store(plane + 4 * WORDS, c0, mask=exists)
    tl.store(plane + 5 * WORDS, c1, mask=exists)
    tl.store(plane + 6 * WORDS, d0, mask=exists)
    tl.store(plane + 7 * WORDS, d1, mask=exists)
    tl.store(plane + 8 * WORDS, raised, mask=exists)


@dataclass(frozen=True, slots=True)
class Int4GemvShape:
    """How much a program of the vector product takes."""

    rows: int
    tiles: int
    warps: int


def int4_gemv_shape(
    num_rows: int, num_columns: int, *, gated: bool, prepared: bool
) -> Int4GemvShape:
    """The measured best on Hopper."""
    if prepared and (gated or num_rows >= 8192):
        shape = Int4GemvShape(4, 32, 4)
    elif prepared:
        shape = Int4GemvShape(4, 16, 2)
    else:
        shape = Int4GemvShape(4, 8, 1)
    tiles, warps = shape.tiles, shape.warps
    while (num_columns // TILE) % tiles:
        tiles //= 2
    return Int4GemvShape(shape.rows, tiles, min(warps, max(1, tiles // 8)))


def int4_gemv(
    vector: torch.Tensor,
    weights: Int4Weights,
    output: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm: InputNorm | None = None,
    epilogue: int = PLAIN,
    residual_scale: float = 1.0,
    activation: str = "silu",
    shape: Int4GemvShape | None = None,
    overlap: bool = False,
) -> None:
    """Multiplies a four-bit matrix by one vector; the arguments are those of `gemv`.

    Args:
        vector: [1, in_features], bfloat16.
        weights: the matrix.
        output: as in `gemv`.
        bias: .
        norm: of the vector; with one, a first kernel normalises and prepares the vector.
        epilogue: .
        residual_scale: .
        activation: .
        shape: None: what was measured best.
        overlap: .
    """
    assert vector.dtype is torch.bfloat16
    assert weights.words.numel() < 2**31
    num_rows, num_columns = weights.out_features, weights.in_features
    if epilogue == GATED:
        num_rows //= 2
    pairs = vector.view(torch.int32)
    is_prepared = norm is not None
    if norm is not None:
        planes = torch.empty(_PLANES * num_columns // 8, dtype=torch.float32, device=vector.device)
        _prepare_vector[(1,)](
            pairs,
            norm.weight.view(torch.int32),
            planes,
            norm.eps,
            norm.offset,
            NUM_COLUMNS=num_columns,
            NORM=True,
            IN_FLOAT32=norm.in_float32,
            BLOCK=triton.next_power_of_2(num_columns // 8),
            OVERLAP=overlap,
            num_warps=8 if num_columns > 4096 else 4,
            **launch_options(overlap),
        )
        pairs = planes
    if shape is None:
        shape = int4_gemv_shape(
            num_rows, num_columns, gated=epilogue == GATED, prepared=is_prepared
        )
    _int4_gemv[(triton.cdiv(num_rows, shape.rows),)](
        pairs,
        weights.words,
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        vector if bias is None else bias,
        output,
        num_rows,
        residual_scale,
        NUM_COLUMNS=num_columns,
        ROWS=shape.rows,
        EVEN_ROWS=num_rows % shape.rows == 0,
        TILES=shape.tiles,
        GROUPS=weights.groups_per_tile,
        HAS_SHIFTS=weights.shifts is not None,
        HAS_BIAS=bias is not None,
        IS_PREPARED=is_prepared,
        EPILOGUE=epilogue,
        IS_GELU=activation == "gelu_tanh",
        ASM=vector.is_cuda,
        OVERLAP=overlap,
        num_warps=shape.warps,
        **launch_options(overlap),
    )

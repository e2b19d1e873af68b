"""A packed matrix times one vector, with what follows it in the same pass.

A thread takes a cell of a row: four words, read at once, which hold eight neighbouring features of
each part of a tile. So it keeps the vector's values over all rows of its program, and a scale is
unpacked once for eight codes.

The plain-torch twin is `TiledWeights.unpack`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.codes import (
    FLOAT8_FACTOR,
    bfloat16_pair,
    code_raise,
    code_raised,
    float8_pair,
    float16_pair,
)
from octavo.engine.kernels.triton.gated_activation import activate
from octavo.engine.kernels.triton.gemv import GATED, PLAIN
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.tile_scales import load_scales, part_scale
from octavo.engine.kernels.triton.tiles import Q4_K_SCALES, Q6_K_SCALES, TiledWeights

CELL_HALVES = 8
_MAX_UNROLLED = 8


@triton.jit
def _load_codes(place, ASM: tl.constexpr):
    """Four words that are read once, int32."""
    if ASM:
        a, b, c, d = tl.inline_asm_elementwise(
            "ld.global.nc.L1::evict_first.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l",
            [place], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        a, b, c, d = tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)
    return a, b, c, d


@triton.jit
def _load_high(place, ASM: tl.constexpr):
    """Two words that are read once, int32."""
    if ASM:
        a, b = tl.inline_asm_elementwise(
            "ld.global.nc.L1::evict_first.v2.b32 {$0, $1}, [$2];", "=r,=r,l",
            [place], dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        a, b = tl.load(place), tl.load(place + 1)
    return a, b


@triton.jit
def _load_inputs(place, ASM: tl.constexpr):
    """Eight neighbours of the vector in four words; stays behind `follow`."""
    if ASM:
        a, b, c, d = tl.inline_asm_elementwise(
            "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l",
            [place], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip
    else:
        a, b, c, d = tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)
    return a, b, c, d


@triton.jit
def _floats(pair, IS_BFLOAT16: tl.constexpr):
    if IS_BFLOAT16:
        low, high = bfloat16_pair(pair)
    else:
        low, high = float16_pair(pair)
    return low, high


@triton.jit
def _eight_products(
    w0, w1, w2, w3, h0, h1, p0, p1, p2, p3, PART: tl.constexpr, BITS: tl.constexpr,
    CENTRE: tl.constexpr, IS_FLOAT8: tl.constexpr, IS_BFLOAT16: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The codes of a part, less the centre, times their inputs; and the sum of the inputs."""
    x0, x1 = _floats(p0, IS_BFLOAT16)
    x2, x3 = _floats(p1, IS_BFLOAT16)
    x4, x5 = _floats(p2, IS_BFLOAT16)
    x6, x7 = _floats(p3, IS_BFLOAT16)
    even = (x0 + x2) + (x4 + x6)
    odd = (x1 + x3) + (x5 + x7)
    if IS_FLOAT8:
        c0, c1 = float8_pair(w0, PART)
        c2, c3 = float8_pair(w1, PART)
        c4, c5 = float8_pair(w2, PART)
        c6, c7 = float8_pair(w3, PART)
        product = c0 * x0
    else:
        EVEN_RAISE: tl.constexpr = code_raise(0, PART, BITS) + CENTRE
        ODD_RAISE: tl.constexpr = code_raise(1, PART, BITS) + CENTRE
        c0 = code_raised(w0, h0, 0, 0, PART, BITS, ASM)
        c1 = code_raised(w0, h0, 1, 1, PART, BITS, ASM)
        c2 = code_raised(w1, h0, 0, 2, PART, BITS, ASM)
        c3 = code_raised(w1, h0, 1, 3, PART, BITS, ASM)
        c4 = code_raised(w2, h1, 0, 0, PART, BITS, ASM)
        c5 = code_raised(w2, h1, 1, 1, PART, BITS, ASM)
        c6 = code_raised(w3, h1, 0, 2, PART, BITS, ASM)
        c7 = code_raised(w3, h1, 1, 3, PART, BITS, ASM)
        product = c0 * x0 - (even * EVEN_RAISE + odd * ODD_RAISE)
    product = c1 * x1 + product
    product = c2 * x2 + product
    product = c3 * x3 + product
    product = c4 * x4 + product
    product = c5 * x5 + product
    product = c6 * x6 + product
    product = c7 * x7 + product
    return product, even + odd


@triton.jit
def _tiled_gemv(
    vector,
    words,
    high,
    scales,
    shifts,
    factors,
    bias,
    output,
    num_rows,
    residual_scale,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
    CELLS: tl.constexpr,
    UNROLLED: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    CENTRE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    IS_FLOAT8: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    IS_GELU: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
    ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """With gates and ups, these take turns among the program's rows."""
    TILE: tl.constexpr = 32 * PARTS
    ROW_CELLS: tl.constexpr = NUM_COLUMNS // (PARTS * 8)
    IS_EVEN: tl.constexpr = ROW_CELLS % CELLS == 0
    turns = tl.arange(0, ROWS)
    if EPILOGUE == 2:
        own_rows = tl.program_id(0) * (ROWS // 2) + turns // 2
        rows = tl.minimum(own_rows, num_rows - 1) + (turns % 2) * num_rows
    else:
        own_rows = tl.program_id(0) * ROWS + turns
        rows = own_rows
        if not EVEN_ROWS:
            rows = tl.minimum(own_rows, num_rows - 1)
    # 32 bits: wider addresses cost registers, and no matrix has so many words.
    rows = rows[:, None]
    lanes = tl.arange(0, CELLS)[None, :]
    sums = tl.zeros([ROWS, CELLS], tl.float32)
    if UNROLLED:
        for first in tl.static_range(0, ROW_CELLS, CELLS):
            sums = add_cells(
                sums, vector, words, high, scales, shifts, factors, rows, first + lanes,
                NUM_COLUMNS, IS_EVEN, BITS, PARTS, TILE, GROUP, CENTRE, SCALES,
                HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, OVERLAP and first == 0,
            )  # fmt: skip
    else:
        follow(OVERLAP)
        for first in tl.range(0, ROW_CELLS, CELLS):
            sums = add_cells(
                sums, vector, words, high, scales, shifts, factors, rows, first + lanes,
                NUM_COLUMNS, IS_EVEN, BITS, PARTS, TILE, GROUP, CENTRE, SCALES,
                HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, False,
            )  # fmt: skip
    result = tl.sum(sums, 1)
    dtype = output.dtype.element_ty
    if EPILOGUE == 2:
        gate, up = tl.split(tl.reshape(result, [ROWS // 2, 2]))
        own_rows = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        in_matrix = own_rows < num_rows
        if HAS_BIAS:
            gate += tl.load(bias + own_rows, mask=in_matrix, other=0.0).to(tl.float32)
            up += tl.load(bias + num_rows + own_rows, mask=in_matrix, other=0.0).to(tl.float32)
        gate = activate(gate.to(dtype).to(tl.float32), IS_GELU).to(dtype).to(tl.float32)
        result = gate * up.to(dtype).to(tl.float32)
    else:
        in_matrix = own_rows < num_rows
        if HAS_BIAS:
            result += tl.load(bias + own_rows, mask=in_matrix, other=0.0).to(tl.float32)
        if EPILOGUE == 1:
            # The product is rounded before it is added, as two operations would.
            result = result.to(dtype).to(tl.float32) * residual_scale
            result += tl.load(output + own_rows, mask=in_matrix, other=0.0).to(tl.float32)
    tl.store(output + own_rows, result.to(dtype), mask=in_matrix)


@triton.jit
def add_cells(
    sums, vector, words, high, scales, shifts, factors, rows, cell,
    NUM_COLUMNS: tl.constexpr, IS_EVEN: tl.constexpr, BITS: tl.constexpr,
    PARTS: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
    CENTRE: tl.constexpr, SCALES: tl.constexpr, HAS_SHIFTS: tl.constexpr, IS_FLOAT8: tl.constexpr,
    IS_BFLOAT16: tl.constexpr, ASM: tl.constexpr, FOLLOWS: tl.constexpr,
):  # fmt: skip
    """Adds the products of some cells of the rows, as [rows, cells]: threads run along a row.

    Args:
        vector: of each cell the vector it is multiplied by, or one for all.
        rows: [rows, 1], or one for each cell.
        cell: [1, cells], of a row; if not `IS_EVEN`, those beyond its end add nothing.
    """
    ROW_CELLS: tl.constexpr = NUM_COLUMNS // (PARTS * 8)
    exists = cell < ROW_CELLS
    if not IS_EVEN:
        cell = tl.minimum(cell, ROW_CELLS - 1)
    tile = cell // 4
    lane = (cell % 4) * 8
    w0, w1, w2, w3 = _load_codes(words + rows * (ROW_CELLS * 4) + cell * 4, ASM)
    if BITS == 6:
        h0, h1 = _load_high(high + rows * (ROW_CELLS * 2) + cell * 2, ASM)
    elif BITS == 5:
        HIGH_WORDS: tl.constexpr = (NUM_COLUMNS // TILE + 1) // 2 * 8
        h0, h1 = _load_high(high + rows * HIGH_WORDS + (tile // 2) * 8 + lane // 4, ASM)
        h0 = h0 >> (tile % 2 * 4)
        h1 = h1 >> (tile % 2 * 4)
    else:
        h0 = w0
        h1 = w0
    r0, r1, r2, r3, t0, t1, t2, t3 = load_scales(
        scales, shifts, factors, rows, tile, NUM_COLUMNS, TILE, GROUP, SCALES, HAS_SHIFTS, ASM
    )
    if SCALES == 2:
        # A cell lies in one half of the parts.
        r1 = tl.where(lane < 16, r1, r2)
    follow(FOLLOWS)
    for part in tl.static_range(PARTS):
        p0, p1, p2, p3 = _load_inputs(vector + (tile * TILE + part * 32 + lane) // 2, ASM)
        if not IS_EVEN:
            p0 = tl.where(exists, p0, 0)
            p1 = tl.where(exists, p1, 0)
            p2 = tl.where(exists, p2, 0)
            p3 = tl.where(exists, p3, 0)
        product, input_sum = _eight_products(
            w0, w1, w2, w3, h0, h1, p0, p1, p2, p3, part, BITS, CENTRE, IS_FLOAT8, IS_BFLOAT16, ASM
        )
        scale, shift = part_scale(r0, r1, r2, r3, t0, t1, t2, t3, part, TILE, GROUP, SCALES, ASM)
        if IS_FLOAT8:
            scale *= FLOAT8_FACTOR
        sums += product * scale
        if HAS_SHIFTS:
            sums += shift * input_sum
    return sums


@dataclass(frozen=True, slots=True)
class TiledGemvShape:
    """How much a program of the vector product takes."""

    rows: int
    """Of the matrix; of gates and ups together."""
    cells: int
    """Of a row at a time, one for each thread of a warp."""


def tiled_gemv_shape(weights: TiledWeights, *, gated: bool) -> TiledGemvShape:
    """The measured best on Hopper for the matrices of an 8B model, by their sizes."""
    num_rows, num_columns = weights.out_features, weights.in_features
    row_cells = num_columns // (weights.form.parts * CELL_HALVES)
    if weights.form.parts == 2:
        shape = TiledGemvShape(8 if num_rows >= 8192 else 4, 128)
    elif gated or num_rows >= 16384:
        shape = TiledGemvShape(4, 32)
    elif num_columns > 2 * num_rows:  # a down projection
        rows = {Q4_K_SCALES: 8, Q6_K_SCALES: 2}.get(weights.form.scales, 4)
        shape = TiledGemvShape(rows, 64)
    else:
        shape = TiledGemvShape(8 if num_rows <= num_columns else 4, 64)
    cells = shape.cells
    while cells > 32 and row_cells % cells:
        cells //= 2
    return TiledGemvShape(shape.rows, cells)


def tiled_gemv(
    vector: torch.Tensor,
    weights: TiledWeights,
    output: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    epilogue: int = PLAIN,
    residual_scale: float = 1.0,
    activation: str = "silu",
    shape: TiledGemvShape | None = None,
    overlap: bool = False,
) -> None:
    """Multiplies a packed matrix by one vector.

    Args:
        vector: [1, in_features], bfloat16 or float16.
        weights: the matrix; if `GATED`, gates above ups.
        output: [1, out_features], or half of it if `GATED`; with `ADD` it is added to.
        bias: [out_features].
        epilogue: one of `PLAIN`, `ADD`, `GATED`.
        residual_scale: with `ADD`, factor on the product.
        activation: with `GATED`, `silu` or `gelu_tanh`.
        shape: None: what was measured best.
        overlap: whether the launch may overlap with the kernel before it.
    """
    assert vector.dtype in (torch.bfloat16, torch.float16)
    assert weights.words.numel() < 2**31
    form = weights.form
    num_rows, num_columns = weights.out_features, weights.in_features
    is_gated = epilogue == GATED
    if shape is None:
        shape = tiled_gemv_shape(weights, gated=is_gated)
    if is_gated:
        num_rows //= 2
    rows_each = shape.rows // 2 if is_gated else shape.rows
    row_cells = num_columns // (form.parts * CELL_HALVES)
    high = weights.words if weights.high is None else weights.high.view(torch.int32)
    _tiled_gemv[(triton.cdiv(num_rows, rows_each),)](
        vector.view(torch.int32),
        weights.words,
        high,
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        weights.scales if weights.factors is None else weights.factors,
        vector if bias is None else bias,
        output,
        num_rows,
        residual_scale,
        NUM_COLUMNS=num_columns,
        ROWS=shape.rows,
        EVEN_ROWS=num_rows % rows_each == 0,
        CELLS=shape.cells,
        UNROLLED=row_cells <= _MAX_UNROLLED * shape.cells,
        BITS=form.bits,
        PARTS=form.parts,
        GROUP=form.group_size,
        CENTRE=form.centre,
        SCALES=form.scales,
        HAS_SHIFTS=form.has_shifts,
        IS_FLOAT8=form.is_float8,
        HAS_BIAS=bias is not None,
        EPILOGUE=epilogue,
        IS_GELU=activation == "gelu_tanh",
        IS_BFLOAT16=vector.dtype is torch.bfloat16,
        ASM=vector.is_cuda,
        OVERLAP=overlap,
        num_warps=max(1, shape.cells // 32),
        **launch_options(overlap),
    )

"""Some rows times a packed matrix by the matrix units.

The weights are the left operand, so that what is unpacked stays in registers. Codes are exact in
16 bits; scales are applied to the sums of a group, in float32, and shifts multiply the sum of a
group's inputs, which comes out of the same units as the product with ones.

The plain-torch twin is `TiledWeights.unpack`.
"""

import dataclasses
import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.codes import part_values
from octavo.engine.kernels.triton.tile_scales import load_scales, part_scale
from octavo.engine.kernels.triton.tiles import PLAIN_SCALES, TiledWeights, TileForm

WHOLE = 1 << 24
"""As a group: all of a row, whatever its length."""
_SERVER_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))


@dataclass(frozen=True, slots=True)
class TiledGemmShape:
    """How much a program takes, and into how many parts the columns are cut."""

    rows: int
    """Of the matrix."""
    warps: int
    stages: int
    splits: int


def scales_are_many(form: TileForm) -> bool:
    """Whether applying scales and shifts takes about as long as the products."""
    return form.scales != PLAIN_SCALES or form.has_shifts or form.group_size < form.tile_size


def tiled_gemm_shape(num_inputs: int, weights: TiledWeights) -> TiledGemmShape:
    """The measured best on Hopper for the matrices of an 8B model, by their sizes."""
    form = weights.form
    num_rows, num_columns = weights.out_features, weights.in_features
    is_wide = num_rows >= 16384
    if scales_are_many(form):
        # An output projection has programs enough, and its parts would be large.
        is_split = num_rows < 65536 and num_inputs <= 64
        return TiledGemmShape(64, 4, 3, (2 if is_split else 1) if is_wide else 4)
    if num_inputs > 64:
        if num_columns > 2 * num_rows:
            return TiledGemmShape(128, 8, 3, 4 if num_inputs <= 128 else 2)
        is_square = num_rows <= num_columns
        return TiledGemmShape(128, 8, 3, 4 if is_square and num_inputs <= 128 else 1)
    if is_wide:
        return TiledGemmShape(128, 8, 4 if num_inputs < 32 else 3, 1)
    if num_columns > 2 * num_rows:
        if num_inputs <= 16:
            return TiledGemmShape(128, 8, 4, 8)
        return TiledGemmShape(128, 8, 3, 8) if num_inputs <= 32 else TiledGemmShape(128, 8, 4, 4)
    if num_rows > num_columns:
        splits = 6 if num_inputs <= 16 else 3 if num_inputs <= 32 else 2
        return TiledGemmShape(64, 4, 4, splits)
    if num_inputs <= 16:
        return TiledGemmShape(32, 2, 4, 4)
    return TiledGemmShape(64, 4, 3, 4)


@triton.jit
def tile_sums(
    inputs, input_rows, exists, words, high, scales, shifts, factors, rows, first, last,
    num_columns,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr, PARTS: tl.constexpr,
    GROUP: tl.constexpr, IS_WHOLE: tl.constexpr, CENTRE: tl.constexpr, SCALES: tl.constexpr,
    HAS_SHIFTS: tl.constexpr, IS_FLOAT8: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Some rows of a packed matrix times some inputs, over a range of tiles.

    Args:
        input_rows: [INPUTS]: which rows of the inputs.
        exists: [INPUTS]: the others count as zeros.
        rows: [ROWS], int64, of the matrix.
        first: tile of a row.
        last: the tile after the range.

    Returns:
        [ROWS, INPUTS], float32.
    """
    TILE: tl.constexpr = 32 * PARTS
    num_tiles = num_columns // TILE
    # Parts that share a scale are added up before they are scaled; those of a whole row at the end.
    PARTS_EACH: tl.constexpr = PARTS if GROUP >= TILE else max(1, GROUP // 32)
    LANES: tl.constexpr = min(32, GROUP)
    dtype: tl.constexpr = inputs.dtype.element_ty
    lanes = tl.arange(0, LANES)
    ones = tl.full([ROWS, LANES], 1.0, dtype)
    sums = tl.zeros([ROWS, INPUTS], tl.float32)
    input_sums = tl.zeros([ROWS, INPUTS], tl.float32)
    r0, r1, r2, r3, t0, t1, t2, t3 = load_scales(
        scales, shifts, factors, rows, tl.minimum(first, num_tiles - 1), num_columns, TILE,
        GROUP, SCALES, HAS_SHIFTS, ASM,
    )  # fmt: skip
    for tile in tl.range(first, last, num_stages=STAGES):
        # A tile ahead: nothing else would hide the time that these take to come.
        next_tile = tl.minimum(tile + 1, num_tiles - 1)
        n0, n1, n2, n3, m0, m1, m2, m3 = load_scales(
            scales, shifts, factors, rows, next_tile, num_columns, TILE, GROUP, SCALES,
            HAS_SHIFTS, ASM,
        )  # fmt: skip
        for piece in tl.static_range(32 // LANES):
            lane = piece * LANES + lanes
            place = rows[:, None] * (num_tiles * 32) + tile * 32 + lane[None, :]
            half = tl.load(words + place, eviction_policy="evict_first")
            extra = half
            if BITS == 6:
                extra = tl.load(high + place, eviction_policy="evict_first").to(tl.int16)
            elif BITS == 5:
                high_bytes = (num_tiles + 1) // 2 * 32
                place = rows[:, None] * high_bytes + (tile // 2) * 32 + lane[None, :]
                extra = (tl.load(high + place).to(tl.int32) >> (tile % 2 * 4)).to(tl.int16)
            input_place = inputs + input_rows[None, :] * num_columns + tile * TILE + lane[:, None]
            for part in tl.static_range(PARTS):
                values = part_values(half, extra, part, BITS, CENTRE, IS_FLOAT8, dtype, ASM)
                x = tl.load(input_place + part * 32, mask=exists[None, :], other=0.0)
                if IS_WHOLE:
                    sums = tl.dot(values, x, sums)
                    if HAS_SHIFTS:
                        input_sums = tl.dot(ones, x, input_sums)
                else:
                    if part % PARTS_EACH == 0:
                        total = tl.dot(values, x)
                        if HAS_SHIFTS:
                            input_total = tl.dot(ones, x)
                    else:
                        total = tl.dot(values, x, total)
                        if HAS_SHIFTS:
                            input_total = tl.dot(ones, x, input_total)
                    if part % PARTS_EACH == PARTS_EACH - 1:
                        scale, shift = part_scale(
                            r0, r1, r2, r3, t0, t1, t2, t3, part, TILE, GROUP, SCALES, ASM
                        )
                        if SCALES == 2 and piece == 1:
                            scale = shift
                        sums += total * scale[:, None]
                        if HAS_SHIFTS:
                            sums += input_total * shift[:, None]
        r0, r1, r2, r3 = n0, n1, n2, n3
        t0, t1, t2, t3 = m0, m1, m2, m3
    if IS_WHOLE:
        sums *= tl.load(scales + rows).to(tl.float32)[:, None]
        if HAS_SHIFTS:
            sums += input_sums * tl.load(shifts + rows).to(tl.float32)[:, None]
    if IS_FLOAT8:
        sums *= 256.0
    return sums


@triton.jit(do_not_specialize=["num_inputs", "tiles_each"])
def _tiled_gemm(
    inputs,
    words,
    high,
    scales,
    shifts,
    factors,
    output,
    parts,
    num_inputs,
    num_rows,
    num_columns,
    tiles_each,
    output_stride,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    CENTRE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    IS_FLOAT8: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):
    split = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_matrix = rows < num_rows
    safe_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
    picked = tl.program_id(2) * INPUTS + tl.arange(0, INPUTS)
    exists = picked < num_inputs
    first = split * tiles_each
    last = tl.minimum(first + tiles_each, num_columns // (32 * PARTS))
    sums = tile_sums(
        inputs, picked, exists, words, high, scales, shifts, factors, safe_rows, first, last,
        num_columns, INPUTS, ROWS, BITS, PARTS, GROUP, IS_WHOLE, CENTRE, SCALES, HAS_SHIFTS,
        IS_FLOAT8, STAGES, ASM,
    )  # fmt: skip
    written = exists[None, :] & in_matrix[:, None]
    if not IS_SPLIT:
        place = output + picked[None, :].to(tl.int64) * output_stride + rows[:, None]
        tl.store(place, sums.to(output.dtype.element_ty), mask=written)
    else:
        place = (split * num_inputs + picked[None, :]).to(tl.int64) * num_rows + rows[:, None]
        tl.store(parts + place, sums, mask=written)


@triton.jit
def _add_parts(
    parts,
    bias,
    output,
    num_values,
    num_rows,
    output_stride,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    values = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = values < num_values
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * num_values + values, mask=exists, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + values % num_rows, mask=exists, other=0.0).to(tl.float32)
    place = output + (values // num_rows).to(tl.int64) * output_stride + values % num_rows
    tl.store(place, total.to(output.dtype.element_ty), mask=exists)


@functools.cache
def has_much_shared_memory(device: torch.device) -> bool:
    """Server cards have; consumer cards end at 99 KiB a program."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(device) in _SERVER_CAPABILITIES


def tiled_gemm(
    inputs: torch.Tensor,
    weights: TiledWeights,
    output: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    shape: TiledGemmShape | None = None,
    inputs_each: int | None = None,
) -> torch.Tensor:
    """Multiplies some rows by a packed matrix.

    Args:
        inputs: [num_inputs, in_features], bfloat16 or float16, contiguous.
        weights: the matrix.
        output: [num_inputs, out_features], type of inputs; its rows may lie apart.
        bias: [out_features].
        shape: None: what was measured best.
        inputs_each: rows of the inputs that a program takes, a power of two; None: the best.

    Returns:
        `output`, filled.
    """
    assert inputs.dtype in (torch.bfloat16, torch.float16)
    assert output.stride(1) == 1
    form = weights.form
    num_inputs, num_columns = inputs.shape
    num_rows = weights.out_features
    if shape is None:
        shape = tiled_gemm_shape(num_inputs, weights)
        if num_inputs > 64 and not has_much_shared_memory(inputs.device):
            shape = dataclasses.replace(shape, stages=2)
    if inputs_each is None:
        most = 64 if num_inputs > 128 and shape.splits == 1 else 128
        inputs_each = min(most, max(16, triton.next_power_of_2(num_inputs)))
    is_whole = form.group_size == num_columns
    num_tiles = num_columns // form.tile_size
    tiles_each = triton.cdiv(num_tiles, shape.splits)
    splits = triton.cdiv(num_tiles, tiles_each)
    parts = output
    if splits > 1:
        parts = inputs.new_empty(splits, num_inputs, num_rows, dtype=torch.float32)
    grid = triton.cdiv(num_rows, shape.rows), splits, triton.cdiv(num_inputs, inputs_each)
    _tiled_gemm[grid](
        inputs,
        weights.words.view(torch.int16),
        weights.words if weights.high is None else weights.high,
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        weights.scales if weights.factors is None else weights.factors,
        output,
        parts,
        num_inputs,
        num_rows,
        num_columns,
        tiles_each,
        output.stride(0),
        INPUTS=inputs_each,
        ROWS=shape.rows,
        IS_SPLIT=splits > 1,
        BITS=form.bits,
        PARTS=form.parts,
        GROUP=WHOLE if is_whole else form.group_size,
        IS_WHOLE=is_whole,
        CENTRE=form.centre,
        SCALES=form.scales,
        HAS_SHIFTS=form.has_shifts,
        IS_FLOAT8=form.is_float8,
        STAGES=shape.stages,
        ASM=inputs.is_cuda,
        num_warps=shape.warps,
    )
    if splits > 1:
        num_values = num_inputs * num_rows
        _add_parts[(triton.cdiv(num_values, 1024),)](
            parts,
            output if bias is None else bias,
            output,
            num_values,
            num_rows,
            output.stride(0),
            SPLITS=splits,
            HAS_BIAS=bias is not None,
            BLOCK=1024,
        )
    elif bias is not None:
        output += bias
    return output

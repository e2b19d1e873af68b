"""Few rows times a four-bit matrix by the matrix units; for many rows, the matrix in bfloat16.

The weights are the left operand, so that what is unpacked stays in registers. The layout is that
of `int4`; the plain-torch twin is `Int4Weights.unpack`.
"""

import dataclasses
import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.int4 import TILE, Int4Weights
from octavo.engine.kernels.triton.launch import is_hopper_or_later

_UNPACK_ROWS = 16
_SERVER_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))


@dataclass(frozen=True, slots=True)
class Int4GemmShape:
    """How much a program takes, and into how many parts the columns are cut."""

    rows: int
    """Of the matrix."""
    warps: int
    stages: int
    splits: int


def int4_gemm_shape(num_inputs: int, num_rows: int, num_columns: int) -> Int4GemmShape:
    """The measured best on Hopper for the matrices of an 8B model, by their sizes."""
    if num_inputs > 64:
        if num_columns > 2 * num_rows:
            return Int4GemmShape(128, 8, 3, 4 if num_inputs <= 128 else 2)
        is_square = num_rows <= num_columns
        return Int4GemmShape(128, 8, 3, 4 if is_square and num_inputs <= 128 else 1)
    if num_rows >= 16384:
        return Int4GemmShape(128, 8, 4 if num_inputs < 32 else 3, 1)
    if num_columns > 2 * num_rows:
        if num_inputs <= 16:
            return Int4GemmShape(128, 8, 4, 8)
        return Int4GemmShape(128, 8, 3, 8) if num_inputs <= 32 else Int4GemmShape(128, 8, 4, 4)
    if num_rows > num_columns:
        splits = 6 if num_inputs <= 16 else 3 if num_inputs <= 32 else 2
        return Int4GemmShape(64, 4, 4, splits)
    if num_inputs <= 16:
        return Int4GemmShape(32, 2, 4, 4)
    return Int4GemmShape(64, 4, 3, 4)


@triton.jit
def _unpack_quarter(words, QUARTER: tl.constexpr, ASM: tl.constexpr):
    """Half words to bfloat16: the codes of a quarter less 8, exactly."""
    # Two half words a register: the code is put into the mantissa of 128, and 136 taken away. The
    # subtraction of pairs came with Hopper.
    if ASM:
        if QUARTER == 0:
            values = tl.inline_asm_elementwise(
                "{.reg .b32 t, c; mov.b32 c, 0x43084308;"
                " lop3.b32 t, $1, 0x000f000f, 0x43004300, 0xEA; sub.rn.bf16x2 $0, t, c;}",
                "=r,r",
                [words],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
        elif QUARTER == 1:
            values = tl.inline_asm_elementwise(
                "{.reg .b32 t, c; mov.b32 c, 0x43084308; shr.u32 t, $1, 4;"
                " lop3.b32 t, t, 0x000f000f, 0x43004300, 0xEA; sub.rn.bf16x2 $0, t, c;}",
                "=r,r",
                [words],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
        elif QUARTER == 2:
            values = tl.inline_asm_elementwise(
                "{.reg .b32 t, c; mov.b32 c, 0x43084308; shr.u32 t, $1, 8;"
                " lop3.b32 t, t, 0x000f000f, 0x43004300, 0xEA; sub.rn.bf16x2 $0, t, c;}",
                "=r,r",
                [words],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
        else:
            values = tl.inline_asm_elementwise(
                "{.reg .b32 t, c; mov.b32 c, 0x43084308; shr.u32 t, $1, 12;"
                " lop3.b32 t, t, 0x000f000f, 0x43004300, 0xEA; sub.rn.bf16x2 $0, t, c;}",
                "=r,r",
                [words],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
    else:
        values = (((words.to(tl.int32) >> (4 * QUARTER)) & 15) - 8).to(tl.float32).to(tl.bfloat16)
    return values


@triton.jit
def _int4_gemm(
    inputs,
    words,
    scales,
    shifts,
    output,
    parts,
    num_inputs,
    num_rows,
    NUM_COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    TILES_EACH: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):
    split = tl.program_id(1)
    NUM_TILES: tl.constexpr = NUM_COLUMNS // 128
    NUM_GROUPS: tl.constexpr = NUM_TILES * GROUPS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_matrix = rows < num_rows
    safe_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
    picked = tl.program_id(2) * INPUTS + tl.arange(0, INPUTS)
    exists = picked[None, :] < num_inputs
    halves = tl.arange(0, 32)
    sums = tl.zeros([ROWS, INPUTS], tl.float32)
    first = split * TILES_EACH
    last = tl.minimum(first + TILES_EACH, NUM_TILES)
    for tile in tl.range(first, last, num_stages=STAGES):
        word_place = words + safe_rows[:, None] * (NUM_COLUMNS // 4) + tile * 32 + halves[None, :]
        word = tl.load(word_place, eviction_policy="evict_first")
        place = inputs + picked[None, :] * NUM_COLUMNS + tile * 128 + halves[:, None]
        x0 = tl.load(place, mask=exists, other=0.0)
        x1 = tl.load(place + 32, mask=exists, other=0.0)
        x2 = tl.load(place + 64, mask=exists, other=0.0)
        x3 = tl.load(place + 96, mask=exists, other=0.0)
        group = safe_rows * NUM_GROUPS + tile * GROUPS
        if GROUPS == 1:
            total = tl.dot(_unpack_quarter(word, 0, ASM), x0)
            total = tl.dot(_unpack_quarter(word, 1, ASM), x1, total)
            total = tl.dot(_unpack_quarter(word, 2, ASM), x2, total)
            total = tl.dot(_unpack_quarter(word, 3, ASM), x3, total)
            sums += total * tl.load(scales + group).to(tl.float32)[:, None]
        elif GROUPS == 2:
            total = tl.dot(_unpack_quarter(word, 0, ASM), x0)
            total = tl.dot(_unpack_quarter(word, 1, ASM), x1, total)
            sums += total * tl.load(scales + group).to(tl.float32)[:, None]
            total = tl.dot(_unpack_quarter(word, 2, ASM), x2)
            total = tl.dot(_unpack_quarter(word, 3, ASM), x3, total)
            sums += total * tl.load(scales + group + 1).to(tl.float32)[:, None]
        else:
            total = tl.dot(_unpack_quarter(word, 0, ASM), x0)
            sums += total * tl.load(scales + group).to(tl.float32)[:, None]
            total = tl.dot(_unpack_quarter(word, 1, ASM), x1)
            sums += total * tl.load(scales + group + 1).to(tl.float32)[:, None]
            total = tl.dot(_unpack_quarter(word, 2, ASM), x2)
            sums += total * tl.load(scales + group + 2).to(tl.float32)[:, None]
            total = tl.dot(_unpack_quarter(word, 3, ASM), x3)
            sums += total * tl.load(scales + group + 3).to(tl.float32)[:, None]
        if HAS_SHIFTS:
            s0 = tl.sum(x0.to(tl.float32), 0)
            s1 = tl.sum(x1.to(tl.float32), 0)
            s2 = tl.sum(x2.to(tl.float32), 0)
            s3 = tl.sum(x3.to(tl.float32), 0)
            if GROUPS == 1:
                s0 += s1 + s2 + s3
                sums += tl.load(shifts + group).to(tl.float32)[:, None] * s0[None, :]
            elif GROUPS == 2:
                s0 += s1
                s2 += s3
                sums += tl.load(shifts + group).to(tl.float32)[:, None] * s0[None, :]
                sums += tl.load(shifts + group + 1).to(tl.float32)[:, None] * s2[None, :]
            else:
                sums += tl.load(shifts + group).to(tl.float32)[:, None] * s0[None, :]
                sums += tl.load(shifts + group + 1).to(tl.float32)[:, None] * s1[None, :]
                sums += tl.load(shifts + group + 2).to(tl.float32)[:, None] * s2[None, :]
                sums += tl.load(shifts + group + 3).to(tl.float32)[:, None] * s3[None, :]
    written = exists & in_matrix[:, None]
    if SPLITS == 1:
        place = output + picked[None, :].to(tl.int64) * num_rows + rows[:, None]
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
    tl.store(output + values, total.to(output.dtype.element_ty), mask=exists)


@triton.jit
def _unpack_int4(
    words,
    scales,
    shifts,
    output,
    num_rows,
    NUM_COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    NUM_GROUPS: tl.constexpr = NUM_COLUMNS // 128 * GROUPS
    exists = (rows < num_rows)[:, None]
    halves = tl.arange(0, 32)
    wide_rows = rows.to(tl.int64)[:, None]
    place = words + wide_rows * (NUM_COLUMNS // 4) + tile * 32 + halves[None, :]
    word = tl.load(place, mask=exists, other=0).to(tl.int32)
    for quarter in tl.static_range(4):
        codes = (((word >> (4 * quarter)) & 15) - 8).to(tl.float32)
        group = wide_rows * NUM_GROUPS + tile * GROUPS + quarter * GROUPS // 4
        values = codes * tl.load(scales + group, mask=exists, other=0.0).to(tl.float32)
        if HAS_SHIFTS:
            values += tl.load(shifts + group, mask=exists, other=0.0).to(tl.float32)
        place = output + wide_rows * NUM_COLUMNS + tile * 128 + quarter * 32 + halves[None, :]
        tl.store(place, values.to(output.dtype.element_ty), mask=exists)


@functools.cache
def _has_much_shared_memory(device: torch.device) -> bool:
    """Server cards have; consumer cards end at 99 KiB a program."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(device) in _SERVER_CAPABILITIES


def unpack_int4(weights: Int4Weights, output: torch.Tensor) -> torch.Tensor:
    """Fills in [out_features, in_features]; faster than `Int4Weights.unpack`."""
    num_rows, num_columns = weights.out_features, weights.in_features
    _unpack_int4[(triton.cdiv(num_rows, _UNPACK_ROWS), num_columns // TILE)](
        weights.words.view(torch.int16),
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        output,
        num_rows,
        NUM_COLUMNS=num_columns,
        GROUPS=weights.groups_per_tile,
        HAS_SHIFTS=weights.shifts is not None,
        ROWS=_UNPACK_ROWS,
        num_warps=4,
    )
    return output


def int4_gemm(
    inputs: torch.Tensor,
    weights: Int4Weights,
    *,
    bias: torch.Tensor | None = None,
    shape: Int4GemmShape | None = None,
    inputs_each: int | None = None,
) -> torch.Tensor:
    """Multiplies a few rows by a four-bit matrix.

    Args:
        inputs: [num_inputs, in_features], bfloat16, contiguous.
        weights: the matrix.
        bias: [out_features].
        shape: None: what was measured best.
        inputs_each: rows of the inputs that a program takes, a power of two; None: the best.

    Returns:
        [num_inputs, out_features], bfloat16.
    """
    assert inputs.dtype is torch.bfloat16
    num_inputs, num_columns = inputs.shape
    num_rows = weights.out_features
    if shape is None:
        shape = int4_gemm_shape(num_inputs, num_rows, num_columns)
        if num_inputs > 64 and not _has_much_shared_memory(inputs.device):
            shape = dataclasses.replace(shape, stages=2)
    if inputs_each is None:
        most = 64 if num_inputs > 128 and shape.splits == 1 else 128
        inputs_each = min(most, max(16, triton.next_power_of_2(num_inputs)))
    num_tiles = num_columns // TILE
    tiles_each = triton.cdiv(num_tiles, shape.splits)
    splits = triton.cdiv(num_tiles, tiles_each)
    output = inputs.new_empty(num_inputs, num_rows)
    needs_parts = splits > 1
    parts = output
    if needs_parts:
        parts = inputs.new_empty(splits, num_inputs, num_rows, dtype=torch.float32)
    grid = triton.cdiv(num_rows, shape.rows), splits, triton.cdiv(num_inputs, inputs_each)
    _int4_gemm[grid](
        inputs,
        weights.words.view(torch.int16),
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        output,
        parts,
        num_inputs,
        num_rows,
        NUM_COLUMNS=num_columns,
        INPUTS=inputs_each,
        ROWS=shape.rows,
        SPLITS=splits,
        TILES_EACH=tiles_each,
        GROUPS=weights.groups_per_tile,
        HAS_SHIFTS=weights.shifts is not None,
        STAGES=shape.stages,
        ASM=is_hopper_or_later(inputs.device),
        num_warps=shape.warps,
    )
    if needs_parts:
        num_values = num_inputs * num_rows
        _add_parts[(triton.cdiv(num_values, 1024),)](
            parts,
            output if bias is None else bias,
            output,
            num_values,
            num_rows,
            SPLITS=splits,
            HAS_BIAS=bias is not None,
            BLOCK=1024,
        )
    elif bias is not None:
        output += bias
    return output

"""Rows of a packed matrix as plain numbers: all of them, or those of some indices.

The plain-torch twin is `TiledWeights.unpack`.
"""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.codes import float8_pair
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.tile_scales import load_scales, part_scale
from octavo.engine.kernels.triton.tiles import TiledWeights

_ROWS, _TILES = 8, 8
"""What a program takes; tiles of a row lie beside each other."""


@triton.jit(do_not_specialize=["first_row", "num_rows"])
def _unpack(
    words,
    high,
    scales,
    shifts,
    factors,
    indices,
    output,
    first_row,
    num_rows,
    multiplier,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    CENTRE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    IS_FLOAT8: tl.constexpr,
    HAS_INDICES: tl.constexpr,
    HAS_MULTIPLIER: tl.constexpr,
    ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    TILE: tl.constexpr = 32 * PARTS
    NUM_TILES: tl.constexpr = NUM_COLUMNS // TILE
    WIDTH: tl.constexpr = 8 if BITS == 8 else 4
    pairs = tl.arange(0, ROWS * TILES)[:, None]
    places = tl.program_id(0) * ROWS + pairs // TILES
    tile = tl.program_id(1) * TILES + pairs % TILES
    exists = (places < num_rows) & (tile < NUM_TILES)
    follow(OVERLAP)
    safe_places = tl.minimum(places, num_rows - 1)
    tile = tl.minimum(tile, NUM_TILES - 1)
    if HAS_INDICES:
        rows = tl.load(indices + safe_places).to(tl.int64)
    else:
        rows = (first_row + safe_places).to(tl.int64)
    lanes = tl.arange(0, 32)[None, :]
    half = tl.load(words + rows * (NUM_TILES * 32) + tile * 32 + lanes).to(tl.int32)
    if BITS == 6:
        extra = tl.load(high + rows * (NUM_TILES * 32) + tile * 32 + lanes).to(tl.int32)
    elif BITS == 5:
        HIGH_BYTES: tl.constexpr = (NUM_TILES + 1) // 2 * 32
        extra = tl.load(high + rows * HIGH_BYTES + (tile // 2) * 32 + lanes).to(tl.int32)
        extra = extra >> (tile % 2 * 4)
    r0, r1, r2, r3, t0, t1, t2, t3 = load_scales(
        scales, shifts, factors, rows, tile, NUM_COLUMNS, TILE, GROUP, SCALES, HAS_SHIFTS, ASM
    )
    for part in tl.static_range(PARTS):
        scale, shift = part_scale(r0, r1, r2, r3, t0, t1, t2, t3, part, TILE, GROUP, SCALES, ASM)
        if SCALES == 2:
            scale = tl.where(lanes < 16, scale, shift)
        if IS_FLOAT8:
            values, _ = float8_pair(half & 0xFFFF, part)
            values = values * 256.0 * scale
        else:
            code = (half >> (WIDTH * part)) & ((1 << WIDTH) - 1)
            if BITS == 5 or BITS == 6:
                code |= ((extra >> ((BITS - 4) * part)) & ((1 << (BITS - 4)) - 1)) << 4
            values = (code - CENTRE).to(tl.float32) * scale
            if HAS_SHIFTS:
                values += shift
        values = values.to(output.dtype.element_ty)
        if HAS_MULTIPLIER:
            values = (values.to(tl.float32) * multiplier).to(output.dtype.element_ty)
        place = output + places.to(tl.int64) * NUM_COLUMNS
        tl.store(place + tile * TILE + part * 32 + lanes, values, mask=exists)


def unpack_rows(weights: TiledWeights, start: int, stop: int, output: torch.Tensor) -> torch.Tensor:
    """Fills in [stop - start, in_features], of any floating type."""
    return _launch(weights, None, start, stop - start, output)


def select_rows(
    weights: TiledWeights,
    indices: torch.Tensor,
    output: torch.Tensor,
    *,
    multiplier: float | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Fills in the rows of indices, as an embedding wants them.

    Args:
        weights: the matrix.
        indices: [num_indices], int32 or int64.
        output: [num_indices, in_features], of any floating type.
        multiplier: factor on the rows once they are rounded to that type; None: none.
        overlap: whether the launch may overlap with the kernel before it.
    """
    return _launch(weights, indices, 0, len(indices), output, multiplier, overlap=overlap)


def _launch(
    weights: TiledWeights,
    indices: torch.Tensor | None,
    first_row: int,
    num_rows: int,
    output: torch.Tensor,
    multiplier: float | None = None,
    *,
    overlap: bool = False,
) -> torch.Tensor:
    form, num_columns = weights.form, weights.in_features
    rows_each = 1 if num_rows < _ROWS else _ROWS
    num_tiles = num_columns // form.tile_size
    _unpack[(triton.cdiv(num_rows, rows_each), triton.cdiv(num_tiles, _TILES))](
        weights.words.view(torch.int16),
        weights.words if weights.high is None else weights.high,
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        weights.scales if weights.factors is None else weights.factors,
        weights.words if indices is None else indices,
        output,
        first_row,
        num_rows,
        1.0 if multiplier is None else multiplier,
        NUM_COLUMNS=num_columns,
        ROWS=rows_each,
        TILES=_TILES,
        BITS=form.bits,
        PARTS=form.parts,
        GROUP=form.group_size,
        CENTRE=form.centre,
        SCALES=form.scales,
        HAS_SHIFTS=form.has_shifts,
        IS_FLOAT8=form.is_float8,
        HAS_INDICES=indices is not None,
        HAS_MULTIPLIER=multiplier is not None,
        ASM=output.is_cuda,
        OVERLAP=overlap,
        num_warps=4 if rows_each > 1 else 1,
        **launch_options(overlap),
    )
    return output

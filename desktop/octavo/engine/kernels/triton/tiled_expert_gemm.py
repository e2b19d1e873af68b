"""Rows times the packed matrices of the experts that were picked for them, all in one launch.

As `expert_gemm`, for matrices in tiles, those of all experts above each other. Plain-torch twins
are `TiledWeights.unpack` and `layers.moe.MoE`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.gated_activation import apply_gate
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.moe_routing import PickGroups
from octavo.engine.kernels.triton.tiled_gemm import (
    WHOLE,
    has_much_shared_memory,
    scales_are_many,
    tile_sums,
)
from octavo.engine.kernels.triton.tiles import TiledWeights, TileForm


@dataclass(frozen=True, slots=True)
class TiledGroupedShape:
    """How much a program takes."""

    picks: int
    rows: int
    """Of an expert's matrix; of gates and ups, so many each."""
    warps: int
    stages: int


def tiled_grouped_shape(
    num_picks: int, num_experts: int, form: TileForm, device: torch.device
) -> TiledGroupedShape:
    """The measured best on Hopper for experts of 768 features, by how many picks they have."""
    picks_each = num_picks / min(num_picks, num_experts)
    stages = 3 if has_much_shared_memory(device) else 2
    if scales_are_many(form) and picks_each <= 8:
        return TiledGroupedShape(16, 32, 2, stages)
    picks = 16 if picks_each < 6 else 32 if picks_each <= 24 else 64
    return TiledGroupedShape(picks, 64, 4, stages)


@triton.jit(do_not_specialize=["num_picks"])
def _multiply_grouped(
    inputs,
    words,
    high,
    scales,
    shifts,
    factors,
    numbers,
    block_experts,
    output,
    num_picks,
    num_features,
    num_columns,
    PICKS_PER_ROW: tl.constexpr,
    PICKS: tl.constexpr,
    ROWS: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
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
    OVERLAP: tl.constexpr,
):
    block = tl.program_id(1)
    follow(OVERLAP)
    expert = tl.load(block_experts + block).to(tl.int64)
    if expert < 0:
        return
    picked = tl.load(numbers + block * PICKS + tl.arange(0, PICKS))
    exists = picked < num_picks
    features = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_matrix = features < num_features
    rows = tl.minimum(features, num_features - 1)
    if GATED:
        rows += expert * 2 * num_features
    else:
        rows += expert * num_features
    num_tiles = num_columns // (32 * PARTS)
    dtype = output.dtype.element_ty
    products = tile_sums(
        inputs, picked // PICKS_PER_ROW, exists, words, high, scales, shifts, factors, rows, 0,
        num_tiles, num_columns, PICKS, ROWS, BITS, PARTS, GROUP, IS_WHOLE, CENTRE, SCALES,
        HAS_SHIFTS, IS_FLOAT8, STAGES, ASM,
    )  # fmt: skip
    if GATED:
        ups = tile_sums(
            inputs, picked // PICKS_PER_ROW, exists, words, high, scales, shifts, factors,
            rows + num_features, 0, num_tiles, num_columns, PICKS, ROWS, BITS, PARTS, GROUP,
            IS_WHOLE, CENTRE, SCALES, HAS_SHIFTS, IS_FLOAT8, STAGES, ASM,
        )  # fmt: skip
        products = apply_gate(products, ups, ACTIVATION, dtype)
    place = output + picked[None, :].to(tl.int64) * num_features + features[:, None]
    tl.store(place, products.to(dtype), mask=exists[None, :] & in_matrix[:, None])


def multiply_grouped_tiled(
    rows: torch.Tensor,
    weights: TiledWeights,
    groups: PickGroups,
    num_picks: int,
    num_experts: int,
    *,
    gated: bool,
    activation: str = "silu",
    shape: TiledGroupedShape,
    overlap: bool = False,
) -> torch.Tensor:
    """Multiplies each picked row by its expert's matrix.

    Args:
        rows: [num_rows, in_features], bfloat16 or float16, contiguous: a row for each token, or one
            for each pick.
        weights: [num_experts * out_features, in_features]; if `gated`, of each expert the gates,
            then the ups.
        groups: of the step's picks; its blocks are the shape's.
        num_picks: all that were picked in the step.
        num_experts: of the layer.
        gated: the result is activation(gate) * up, not the plain product.
        activation: as `layers.mlp.apply_gate` has them.
        shape: how much a program takes.
        overlap: whether the launch may overlap with the kernel before it.

    Returns:
        [num_picks, out_features], by the numbers of the picks.
    """
    assert rows.dtype in (torch.bfloat16, torch.float16)
    assert groups.block_size == shape.picks
    assert num_picks % len(rows) == 0
    form, num_columns = weights.form, weights.in_features
    num_features = weights.out_features // num_experts // (2 if gated else 1)
    is_whole = form.group_size == num_columns
    output = rows.new_empty(num_picks, num_features)
    _multiply_grouped[(triton.cdiv(num_features, shape.rows), len(groups.block_experts))](
        rows,
        weights.words.view(torch.int16),
        weights.words if weights.high is None else weights.high,
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        weights.scales if weights.factors is None else weights.factors,
        groups.numbers,
        groups.block_experts,
        output,
        num_picks,
        num_features,
        num_columns,
        PICKS_PER_ROW=num_picks // len(rows),
        PICKS=shape.picks,
        ROWS=shape.rows,
        GATED=gated,
        ACTIVATION=activation,
        BITS=form.bits,
        PARTS=form.parts,
        GROUP=WHOLE if is_whole else form.group_size,
        IS_WHOLE=is_whole,
        CENTRE=form.centre,
        SCALES=form.scales,
        HAS_SHIFTS=form.has_shifts,
        IS_FLOAT8=form.is_float8,
        STAGES=shape.stages,
        ASM=rows.is_cuda,
        OVERLAP=overlap,
        num_warps=shape.warps,
        **launch_options(overlap),
    )
    return output

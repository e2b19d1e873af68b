"""One token through the packed experts that were picked for it, reading no others.

As `expert_gemv`, for matrices in tiles, those of all experts above each other. Plain-torch twins
are `TiledWeights.unpack` and `layers.moe.MoE`.
"""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.gated_activation import apply_gate
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.moe_routing import Picks
from octavo.engine.kernels.triton.tiled_gemv import CELL_HALVES, TiledGemvShape, add_cells
from octavo.engine.kernels.triton.tiles import TiledWeights

_MAX_UNROLLED = 16


@triton.jit
def _multiply_picked(
    vector,
    words,
    high,
    scales,
    shifts,
    factors,
    experts,
    output,
    num_features,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CELLS: tl.constexpr,
    UNROLLED: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    CENTRE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    IS_FLOAT8: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
    ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Gates and ups take turns among the program's rows."""
    TILE: tl.constexpr = 32 * PARTS
    ROW_CELLS: tl.constexpr = NUM_COLUMNS // (PARTS * 8)
    IS_EVEN: tl.constexpr = ROW_CELLS % CELLS == 0
    pick = tl.program_id(1)
    turns = tl.arange(0, ROWS)
    features = tl.program_id(0) * (ROWS // 2) + turns // 2
    features = tl.minimum(features, num_features - 1)
    follow(OVERLAP)
    expert = tl.load(experts + pick)
    rows = ((expert * 2 + turns % 2) * num_features + features)[:, None]
    sums = tl.zeros([ROWS, CELLS], tl.float32)
    if UNROLLED:
        for first in tl.static_range(0, ROW_CELLS, CELLS):
            sums = add_cells(
                sums, vector, words, high, scales, shifts, factors, rows, first,
                NUM_COLUMNS, CELLS, IS_EVEN, BITS, PARTS, TILE, GROUP, CENTRE, SCALES,
                HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, False,
            )  # fmt: skip
    else:
        for first in tl.range(0, ROW_CELLS, CELLS):
            sums = add_cells(
                sums, vector, words, high, scales, shifts, factors, rows, first,
                NUM_COLUMNS, CELLS, IS_EVEN, BITS, PARTS, TILE, GROUP, CENTRE, SCALES,
                HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, False,
            )  # fmt: skip
    gate, up = tl.split(tl.reshape(tl.sum(sums, 1), [ROWS // 2, 2]))
    own_features = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    dtype = output.dtype.element_ty
    activated = apply_gate(gate, up, ACTIVATION, dtype)
    place = output + pick * num_features + own_features
    tl.store(place, activated.to(dtype), mask=own_features < num_features)


@triton.jit
def _add_picked(
    vectors,
    words,
    high,
    scales,
    shifts,
    factors,
    experts,
    shares,
    shared,
    shared_logits,
    hidden,
    num_features,
    residual_scale,
    NUM_PICKS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CELLS: tl.constexpr,
    UNROLLED: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    CENTRE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    IS_FLOAT8: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
    ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    features = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_matrix = features < num_features
    safe_features = tl.minimum(features, num_features - 1)[:, None]
    follow(OVERLAP)
    STEPS: tl.constexpr = (NUM_COLUMNS // (PARTS * 8) + CELLS - 1) // CELLS
    sums = tl.zeros([ROWS, CELLS], tl.float32)
    if UNROLLED:
        for step in tl.static_range(NUM_PICKS * STEPS):
            sums = _add_share(
                sums, vectors, words, high, scales, shifts, factors, experts, shares,
                step // STEPS, step % STEPS * CELLS, safe_features, num_features, NUM_COLUMNS,
                ROWS, CELLS, BITS, PARTS, GROUP, CENTRE, SCALES, HAS_SHIFTS, IS_FLOAT8,
                IS_BFLOAT16, ASM,
            )  # fmt: skip
    else:
        for step in tl.range(NUM_PICKS * STEPS):
            sums = _add_share(
                sums, vectors, words, high, scales, shifts, factors, experts, shares,
                step // STEPS, step % STEPS * CELLS, safe_features, num_features, NUM_COLUMNS,
                ROWS, CELLS, BITS, PARTS, GROUP, CENTRE, SCALES, HAS_SHIFTS, IS_FLOAT8,
                IS_BFLOAT16, ASM,
            )  # fmt: skip
    total = tl.sum(sums, 1)
    if HAS_SHARED:
        gate = tl.load(shared_logits).to(tl.float32)
        values = tl.load(shared + features, mask=in_matrix, other=0.0).to(tl.float32)
        total += values / (1.0 + tl.exp(-gate))
    dtype = hidden.dtype.element_ty
    # Rounded before it is added, as two operations would.
    total = total.to(dtype).to(tl.float32) * residual_scale
    total += tl.load(hidden + features, mask=in_matrix, other=0.0).to(tl.float32)
    tl.store(hidden + features, total.to(dtype), mask=in_matrix)


@triton.jit
def _add_share(
    sums, vectors, words, high, scales, shifts, factors, experts, shares, pick, first, features,
    num_features,
    NUM_COLUMNS: tl.constexpr, ROWS: tl.constexpr, CELLS: tl.constexpr, BITS: tl.constexpr,
    PARTS: tl.constexpr, GROUP: tl.constexpr, CENTRE: tl.constexpr, SCALES: tl.constexpr,
    HAS_SHIFTS: tl.constexpr, IS_FLOAT8: tl.constexpr, IS_BFLOAT16: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Adds some cells of one expert, weighted by its share."""
    IS_EVEN: tl.constexpr = NUM_COLUMNS // (PARTS * 8) % CELLS == 0
    rows = tl.load(experts + pick) * num_features + features
    share = tl.load(shares + pick)
    products = add_cells(
        tl.zeros([ROWS, CELLS], tl.float32), vectors + pick * (NUM_COLUMNS // 2), words, high,
        scales, shifts, factors, rows, first, NUM_COLUMNS, CELLS, IS_EVEN, BITS, PARTS,
        32 * PARTS, GROUP, CENTRE, SCALES, HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, False,
    )  # fmt: skip
    return sums + share * products


def picked_gemv_shape(weights: TiledWeights, *, gated: bool) -> TiledGemvShape:
    """A warp takes few rows: experts are small, and many programs hide how long reading takes."""
    row_cells = weights.in_features // (weights.form.parts * CELL_HALVES)
    cells = 64 if weights.form.parts == 2 else 32
    if row_cells % cells:
        cells = 32
    return TiledGemvShape(4 if gated else 2, cells)


def multiply_picked_tiled(
    vector: torch.Tensor,
    gate_ups: TiledWeights,
    picks: Picks,
    num_experts: int,
    *,
    activation: str = "silu",
    shape: TiledGemvShape | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """activation(gate) * up of one token in each of its experts.

    Args:
        vector: [1, in_features], bfloat16 or float16, contiguous.
        gate_ups: [num_experts * 2 * intermediate_size, in_features]: of each expert the gates,
            then the ups.
        picks: of the token.
        num_experts: of the layer.
        activation: as `layers.mlp.apply_gate` has them.
        shape: None: the usual one.
        overlap: whether the launch may overlap with the kernel before it.

    Returns:
        [num_picks, intermediate_size].
    """
    assert vector.dtype in (torch.bfloat16, torch.float16)
    assert gate_ups.words.numel() < 2**31
    form, num_columns = gate_ups.form, gate_ups.in_features
    num_features = gate_ups.out_features // (2 * num_experts)
    num_picks = picks.experts.shape[1]
    output = vector.new_empty(num_picks, num_features)
    if shape is None:
        shape = picked_gemv_shape(gate_ups, gated=True)
    row_cells = num_columns // (form.parts * CELL_HALVES)
    _multiply_picked[(triton.cdiv(num_features, shape.rows // 2), num_picks)](
        vector.view(torch.int32),
        gate_ups.words,
        gate_ups.words if gate_ups.high is None else gate_ups.high.view(torch.int32),
        gate_ups.scales,
        gate_ups.scales if gate_ups.shifts is None else gate_ups.shifts,
        gate_ups.scales if gate_ups.factors is None else gate_ups.factors,
        picks.experts,
        output,
        num_features,
        NUM_COLUMNS=num_columns,
        ROWS=shape.rows,
        CELLS=shape.cells,
        UNROLLED=row_cells <= _MAX_UNROLLED * shape.cells,
        BITS=form.bits,
        PARTS=form.parts,
        GROUP=form.group_size,
        CENTRE=form.centre,
        SCALES=form.scales,
        HAS_SHIFTS=form.has_shifts,
        IS_FLOAT8=form.is_float8,
        ACTIVATION=activation,
        IS_BFLOAT16=vector.dtype is torch.bfloat16,
        ASM=vector.is_cuda,
        OVERLAP=overlap,
        num_warps=max(1, shape.cells // 32),
        **launch_options(overlap),
    )
    return output


def add_picked_tiled(
    vectors: torch.Tensor,
    downs: TiledWeights,
    picks: Picks,
    hidden: torch.Tensor,
    *,
    residual_scale: float = 1.0,
    shared: torch.Tensor | None = None,
    shared_logits: torch.Tensor | None = None,
    shape: TiledGemvShape | None = None,
    overlap: bool = False,
) -> None:
    """Adds to one token's hidden state what its experts put out, by their shares.

    Args:
        vectors: [num_picks, intermediate_size], type of hidden, contiguous.
        downs: [num_experts * hidden_size, intermediate_size].
        picks: of the token.
        hidden: [1, hidden_size], bfloat16 or float16, is added to.
        residual_scale: factor on what is added.
        shared: [1, hidden_size]: the shared expert's output; None: there is none.
        shared_logits: [1, 1]: its share, before the sigmoid.
        shape: None: the usual one.
        overlap: whether the launch may overlap with the kernel before it.
    """
    assert downs.words.numel() < 2**31
    form, num_columns = downs.form, downs.in_features
    num_features, num_picks = hidden.shape[1], picks.experts.shape[1]
    if shape is None:
        shape = picked_gemv_shape(downs, gated=False)
    row_cells = num_columns // (form.parts * CELL_HALVES)
    _add_picked[(triton.cdiv(num_features, shape.rows),)](
        vectors.view(torch.int32),
        downs.words,
        downs.words if downs.high is None else downs.high.view(torch.int32),
        downs.scales,
        downs.scales if downs.shifts is None else downs.shifts,
        downs.scales if downs.factors is None else downs.factors,
        picks.experts,
        picks.shares,
        vectors if shared is None else shared,
        vectors if shared_logits is None else shared_logits,
        hidden,
        num_features,
        residual_scale,
        NUM_PICKS=num_picks,
        NUM_COLUMNS=num_columns,
        ROWS=shape.rows,
        CELLS=shape.cells,
        UNROLLED=triton.cdiv(row_cells, shape.cells) * num_picks <= _MAX_UNROLLED,
        BITS=form.bits,
        PARTS=form.parts,
        GROUP=form.group_size,
        CENTRE=form.centre,
        SCALES=form.scales,
        HAS_SHIFTS=form.has_shifts,
        IS_FLOAT8=form.is_float8,
        HAS_SHARED=shared is not None,
        IS_BFLOAT16=vectors.dtype is torch.bfloat16,
        ASM=vectors.is_cuda,
        OVERLAP=overlap,
        num_warps=max(1, shape.cells // 32),
        **launch_options(overlap),
    )

"""One token, or few, through the packed experts that were picked for them, reading no others.

As `expert_gemv`, for matrices in tiles, those of all experts above each other. Plain-torch twins
are `TiledWeights.unpack` and `layers.moe.MoE`.
"""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.gated_activation import apply_gate
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.moe_routing import Picks
from octavo.engine.kernels.triton.tiled_gemm import scales_are_many
from octavo.engine.kernels.triton.tiled_gemv import CELL_HALVES, TiledGemvShape, add_cells
from octavo.engine.kernels.triton.tiles import Q6_K_SCALES, TiledWeights, TileForm

_MAX_UNROLLED = 16
"""Steps along a row that are compiled one after the other, so that later ones load ahead."""


@triton.jit
def _multiply_picked(
    vectors,
    words,
    high,
    scales,
    shifts,
    factors,
    experts,
    output,
    num_features,
    PICKS_PER_VECTOR: tl.constexpr,
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
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
    ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """If `GATED`, gates and ups take turns among the program's rows."""
    TILE: tl.constexpr = 32 * PARTS
    ROW_CELLS: tl.constexpr = NUM_COLUMNS // (PARTS * 8)
    IS_EVEN: tl.constexpr = ROW_CELLS % CELLS == 0
    MATRICES: tl.constexpr = 2 if GATED else 1
    pick = tl.program_id(1)
    turns = tl.arange(0, ROWS)
    features = tl.program_id(0) * (ROWS // MATRICES) + turns // MATRICES
    features = tl.minimum(features, num_features - 1)
    follow(OVERLAP)
    expert = tl.load(experts + pick)
    rows = ((expert * MATRICES + turns % MATRICES) * num_features + features)[:, None]
    vector = vectors + pick // PICKS_PER_VECTOR * (NUM_COLUMNS // 2)
    lanes = tl.arange(0, CELLS)[None, :]
    sums = tl.zeros([ROWS, CELLS], tl.float32)
    if UNROLLED:
        for first in tl.static_range(0, ROW_CELLS, CELLS):
            sums = add_cells(
                sums, vector, words, high, scales, shifts, factors, rows, first + lanes,
                NUM_COLUMNS, IS_EVEN, BITS, PARTS, TILE, GROUP, CENTRE, SCALES,
                HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, False,
            )  # fmt: skip
    else:
        for first in tl.range(0, ROW_CELLS, CELLS):
            sums = add_cells(
                sums, vector, words, high, scales, shifts, factors, rows, first + lanes,
                NUM_COLUMNS, IS_EVEN, BITS, PARTS, TILE, GROUP, CENTRE, SCALES,
                HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, False,
            )  # fmt: skip
    result = tl.sum(sums, 1)
    dtype = output.dtype.element_ty
    if GATED:
        gate, up = tl.split(tl.reshape(result, [ROWS // 2, 2]))
        result = apply_gate(gate, up, ACTIVATION, dtype)
    own_features = tl.program_id(0) * (ROWS // MATRICES) + tl.arange(0, ROWS // MATRICES)
    place = output + pick * num_features + own_features
    tl.store(place, result.to(dtype), mask=own_features < num_features)


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
    """The rows of all picks count as one: each may be too short to keep the threads busy."""
    ALL_CELLS: tl.constexpr = NUM_PICKS * (NUM_COLUMNS // (PARTS * 8))
    features = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_matrix = features < num_features
    safe_features = tl.minimum(features, num_features - 1)[:, None]
    follow(OVERLAP)
    sums = tl.zeros([ROWS, CELLS], tl.float32)
    if UNROLLED:
        for first in tl.static_range(0, ALL_CELLS, CELLS):
            sums = _add_shares(
                sums, vectors, words, high, scales, shifts, factors, experts, shares, first,
                safe_features, num_features, ALL_CELLS, NUM_COLUMNS, ROWS, CELLS, BITS, PARTS,
                GROUP, CENTRE, SCALES, HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM,
            )  # fmt: skip
    else:
        for first in tl.range(0, ALL_CELLS, CELLS):
            sums = _add_shares(
                sums, vectors, words, high, scales, shifts, factors, experts, shares, first,
                safe_features, num_features, ALL_CELLS, NUM_COLUMNS, ROWS, CELLS, BITS, PARTS,
                GROUP, CENTRE, SCALES, HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM,
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
def _add_shares(
    sums, vectors, words, high, scales, shifts, factors, experts, shares, first, features,
    num_features,
    ALL_CELLS: tl.constexpr, NUM_COLUMNS: tl.constexpr, ROWS: tl.constexpr, CELLS: tl.constexpr,
    BITS: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr, CENTRE: tl.constexpr,
    SCALES: tl.constexpr, HAS_SHIFTS: tl.constexpr, IS_FLOAT8: tl.constexpr,
    IS_BFLOAT16: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Adds some cells, each weighted by the share of its expert."""
    ROW_CELLS: tl.constexpr = NUM_COLUMNS // (PARTS * 8)
    index = first + tl.arange(0, CELLS)[None, :]
    safe_index = tl.minimum(index, ALL_CELLS - 1)
    pick = safe_index // ROW_CELLS
    rows = tl.load(experts + pick) * num_features + features
    share = tl.load(shares + pick)
    if ALL_CELLS % CELLS:
        share = tl.where(index < ALL_CELLS, share, 0.0)
    products = add_cells(
        tl.zeros([ROWS, CELLS], tl.float32), vectors + pick * (NUM_COLUMNS // 2), words, high,
        scales, shifts, factors, rows, safe_index % ROW_CELLS, NUM_COLUMNS, True, BITS, PARTS,
        32 * PARTS, GROUP, CENTRE, SCALES, HAS_SHIFTS, IS_FLOAT8, IS_BFLOAT16, ASM, False,
    )  # fmt: skip
    return sums + share * products


def picked_gemv_shape(form: TileForm, *, takes_all_picks: bool = False) -> TiledGemvShape:
    """The measured best on Hopper for experts of 768 features.

    Args:
        form: of the matrices.
        takes_all_picks: whether a program adds up what all picks of a token come to.
    """
    if takes_all_picks:
        if form.parts == 2:
            return TiledGemvShape(2, 128)
        return TiledGemvShape(4, 64) if scales_are_many(form) else TiledGemvShape(8, 256)
    return TiledGemvShape(4 if form.scales == Q6_K_SCALES else 8, 32)


def multiply_picked_tiled(
    vectors: torch.Tensor,
    weights: TiledWeights,
    picks: Picks,
    num_experts: int,
    *,
    gated: bool,
    activation: str = "silu",
    shape: TiledGemvShape | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Multiplies the vector of each pick by the matrix of its expert.

    Args:
        vectors: [num_tokens, in_features], or one for each pick; bfloat16 or float16, contiguous.
        weights: [num_experts * out_features, in_features]; if gated, of each expert the gates, then
            the ups.
        picks: of the tokens.
        num_experts: of the layer.
        gated: whether the results are activation(gate) * up.
        activation: as `layers.mlp.apply_gate` has them.
        shape: None: the usual one.
        overlap: whether the launch may overlap with the kernel before it.

    Returns:
        [num_tokens * num_picks, out_features], or half of these if gated.
    """
    assert vectors.dtype in (torch.bfloat16, torch.float16)
    assert weights.words.numel() < 2**31
    form, num_columns = weights.form, weights.in_features
    num_matrices = 2 if gated else 1
    num_features = weights.out_features // (num_matrices * num_experts)
    num_picks = picks.experts.numel()
    output = vectors.new_empty(num_picks, num_features)
    if shape is None:
        shape = picked_gemv_shape(form)
    row_cells = num_columns // (form.parts * CELL_HALVES)
    _multiply_picked[(triton.cdiv(num_features, shape.rows // num_matrices), num_picks)](
        vectors.view(torch.int32),
        weights.words,
        weights.words if weights.high is None else weights.high.view(torch.int32),
        weights.scales,
        weights.scales if weights.shifts is None else weights.shifts,
        weights.scales if weights.factors is None else weights.factors,
        picks.experts,
        output,
        num_features,
        PICKS_PER_VECTOR=num_picks // len(vectors),
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
        GATED=gated,
        ACTIVATION=activation,
        IS_BFLOAT16=vectors.dtype is torch.bfloat16,
        ASM=vectors.is_cuda,
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
        shape = picked_gemv_shape(form, takes_all_picks=True)
    all_cells = num_picks * num_columns // (form.parts * CELL_HALVES)
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
        UNROLLED=all_cells <= _MAX_UNROLLED * shape.cells,
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

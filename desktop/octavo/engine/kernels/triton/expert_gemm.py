"""Rows times the matrices of the experts that were picked for them, all experts in one launch.

The plain-torch twin is `layers.moe.MoE`. Source of the blocks by expert: Kwon et al. 2023, vLLM's
fused MoE; Gale et al. 2022, arXiv:2211.15841 (MegaBlocks).
"""

import dataclasses
import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.gated_activation import apply_gate
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.moe_routing import PickGroups, Picks

_COMBINED_CHANNELS = 1024


@dataclass(frozen=True, slots=True)
class ExpertMatrices:
    """One matrix of every expert, one above the other."""

    weight: torch.Tensor
    """[num_experts, out_features, in_features]; each expert's is contiguous."""
    bias: torch.Tensor | None
    """[num_experts, out_features]."""


@dataclass(frozen=True, slots=True)
class GroupedShape:
    """How much a program takes."""

    picks: int
    features: int
    columns: int
    warps: int
    stages: int


def grouped_shape(
    num_picks: int, num_experts: int, *, gated: bool, dtype: torch.dtype, device: torch.device
) -> GroupedShape:
    """The measured best on Hopper, by how many picks an expert has on average.

    A program's picks are the same whether the product is gated or not.
    """
    picks_each = num_picks / min(num_picks, num_experts)
    if picks_each < 6:
        shape = GroupedShape(16, 64 if gated else 128, 128, 4, 4 if gated else 3)
    elif picks_each <= 24:
        shape = GroupedShape(32, 64, 128, 4, 3) if gated else GroupedShape(32, 128, 64, 4, 4)
    elif picks_each <= 64:
        shape = GroupedShape(64, 64, 64, 4, 4) if gated else GroupedShape(64, 128, 64, 8, 3)
    else:
        stages = 4 if picks_each <= 256 else 3
        shape = GroupedShape(128, 128 if gated else 256, 64, 8, stages)
    rows = shape.picks + shape.features * (2 if gated else 1)
    stage_bytes = rows * shape.columns * dtype.itemsize
    stages = min(shape.stages, max(1, _shared_bytes(device) // stage_bytes))
    return dataclasses.replace(shape, stages=stages)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """What a program may have of a multiprocessor's shared memory."""
    if device.type != "cuda":
        return 2**18
    properties = torch.cuda.get_device_properties(device)
    num_bytes: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return num_bytes


@triton.jit(do_not_specialize=["num_picks", "first_expert", "num_experts"])
def _multiply_grouped(
    rows,
    matrices,
    up_matrices,
    biases,
    up_biases,
    numbers,
    block_experts,
    output,
    num_picks,
    num_features,
    expert_stride,
    first_expert,
    num_experts,
    PICKS_PER_ROW: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    PICKS: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    block = tl.program_id(1)
    follow(OVERLAP)
    expert = tl.load(block_experts + block).to(tl.int64) - first_expert
    if (expert < 0) | (expert >= num_experts):
        return
    picked = tl.load(numbers + block * PICKS + tl.arange(0, PICKS))
    exists = picked < num_picks
    features = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    in_matrix = features < num_features
    columns = tl.arange(0, COLUMNS)
    dtype = output.dtype.element_ty
    row_ids = (picked // PICKS_PER_ROW).to(tl.int64)
    row_place = rows + row_ids[:, None] * NUM_COLUMNS + columns[None, :]
    first_feature = expert * num_features
    offsets = expert * expert_stride + features[None, :] * NUM_COLUMNS + columns[:, None]
    products = tl.zeros([PICKS, FEATURES], tl.float32)
    if GATED:
        up_products = tl.zeros([PICKS, FEATURES], tl.float32)
    for start in range(0, NUM_COLUMNS, COLUMNS):
        if NUM_COLUMNS % COLUMNS == 0:
            row_mask = exists[:, None]
            mask = in_matrix[None, :]
        else:
            row_mask = exists[:, None] & (start + columns < NUM_COLUMNS)[None, :]
            mask = in_matrix[None, :] & (start + columns < NUM_COLUMNS)[:, None]
        values = tl.load(row_place + start, mask=row_mask, other=0.0)
        tile = tl.load(matrices + offsets + start, mask=mask, other=0.0)
        products = tl.dot(values, tile, products, input_precision="ieee")
        if GATED:
            up_tile = tl.load(up_matrices + offsets + start, mask=mask, other=0.0)
            up_products = tl.dot(values, up_tile, up_products, input_precision="ieee")
    if HAS_BIAS:
        bias = tl.load(biases + first_feature + features, mask=in_matrix, other=0.0)
        products += bias.to(tl.float32)[None, :]
    if GATED:
        if HAS_BIAS:
            bias = tl.load(up_biases + first_feature + features, mask=in_matrix, other=0.0)
            up_products += bias.to(tl.float32)[None, :]
        products = apply_gate(products, up_products, ACTIVATION, dtype)
    place = output + picked.to(tl.int64)[:, None] * num_features + features[None, :]
    tl.store(place, products.to(dtype), mask=exists[:, None] & in_matrix[None, :])


@triton.jit
def _combine_picks(
    products,
    shares,
    shared,
    shared_logits,
    output,
    num_channels,
    NUM_PICKS: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = channels < num_channels
    follow(OVERLAP)
    total = tl.zeros([BLOCK], tl.float32)
    for pick in tl.static_range(NUM_PICKS):
        number = token * NUM_PICKS + pick
        share = tl.load(shares + number)
        values = tl.load(products + number * num_channels + channels, mask=exists, other=0.0)
        total += share * values.to(tl.float32)
    if HAS_SHARED:
        gate = tl.load(shared_logits + token).to(tl.float32)
        values = tl.load(shared + token * num_channels + channels, mask=exists, other=0.0)
        total += values.to(tl.float32) / (1.0 + tl.exp(-gate))
    place = output + token * num_channels + channels
    tl.store(place, total.to(output.dtype.element_ty), mask=exists)


def multiply_grouped(
    rows: torch.Tensor,
    matrices: ExpertMatrices,
    groups: PickGroups,
    num_picks: int,
    *,
    up_matrices: ExpertMatrices | None = None,
    activation: str = "silu",
    shape: GroupedShape,
    first_expert: int = 0,
    output: torch.Tensor | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Multiplies each picked row by its expert's matrix.

    Args:
        rows: [num_rows, in_features], contiguous: a row for each token, or one for each pick.
        matrices: of each expert, or of some neighbours; with `up_matrices`, the gates.
        groups: of the step's picks; its blocks are the shape's.
        num_picks: all that were picked in the step.
        up_matrices: the result is activation(gate) * up; None: the plain product.
        activation: as `layers.mlp.apply_gate` has them.
        shape: how much a program takes.
        first_expert: whose matrix is the first.
        output: what is filled in, but for the picks of experts without a matrix; None: a new one.
        overlap: whether the launch may overlap with the kernel before it.

    Returns:
        [num_picks, out_features], by the numbers of the picks.
    """
    num_experts, num_features, num_columns = matrices.weight.shape
    assert groups.block_size == shape.picks
    assert num_picks % len(rows) == 0
    if output is None:
        output = rows.new_empty(num_picks, num_features)
    ups = matrices if up_matrices is None else up_matrices
    assert ups.weight.stride() == matrices.weight.stride()
    grid = (triton.cdiv(num_features, shape.features), len(groups.block_experts))
    _multiply_grouped[grid](
        rows,
        matrices.weight,
        ups.weight,
        rows if matrices.bias is None else matrices.bias,
        rows if ups.bias is None else ups.bias,
        groups.numbers,
        groups.block_experts,
        output,
        num_picks,
        num_features,
        matrices.weight.stride(0),
        first_expert,
        num_experts,
        PICKS_PER_ROW=num_picks // len(rows),
        NUM_COLUMNS=num_columns,
        PICKS=shape.picks,
        FEATURES=shape.features,
        COLUMNS=shape.columns,
        GATED=up_matrices is not None,
        HAS_BIAS=matrices.bias is not None,
        ACTIVATION=activation,
        OVERLAP=overlap,
        num_warps=shape.warps,
        num_stages=shape.stages,
        **launch_options(overlap),
    )
    return output


def combine_picks(
    products: torch.Tensor,
    picks: Picks,
    *,
    shared: torch.Tensor | None = None,
    shared_logits: torch.Tensor | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Adds up the outputs of each token's experts by their shares.

    Args:
        products: [num_tokens * num_picks, hidden_size].
        picks: of the tokens.
        shared: [num_tokens, hidden_size]: the shared expert's output; None: there is none.
        shared_logits: [num_tokens, 1]: its share, before the sigmoid.
        overlap: whether the launch may overlap with the kernel before it.

    Returns:
        [num_tokens, hidden_size].
    """
    num_tokens, num_picks = picks.experts.shape
    num_channels = products.shape[1]
    output = products.new_empty(num_tokens, num_channels)
    block = min(_COMBINED_CHANNELS, triton.next_power_of_2(num_channels))
    _combine_picks[(num_tokens, triton.cdiv(num_channels, block))](
        products,
        picks.shares,
        products if shared is None else shared,
        products if shared_logits is None else shared_logits,
        output,
        num_channels,
        NUM_PICKS=num_picks,
        HAS_SHARED=shared is not None,
        BLOCK=block,
        OVERLAP=overlap,
        num_warps=4,
        **launch_options(overlap),
    )
    return output

"""One token through the experts that were picked for it, reading no others.

As in `gemv`, nothing but the speed of reading the matrices counts. The plain-torch twin is
`layers.moe.MoE`.
"""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.expert_gemm import ExpertMatrices
from octavo.engine.kernels.triton.gated_activation import apply_gate
from octavo.engine.kernels.triton.gemv import GemvShape, InputNorm, gemv_shape
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.moe_routing import Picks

_MAX_DOWN_COLUMNS = 512


@triton.jit
def _multiply_picked(
    vector,
    gates,
    ups,
    gate_biases,
    up_biases,
    norm_weight,
    experts,
    output,
    num_features,
    eps,
    offset,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    pick = tl.program_id(1)
    features = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_matrix = features < num_features
    follow(OVERLAP)
    expert = tl.load(experts + pick).to(tl.int64)
    first_feature = expert * num_features
    offsets = (first_feature + features)[:, None] * NUM_COLUMNS
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    up_products = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([COLUMNS], tl.float32)
    for start in tl.static_range(0, NUM_COLUMNS, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        if NUM_COLUMNS % COLUMNS == 0:
            mask = in_matrix[:, None]
            in_row = columns >= 0
        else:
            in_row = columns < NUM_COLUMNS
            mask = in_matrix[:, None] & in_row[None, :]
        place = offsets + columns[None, :]
        tile = tl.load(gates + place, mask=mask, other=0.0, eviction_policy="evict_first")
        up_tile = tl.load(ups + place, mask=mask, other=0.0, eviction_policy="evict_first")
        values = tl.load(vector + columns, mask=in_row, other=0.0).to(tl.float32)
        if NORM:
            squares += values * values
            gain = tl.load(norm_weight + columns, mask=in_row, other=0.0).to(tl.float32)
            if IN_FLOAT32:
                gain += offset
            values *= gain
        products += tile.to(tl.float32) * values[None, :]
        up_products += up_tile.to(tl.float32) * values[None, :]
    gate = tl.sum(products, 1)
    up = tl.sum(up_products, 1)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / NUM_COLUMNS + eps)
        gate *= factor
        up *= factor
    if HAS_BIAS:
        place = first_feature + features
        gate += tl.load(gate_biases + place, mask=in_matrix, other=0.0).to(tl.float32)
        up += tl.load(up_biases + place, mask=in_matrix, other=0.0).to(tl.float32)
    dtype = output.dtype.element_ty
    activated = apply_gate(gate, up, ACTIVATION, dtype)
    tl.store(output + pick * num_features + features, activated.to(dtype), mask=in_matrix)


@triton.jit
def _add_picked(
    vectors,
    matrices,
    biases,
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
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    features = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_matrix = features < num_features
    follow(OVERLAP)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for pick in tl.static_range(NUM_PICKS):
        first_feature = tl.load(experts + pick).to(tl.int64) * num_features
        share = tl.load(shares + pick)
        offsets = (first_feature + features)[:, None] * NUM_COLUMNS
        for start in tl.static_range(0, NUM_COLUMNS, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            if NUM_COLUMNS % COLUMNS == 0:
                mask = in_matrix[:, None]
                in_row = columns >= 0
            else:
                in_row = columns < NUM_COLUMNS
                mask = in_matrix[:, None] & in_row[None, :]
            place = matrices + offsets + columns[None, :]
            tile = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first")
            place = vectors + pick * NUM_COLUMNS + columns
            values = tl.load(place, mask=in_row, other=0.0).to(tl.float32) * share
            products += tile.to(tl.float32) * values[None, :]
        if HAS_BIAS:
            bias = tl.load(biases + first_feature + features, mask=in_matrix, other=0.0)
            total += share * bias.to(tl.float32)
    total += tl.sum(products, 1)
    if HAS_SHARED:
        gate = tl.load(shared_logits).to(tl.float32)
        values = tl.load(shared + features, mask=in_matrix, other=0.0).to(tl.float32)
        total += values / (1.0 + tl.exp(-gate))
    dtype = hidden.dtype.element_ty
    # Rounded before it is added, as two operations would.
    total = total.to(dtype).to(tl.float32) * residual_scale
    total += tl.load(hidden + features, mask=in_matrix, other=0.0).to(tl.float32)
    tl.store(hidden + features, total.to(dtype), mask=in_matrix)


def _down_shape(num_columns: int) -> GemvShape:
    """The measured best on Hopper; a power of two of columns, of which few lie beyond."""
    columns = min(_MAX_DOWN_COLUMNS, triton.next_power_of_2(num_columns))
    while columns > 256 and -num_columns % columns > num_columns // 3:
        columns //= 2
    return GemvShape(2, columns, 2)


def multiply_picked(
    vector: torch.Tensor,
    gates: ExpertMatrices,
    ups: ExpertMatrices,
    picks: Picks,
    *,
    norm: InputNorm | None = None,
    activation: str = "silu",
    shape: GemvShape | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """activation(gate) * up of one token in each of its experts.

    Args:
        vector: [1, in_features].
        gates: of each expert.
        ups: of each expert.
        picks: of the token.
        norm: of the vector; None: none.
        activation: as `layers.mlp.apply_gate` has them.
        shape: None: what was measured best.
        overlap: whether the launch may overlap with the kernel before it.

    Returns:
        [num_picks, intermediate_size].
    """
    _, num_features, num_columns = gates.weight.shape
    num_picks = picks.experts.shape[1]
    output = vector.new_empty(num_picks, num_features)
    if shape is None:
        shape = gemv_shape(num_features, num_columns, gated=True)
    _multiply_picked[(triton.cdiv(num_features, shape.rows), num_picks)](
        vector,
        gates.weight,
        ups.weight,
        vector if gates.bias is None else gates.bias,
        vector if ups.bias is None else ups.bias,
        vector if norm is None else norm.weight,
        picks.experts,
        output,
        num_features,
        0.0 if norm is None else norm.eps,
        0.0 if norm is None else norm.offset,
        NUM_COLUMNS=num_columns,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        NORM=norm is not None,
        IN_FLOAT32=norm is not None and norm.in_float32,
        HAS_BIAS=gates.bias is not None,
        ACTIVATION=activation,
        OVERLAP=overlap,
        num_warps=shape.warps,
        **launch_options(overlap),
    )
    return output


def add_picked(
    vectors: torch.Tensor,
    downs: ExpertMatrices,
    picks: Picks,
    hidden: torch.Tensor,
    *,
    residual_scale: float = 1.0,
    shared: torch.Tensor | None = None,
    shared_logits: torch.Tensor | None = None,
    shape: GemvShape | None = None,
    overlap: bool = False,
) -> None:
    """Adds to one token's hidden state what its experts put out, by their shares.

    Args:
        vectors: [num_picks, intermediate_size].
        downs: of each expert.
        picks: of the token.
        hidden: [1, hidden_size], is added to.
        residual_scale: factor on what is added.
        shared: [1, hidden_size]: the shared expert's output; None: there is none.
        shared_logits: [1, 1]: its share, before the sigmoid.
        shape: None: what was measured best.
        overlap: whether the launch may overlap with the kernel before it.
    """
    _, num_features, num_columns = downs.weight.shape
    if shape is None:
        shape = _down_shape(num_columns)
    _add_picked[(triton.cdiv(num_features, shape.rows),)](
        vectors,
        downs.weight,
        vectors if downs.bias is None else downs.bias,
        picks.experts,
        picks.shares,
        vectors if shared is None else shared,
        vectors if shared_logits is None else shared_logits,
        hidden,
        num_features,
        residual_scale,
        NUM_PICKS=picks.experts.shape[1],
        NUM_COLUMNS=num_columns,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        HAS_BIAS=downs.bias is not None,
        HAS_SHARED=shared is not None,
        OVERLAP=overlap,
        num_warps=shape.warps,
        **launch_options(overlap),
    )

"""Matrix times one vector, with the norm before it and what follows it in the same pass.

At one row a matrix product only reads the matrix: nothing but the speed of that reading counts.
The plain-torch twins are `layers.linear.Linear`, `layers.layernorm.RMSNorm` and `layers.mlp`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.gated_activation import activate
from octavo.engine.kernels.triton.launch import follow, launch_options

PLAIN, ADD, GATED = range(3)
"""What becomes of the product: itself; added to the residual stream; activation(gate) * up."""


@dataclass(frozen=True, slots=True)
class InputNorm:
    """An RMS norm of the vector before the product."""

    weight: torch.Tensor
    """[in_features]."""
    eps: float
    offset: float = 0.0
    in_float32: bool = False


@dataclass(frozen=True, slots=True)
class GemvShape:
    """How much a program takes."""

    rows: int
    columns: int
    warps: int


def gemv_shape(out_features: int, in_features: int, *, gated: bool = False) -> GemvShape:
    """The measured best on Hopper, by size; a power of two of columns that wastes no loads."""
    columns = 1024 if in_features <= 2048 else 2048
    while in_features % columns and columns > 256:
        columns //= 2
    if gated:
        return GemvShape(2, columns, 2 if in_features <= 2048 else 4)
    if out_features >= 65536:
        return GemvShape(8 if in_features <= 2048 else 4, columns, 8)
    if in_features > 2 * out_features:  # a down projection
        return GemvShape(2, min(columns, 2048), 2 if in_features <= 8192 else 4)
    return GemvShape(4, columns, 4 if in_features <= 2048 else 8)


@triton.jit
def _load_values(place, columns, NUM_COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """Part of a vector, float32."""
    if EVEN:
        values = tl.load(place + columns)
    else:
        values = tl.load(place + columns, mask=columns < NUM_COLUMNS, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _load_tile(place, in_matrix, columns, NUM_COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """Part of a matrix, read once and not worth a place in the cache."""
    exists = in_matrix[:, None]
    if not EVEN:
        exists = exists & (columns < NUM_COLUMNS)[None, :]
    return tl.load(place, mask=exists, other=0.0, eviction_policy="evict_first")


@triton.jit
def _gemv(
    vector,
    matrix,
    bias,
    norm_weight,
    output,
    num_rows,
    eps,
    offset,
    residual_scale,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    IS_GELU: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    program = tl.program_id(0)
    rows = program * ROWS + tl.arange(0, ROWS)
    in_matrix = rows < num_rows
    columns = tl.arange(0, COLUMNS)
    dtype = vector.dtype.element_ty
    place = matrix + rows.to(tl.int64)[:, None] * NUM_COLUMNS + columns[None, :]
    EVEN: tl.constexpr = NUM_COLUMNS % COLUMNS == 0
    # The first tile is under way before the vector is there: weights depend on no kernel.
    tile = _load_tile(place, in_matrix, columns, NUM_COLUMNS, EVEN)
    up_place = place
    if EPILOGUE == 2:
        up_place = place + num_rows.to(tl.int64) * NUM_COLUMNS
        up_tile = _load_tile(up_place, in_matrix, columns, NUM_COLUMNS, EVEN)
    follow(OVERLAP)
    values = _load_values(vector, columns, NUM_COLUMNS, EVEN)
    squares = values * values
    if NORM:
        gain = _load_values(norm_weight, columns, NUM_COLUMNS, EVEN)
        if IN_FLOAT32:
            gain += offset
        values *= gain
    products = tile.to(tl.float32) * values[None, :]
    if EPILOGUE == 2:
        up_products = up_tile.to(tl.float32) * values[None, :]
    for start in tl.static_range(COLUMNS, NUM_COLUMNS, COLUMNS):
        later = start + columns
        tile = _load_tile(place + start, in_matrix, later, NUM_COLUMNS, EVEN)
        if EPILOGUE == 2:
            up_tile = _load_tile(up_place + start, in_matrix, later, NUM_COLUMNS, EVEN)
        values = _load_values(vector, later, NUM_COLUMNS, EVEN)
        if NORM:
            squares += values * values
            gain = _load_values(norm_weight, later, NUM_COLUMNS, EVEN)
            if IN_FLOAT32:
                gain += offset
            values *= gain
        products += tile.to(tl.float32) * values[None, :]
        if EPILOGUE == 2:
            up_products += up_tile.to(tl.float32) * values[None, :]
    result = tl.sum(products, 1)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / NUM_COLUMNS + eps)
        result *= factor
    if HAS_BIAS:
        result += tl.load(bias + rows, mask=in_matrix, other=0.0).to(tl.float32)
    if EPILOGUE == 1:
        # The product is rounded before it is added, as two operations would.
        result = result.to(dtype).to(tl.float32) * residual_scale
        result += tl.load(output + rows, mask=in_matrix, other=0.0).to(tl.float32)
    if EPILOGUE == 2:
        up = tl.sum(up_products, 1)
        if NORM:
            up *= factor
        if HAS_BIAS:
            up += tl.load(bias + num_rows + rows, mask=in_matrix, other=0.0).to(tl.float32)
        gate = result.to(dtype).to(tl.float32)
        result = activate(gate, IS_GELU).to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)
    tl.store(output + rows, result.to(dtype), mask=in_matrix)


def gemv(
    vector: torch.Tensor,
    matrix: torch.Tensor,
    output: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm: InputNorm | None = None,
    epilogue: int = PLAIN,
    residual_scale: float = 1.0,
    activation: str = "silu",
    shape: GemvShape | None = None,
    overlap: bool = False,
) -> None:
    """Multiplies a matrix by one vector.

    Args:
        vector: [1, in_features].
        matrix: [out_features, in_features], contiguous; if `GATED`, gates above ups.
        output: [1, out_features], or half of it if `GATED`; with `ADD` it is added to.
        bias: [out_features].
        norm: of the vector; None: none.
        epilogue: one of `PLAIN`, `ADD`, `GATED`.
        residual_scale: with `ADD`, factor on the product.
        activation: with `GATED`, `silu` or `gelu_tanh`.
        shape: None: what was measured best.
        overlap: whether the launch may overlap with the kernel before it.
    """
    num_rows, num_columns = matrix.shape
    if epilogue == GATED:
        num_rows //= 2
    if shape is None:
        shape = gemv_shape(num_rows, num_columns, gated=epilogue == GATED)
    _gemv[(triton.cdiv(num_rows, shape.rows),)](
        vector,
        matrix,
        vector if bias is None else bias,
        vector if norm is None else norm.weight,
        output,
        num_rows,
        0.0 if norm is None else norm.eps,
        0.0 if norm is None else norm.offset,
        residual_scale,
        NUM_COLUMNS=num_columns,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        NORM=norm is not None,
        IN_FLOAT32=norm is not None and norm.in_float32,
        HAS_BIAS=bias is not None,
        EPILOGUE=epilogue,
        IS_GELU=activation == "gelu_tanh",
        OVERLAP=overlap,
        num_warps=shape.warps,
        **launch_options(overlap),
    )

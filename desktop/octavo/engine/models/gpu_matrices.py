"""From a decoder's linear layers to the matrices that kernels on an NVIDIA card multiply by."""

from collections.abc import Callable, Hashable

import torch

from octavo.engine.kernels.triton.gemv import InputNorm
from octavo.engine.kernels.triton.matrices import (
    DenseMatrix,
    Matrix,
    StackedMatrix,
    TiledMatrix,
)
from octavo.engine.kernels.triton.rms_norm import add_rms_norm
from octavo.engine.kernels.triton.tiled_unpack import select_rows
from octavo.engine.kernels.triton.tiles import TiledWeights
from octavo.engine.layers.embedding import Embedding
from octavo.engine.layers.linear import FusedLinear, Linear
from octavo.engine.layers.mlp import apply_gate
from octavo.engine.models.tiling import tile_packed
from octavo.engine.quantization.packed import PLAIN_DTYPES, PackedBlocks

MakeMatrix = Callable[[Linear | FusedLinear], Matrix]
"""How a linear layer's weights are multiplied by."""

KERNEL_DTYPES = (torch.bfloat16, torch.float16)
"""Of activations, where kernels multiply by packed weights."""


class ModuleMatrix:
    """A linear layer in a format that no kernel knows: its module unpacks it at each product."""

    def __init__(self, module: Linear | FusedLinear, out_features: int, num_bytes: int) -> None:
        self._module = module
        self.out_features = out_features
        self.num_bytes = num_bytes

    @property
    def kind(self) -> Hashable:
        return id(self)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self._module(rows)
        return product

    def multiply_normed(self, row: torch.Tensor, norm: InputNorm) -> torch.Tensor:
        normed = add_rms_norm(
            row, norm.weight, eps=norm.eps, offset=norm.offset, in_float32=norm.in_float32
        )
        return self.multiply(normed)

    def multiply_add(self, row: torch.Tensor, hidden: torch.Tensor, scale: float) -> None:
        hidden.add_(self.multiply(row), alpha=scale)

    def multiply_gated(self, row: torch.Tensor, norm: InputNorm, activation: str) -> torch.Tensor:
        gate, up = self.multiply_normed(row, norm).chunk(2, dim=-1)
        return apply_gate(gate, up, activation)


class ModuleEmbedding:
    """An embedding in plain numbers, or in a format that its module looks up."""

    def __init__(self, module: Embedding) -> None:
        self._module = module

    @property
    def dense(self) -> torch.Tensor | None:
        """[vocab_size, hidden_size]; None: rows have to be unpacked."""
        return self._module.weight if self._module.packed is None else None

    @property
    def scale(self) -> float | None:
        """Factor on the rows; None: none."""
        return self._module.scale

    @property
    def can_be_captured(self) -> bool:
        """Whether no lookup waits for the device: formats are unpacked with the host's help."""
        packed = self._module.packed
        if packed is None:
            return True
        return isinstance(packed, PackedBlocks) and packed.ggml_type in PLAIN_DTYPES

    def look_up(self, token_ids: torch.Tensor, output: torch.Tensor) -> None:
        output.copy_(self._module(token_ids))


class TiledEmbedding:
    """An embedding that stays packed, in the kernels' layout."""

    dense = None
    can_be_captured = True

    def __init__(self, weights: TiledWeights, scale: float | None, *, overlap: bool) -> None:
        """Args:
        weights: a row per token id.
        scale: factor on the rows; None: none.
        overlap: whether kernels may overlap with those before them.
        """
        self.scale = scale
        self._weights = weights
        self._overlap = overlap

    def look_up(self, token_ids: torch.Tensor, output: torch.Tensor) -> None:
        """Fills in [num_tokens, hidden_size]."""
        select_rows(self._weights, token_ids, output, multiplier=self.scale, overlap=self._overlap)


GPUEmbedding = ModuleEmbedding | TiledEmbedding


def make_gpu_matrix(
    module: Linear | FusedLinear, dtype: torch.dtype, *, overlap: bool = False
) -> Matrix:
    """Takes over a linear layer's weights: dense ones as they are, packed ones rearranged.

    The module gives its packed weights up; it cannot be called afterwards.
    """
    if isinstance(module, Linear) and module.packed is None:
        return DenseMatrix(module.weight, module.bias, overlap=overlap)
    if isinstance(module, FusedLinear) and module.weight is not None:
        return DenseMatrix(module.weight, module.bias, overlap=overlap)
    parts = module.parts if isinstance(module, FusedLinear) else [module]
    matrix: Matrix | None = None
    if all(part.packed is not None for part in parts):
        matrix = _take_packed(parts, module.bias, dtype, overlap=overlap)
    if matrix is not None:
        for part in parts:
            part.packed = None
        return matrix
    num_bytes = sum(
        part.weight.nbytes if part.packed is None else part.packed.num_bytes for part in parts
    )
    return ModuleMatrix(module, sum(part.weight.shape[0] for part in parts), num_bytes)


def make_gpu_embedding(
    module: Embedding, dtype: torch.dtype, *, overlap: bool = False
) -> tuple[GPUEmbedding, Matrix | None]:
    """Takes over an embedding, which is also what it projects with where a model ties the two.

    Returns:
        What looks tokens up, and the same matrix as a projection; None: only the module projects.
    """
    if module.packed is None:
        return ModuleEmbedding(module), DenseMatrix(module.weight, overlap=overlap)
    if dtype in KERNEL_DTYPES:
        tiled = tile_packed(module.packed)
        if len(tiled) == 1:
            module.packed = None
            embedding = TiledEmbedding(tiled[0], module.scale, overlap=overlap)
            return embedding, TiledMatrix(tiled[0], overlap=overlap)
    return ModuleEmbedding(module), None


def _take_packed(
    parts: list[Linear], bias: torch.Tensor | None, dtype: torch.dtype, *, overlap: bool
) -> Matrix | None:
    """All parts above each other; None: a format does not fit the kernels' layout."""
    packed = [part.packed for part in parts if part.packed is not None]
    if all(isinstance(one, PackedBlocks) and one.ggml_type in PLAIN_DTYPES for one in packed):
        # Plain numbers take no more room in the type of the activations than as they are stored.
        dense = [one.unpack(dtype) for one in packed]
        return DenseMatrix(torch.cat(dense) if len(dense) > 1 else dense[0], bias, overlap=overlap)
    if dtype not in KERNEL_DTYPES:
        return None
    matrices, first = [], 0
    for weights in tile_packed(*packed):
        last = first + weights.out_features
        part_bias = None if bias is None else bias[first:last]
        matrices.append(TiledMatrix(weights, part_bias, overlap=overlap))
        first = last
    if not matrices:
        return None
    return matrices[0] if len(matrices) == 1 else StackedMatrix(matrices, overlap=overlap)

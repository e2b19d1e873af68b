"""From a decoder's linear layers to the matrices that kernels on an NVIDIA card multiply by."""

from collections.abc import Callable

import torch

from octavo.engine.kernels.triton.gemv import InputNorm
from octavo.engine.kernels.triton.int4 import GROUP_SIZES, TILE, Int4Weights, pack_int4
from octavo.engine.kernels.triton.matrices import DenseMatrix, Int4Matrix, Matrix
from octavo.engine.kernels.triton.rms_norm import add_rms_norm
from octavo.engine.layers.linear import FusedLinear, Linear
from octavo.engine.layers.mlp import apply_gate
from octavo.engine.quantization.affine import affine_groups
from octavo.engine.quantization.packed import PackedWeight

MakeMatrix = Callable[[Linear | FusedLinear], Matrix]
"""How a linear layer's weights are multiplied by."""

_SLAB_ELEMENTS = 2**25
"""Weights that are taken apart at a time."""


class ModuleMatrix:
    """A linear layer in a format that no kernel knows: its module unpacks it at each product."""

    def __init__(self, module: Linear | FusedLinear, out_features: int, num_bytes: int) -> None:
        self._module = module
        self.out_features = out_features
        self.num_bytes = num_bytes

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


def make_gpu_matrix(
    module: Linear | FusedLinear, dtype: torch.dtype, *, overlap: bool = False
) -> Matrix:
    """Takes over a linear layer's weights: dense ones as they are, packed ones repacked.

    The module gives its packed weights up; it cannot be called afterwards.
    """
    if isinstance(module, Linear) and module.packed is None:
        return DenseMatrix(module.weight, module.bias, overlap=overlap)
    if isinstance(module, FusedLinear) and module.weight is not None:
        return DenseMatrix(module.weight, module.bias, overlap=overlap)
    parts = module.parts if isinstance(module, FusedLinear) else [module]
    packed = [part.packed for part in parts if part.packed is not None]
    if len(packed) == len(parts) and dtype is torch.bfloat16:
        weights = _repack(packed)
        if weights is not None:
            for part in parts:
                part.packed = None
            return Int4Matrix(weights, module.bias, overlap=overlap)
    num_bytes = sum(
        part.weight.nbytes if part.packed is None else part.packed.num_bytes for part in parts
    )
    return ModuleMatrix(module, sum(part.weight.shape[0] for part in parts), num_bytes)


def _repack(parts: list[PackedWeight]) -> Int4Weights | None:
    """All parts above each other in the kernels' layout; None: their formats do not fit it."""
    num_columns = parts[0].shape[1]
    if num_columns % TILE:
        return None
    packed: list[Int4Weights] = []
    for part in parts:
        for start, stop in part.slabs(_SLAB_ELEMENTS):
            groups = affine_groups(part, start, stop)
            if groups is None or groups.bits > 4 or groups.input_order is not None:
                return None
            scales, offsets, size = groups.scales, groups.offsets, groups.group_size
            if size == 16 or num_columns % size:
                return None
            if size > TILE:
                if size % TILE:
                    return None
                scales, offsets = (
                    values.repeat_interleave(size // TILE, 1) for values in (scales, offsets)
                )
                size = TILE
            if size not in GROUP_SIZES:
                return None
            packed.append(pack_int4(groups.codes, scales, offsets))
    if len({one.groups_per_tile for one in packed}) > 1:
        return None
    scale_dtype = (
        torch.float32 if any(one.scales.dtype is torch.float32 for one in packed) else None
    )
    has_shifts = any(one.shifts is not None for one in packed)
    shifts = None
    if has_shifts:
        shifts = torch.cat(
            [torch.zeros_like(one.scales) if one.shifts is None else one.shifts for one in packed]
        )
    scales = torch.cat([one.scales.to(scale_dtype or one.scales.dtype) for one in packed])
    return Int4Weights(torch.cat([one.words for one in packed]), scales, shifts)

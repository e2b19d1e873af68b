"""Matrices of a decoder as the CPU's kernels multiply by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from octavo.engine.kernels.cpu.tiles import PackedMatrix
from octavo.engine.kernels.cpu.tiles_forms import TILE_ROWS
from octavo.engine.kernels.cpu.tiles_pack import (
    PACKABLE_GGUF_TYPES,
    pack_affine,
    pack_floats,
    pack_gguf,
)
from octavo.engine.layers.moe import Experts
from octavo.engine.quantization.affine import affine_groups, is_affine
from octavo.engine.quantization.packed import PackedBlocks, PackedWeight


class HasMatrix(Protocol):
    """A linear layer or an embedding."""

    weight: torch.nn.Parameter
    packed: PackedWeight | None


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix in tiles; the outputs of several layers may lie side by side in it."""

    packed: PackedMatrix

    @classmethod
    def of_layers(cls, layers: Sequence[HasMatrix]) -> "list[Matrix]":
        """Packs the matrices of layers with the same inputs; neighbours of a kind become one."""
        matrices: list[Matrix] = []
        for layer in layers:
            packed = pack(layer.weight.detach() if layer.packed is None else layer.packed)
            if matrices and _can_join(matrices[-1].packed, packed):
                packed = _join(matrices.pop().packed, packed)
            matrices.append(cls(packed))
        return matrices

    @classmethod
    def joined(cls, experts: Experts, names: Sequence[str], expert: int) -> "Matrix":
        """Packs matrices of one expert, which are stored alike, into one."""
        first, *others = (pack(experts.matrix(name, expert)) for name in names)
        for other in others:
            assert _can_join(first, other)
            first = _join(first, other)
        return cls(first)


def has_tiles(weight: torch.Tensor | PackedWeight) -> bool:
    """Whether `pack` can take a matrix."""
    if isinstance(weight, PackedBlocks) and weight.ggml_type in PACKABLE_GGUF_TYPES:
        return True
    return isinstance(weight, torch.Tensor) or is_affine(weight)


def pack(weight: torch.Tensor | PackedWeight) -> PackedMatrix:
    """Packs one matrix into tiles, with as little loss as there is a form for."""
    if isinstance(weight, torch.Tensor):
        return pack_floats(weight)
    if isinstance(weight, PackedBlocks) and weight.ggml_type in PACKABLE_GGUF_TYPES:
        return pack_gguf(weight.blocks, weight.ggml_type, weight.shape[1])
    groups = affine_groups(weight, 0, weight.shape[0])
    if groups is None or groups.input_order is not None:
        return pack_floats(weight.unpack(torch.float16))
    return pack_affine(groups.codes, groups.bits, groups.group_size, groups.scales, groups.offsets)


def _can_join(first: PackedMatrix, second: PackedMatrix) -> bool:
    return (
        first.form is second.form
        and first.group_size == second.group_size
        and first.num_columns == second.num_columns
        and first.num_rows % TILE_ROWS == 0
    )


def _join(first: PackedMatrix, second: PackedMatrix) -> PackedMatrix:
    return PackedMatrix(
        first.form,
        torch.cat([first.tiles, second.tiles]),
        first.num_rows + second.num_rows,
        first.num_columns,
        first.group_size,
    )

"""Packed weights of checkpoints, arranged for the kernels of an NVIDIA card."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.kernels.triton.tiles import (
    TiledWeights,
    stack_rows,
    tile_affine,
    tile_float8,
    tile_q4_k,
    tile_q6_k,
)
from octavo.engine.quantization.affine import AffineGroups, affine_groups
from octavo.engine.quantization.float8 import Float8Linear
from octavo.engine.quantization.gguf import scales_and_minimums
from octavo.engine.quantization.gguf_affine import AFFINE_BLOCKS
from octavo.engine.quantization.packed import PackedBlocks, PackedLinear, PackedWeight

_SLAB_ELEMENTS = 2**25
"""Weights that are taken apart at a time."""
_WITH_OFFSETS = (GGMLType.Q4_1, GGMLType.Q5_1)
_SUPER_BLOCKS = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K)


def tile_packed(*weights: PackedWeight) -> list[TiledWeights]:
    """Matrices above each other in the kernels' layout, exactly where their format is GGUF's.

    Returns:
        From the top, neighbours that lie alike as one; empty: a format or its groups do not fit the
        layout.
    """
    stacks: list[list[TiledWeights]] = []
    for weight in weights:
        for start, stop in weight.slabs(_SLAB_ELEMENTS):
            slab = _tile_slab(weight, start, stop)
            if slab is None:
                return []
            if stacks and _lie_alike(stacks[-1][0], slab):
                stacks[-1].append(slab)
            else:
                stacks.append([slab])
    return [stack_rows(stack) for stack in stacks]


def tile_stack(weights: Sequence[PackedWeight]) -> TiledWeights | None:
    """Many matrices of one shape above each other, as experts are.

    Returns:
        None: they do not all fit one form, or want their input features in another order.
    """
    num_rows, num_columns = weights[0].shape
    count = max(1, _SLAB_ELEMENTS // (num_rows * num_columns))
    stack: list[TiledWeights] = []
    for start in range(0, len(weights), count):
        tiled = _tile_together(weights[start : start + count])
        if len(tiled) != 1 or tiled[0].input_order is not None:
            return None
        if stack and tiled[0].form != stack[0].form:
            return None
        stack += tiled
    return stack_rows(stack)


def _tile_together(weights: Sequence[PackedWeight]) -> list[TiledWeights]:
    """As `tile_packed`; at once where it can, for each by itself would keep the device waiting."""
    if len(weights) == 1:
        return tile_packed(*weights)
    blocks = [one for one in weights if isinstance(one, PackedBlocks)]
    if len(blocks) == len(weights) and len({one.ggml_type for one in blocks}) == 1:
        joined = torch.cat([one.blocks for one in blocks])
        return tile_packed(PackedBlocks(joined, blocks[0].ggml_type))
    linears = [one for one in weights if isinstance(one, PackedLinear)]
    groups = [affine_groups(one, 0, one.shape[0]) for one in linears]
    joinable = [one for one in groups if one is not None and one.input_order is None]
    if len(joinable) < len(weights) or len({(g.bits, g.group_size) for g in joinable}) > 1:
        return tile_packed(*weights)
    together = AffineGroups(
        torch.cat([one.codes for one in joinable]),
        joinable[0].bits,
        joinable[0].group_size,
        torch.cat([one.scales for one in joinable]),
        torch.cat([one.offsets for one in joinable]),
    )
    tiled = _tile_groups(together)
    return [] if tiled is None else [tiled]


def _tile_slab(weight: PackedWeight, start: int, stop: int) -> TiledWeights | None:
    if isinstance(weight, PackedBlocks) and weight.ggml_type in _SUPER_BLOCKS:
        return _tile_super_blocks(weight.blocks[start:stop], weight.ggml_type)
    if isinstance(weight, PackedLinear) and isinstance(weight.stored, Float8Linear):
        return _tile_float8(weight, start, stop)
    groups = affine_groups(weight, start, stop)
    if groups is None:
        return None
    keeps_offsets = isinstance(weight, PackedBlocks) and weight.ggml_type in _WITH_OFFSETS
    return _tile_groups(groups, keeps_offsets=keeps_offsets)


def _tile_groups(groups: AffineGroups, *, keeps_offsets: bool = False) -> TiledWeights | None:
    is_whole = groups.scales.shape[1] == 1
    if not is_whole and (groups.group_size == 16 or groups.codes.shape[1] % groups.group_size):
        return None
    tiled = tile_affine(
        groups.codes, groups.bits, groups.scales, groups.offsets, keeps_offsets=keeps_offsets
    )
    if tiled is None or groups.input_order is None:
        return tiled
    return dataclasses.replace(tiled, input_order=groups.input_order.int())


def _lie_alike(first: TiledWeights, second: TiledWeights) -> bool:
    if first.input_order is None or second.input_order is None:
        has_one_order = first.input_order is second.input_order
    else:
        has_one_order = torch.equal(first.input_order, second.input_order)
    return first.form == second.form and has_one_order


def _tile_super_blocks(rows: Tensor, ggml_type: GGMLType) -> TiledWeights | None:
    """Blocks of 256 weights, whose scales are taken over as they are."""
    num_rows = len(rows)
    blocks = rows.reshape(-1, BLOCK_LAYOUT[ggml_type][1])
    bits, _, take = AFFINE_BLOCKS[ggml_type]
    codes = take(blocks)[0].reshape(num_rows, -1)
    if ggml_type is GGMLType.Q6_K:
        factors = blocks[:, 208:210].contiguous().view(torch.float16)
        scales = blocks[:, 192:208].contiguous().view(torch.int8)
        return tile_q6_k(codes, factors.view(num_rows, -1), scales.view(num_rows, -1, 16))
    factors = blocks[:, :4].contiguous().view(torch.float16)
    integers = [part.reshape(num_rows, -1, 8) for part in scales_and_minimums(blocks[:, 4:16])]
    return tile_q4_k(codes, bits, factors.view(num_rows, -1, 2), *integers)


def _tile_float8(weight: PackedLinear, start: int, stop: int) -> TiledWeights | None:
    stored, first = weight.stored_rows(start, stop)
    assert isinstance(stored, Float8Linear)
    rows = slice(first, first + stop - start)
    values, scales = stored.weight[rows], stored.scale.float()
    if values.dtype is not torch.float8_e4m3fn:
        return None
    if stored.row_blocks is not None:
        if scales.shape[1] * stored.block_columns != values.shape[1]:
            return None
        scales = scales.index_select(0, stored.row_blocks[rows])
    elif len(scales) == 1:
        scales = scales.expand(len(values), -1)
    else:
        scales = scales[rows]
    return tile_float8(values, scales.contiguous(), has_float8_inputs=stored.has_float8_inputs)

"""`AffineGroups`: one form for all formats whose weights are scale * integer + offset.

Kernels repack from this form. It says the same as the formats' own `unpack`, up to the rounding of
one multiplication and one addition in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT
from octavo.engine.quantization.awq import AWQLinear
from octavo.engine.quantization.bitsandbytes import EightBitLinear
from octavo.engine.quantization.compressed_tensors import IntegersLinear, PackedIntegersLinear
from octavo.engine.quantization.gguf_affine import AFFINE_BLOCKS
from octavo.engine.quantization.gptq import GPTQLinear
from octavo.engine.quantization.packed import PackedBlocks, PackedLinear, PackedWeight
from octavo.engine.quantization.stored_linear import StoredIntegers


@dataclass(frozen=True, slots=True, eq=False)
class AffineGroups:
    """w = scale * code + offset, with scale and offset of the value's group."""

    codes: Tensor
    """[out_features, in_features], uint8, 0 to 2 ** bits - 1."""
    bits: int
    group_size: int
    """In features, one after the other; the last group may be shorter."""
    scales: Tensor
    """[out_features, num_groups], float32."""
    offsets: Tensor
    """[out_features, num_groups], float32."""
    input_order: Tensor | None = None
    """[in_features], int64: column j of the codes is for input feature `input_order[j]`; None: j.
    Of formats that put input features of one range next to each other (`desc_act`, `g_idx`)."""

    def unpack(self) -> Tensor:
        """[out_features, in_features], float32, in the order of the input features."""
        groups = torch.arange(self.codes.shape[1], device=self.codes.device) // self.group_size
        values = self.codes * self.scales[:, groups] + self.offsets[:, groups]
        if self.input_order is None:
            return values
        unpacked = torch.empty_like(values)
        unpacked[:, self.input_order] = values
        return unpacked


def is_affine(weight: PackedWeight) -> bool:
    """Whether `affine_groups` has an answer: the format is affine, its groups are of one size."""
    unit = weight.stored.row_unit if isinstance(weight, PackedLinear) else 1
    return affine_groups(weight, 0, min(unit, weight.shape[0])) is not None


def affine_groups(weight: PackedWeight, start: int, stop: int) -> AffineGroups | None:
    """The rows from `start` to `stop` in the one form of all affine formats.

    Returns:
        None: values are drawn from a table, are floats, or their groups are not of one size.
    """
    if isinstance(weight, PackedBlocks):
        read = AFFINE_BLOCKS.get(weight.ggml_type)
        if read is None:
            return None
        bits, group_size, take = read
        blocks = weight.blocks[start:stop].reshape(-1, BLOCK_LAYOUT[weight.ggml_type][1])
        codes, scales, offsets = take(blocks)
        num_rows = stop - start
        return AffineGroups(
            codes.reshape(num_rows, -1),
            bits,
            group_size,
            scales.reshape(num_rows, -1),
            offsets.reshape(num_rows, -1),
        )
    if not isinstance(weight, PackedLinear):
        return None
    stored, first = weight.stored_rows(start, stop)
    if not isinstance(
        stored, GPTQLinear | AWQLinear | PackedIntegersLinear | IntegersLinear | EightBitLinear
    ):
        return None
    return _from_integers(stored.integers(), first, first + stop - start)


def _from_integers(integers: StoredIntegers, start: int, stop: int) -> AffineGroups | None:
    # On the host: to wait for the device once, not with every question, counts for many experts.
    groups, order = integers.groups.cpu(), None
    if bool((groups.diff() < 0).any()):
        order = groups.argsort(stable=True)
        groups = groups[order]
        order = order.to(integers.values.device)
    num_groups = integers.scales.shape[1]
    sizes = groups.bincount(minlength=num_groups)
    group_size = int(sizes[0])
    if bool((sizes[:-1] != group_size).any()) or not 0 < int(sizes[-1]) <= group_size:
        return None
    codes = integers.values[start:stop]
    num_rows = integers.values.shape[0]
    scales = integers.scales.float().expand(num_rows, -1)[start:stop].contiguous()
    zeros = integers.zeros.float().expand(num_rows, -1)[start:stop]
    return AffineGroups(
        codes if order is None else codes[:, order],
        integers.bits,
        group_size,
        scales,
        scales * -zeros,
        order,
    )

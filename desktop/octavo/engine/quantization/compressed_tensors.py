"""Integers of compressed-tensors, packed or one a byte, with scales per group, row or tensor."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from octavo.checkpoint.weight_format import WHOLE
from octavo.engine.quantization.stored_linear import (
    Axis,
    LinearSource,
    StoredIntegers,
    WrongValuesError,
    check_groups,
    unpack_words,
)


@dataclass(frozen=True, slots=True)
class PackedIntegersLinear:
    """`pack-quantized`: w = (q - zero) * scale, with q and zero stored plus half of their range."""

    weight_packed: Tensor
    """[out_features, ceil(in_features / values per word)], int32; lowest bits first."""
    weight_scale: Tensor
    """[out_features, num_groups], or [1, 1] for all."""
    weight_zero_point: Tensor | None
    """[ceil(out_features / values per word), num_groups], int32; or [1, 1], int8, which is not
    shifted; None: zero."""
    weight_g_idx: Tensor | None
    """[in_features], int32: the group of each; None: they follow each other."""
    in_features: int
    bits: int
    group_size: int

    axis: ClassVar[Axis] = "out"

    @staticmethod
    def part_unit(source: LinearSource) -> int:
        return 32 // source.format.bits

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        stored_shape = source.companions.get("weight_shape")
        if stored_shape is not None and stored_shape.tolist() != list(source.shape):
            raise WrongValuesError(
                "weight_shape", f"says {stored_shape.tolist()} instead of {list(source.shape)}"
            )
        zeros = source.companions["weight_zero_point"] if source.format.has_zero_points else None
        if zeros is not None and source.format.group_size != WHOLE:
            per_word = 32 // source.format.bits
            zeros = zeros[start // per_word : -(-stop // per_word)]
        elif zeros is not None:
            zeros = zeros.reshape(1, 1)
        return cls(
            main,
            _rows_of(source.companions["weight_scale"], source.format.group_size, start, stop),
            zeros,
            _group_indices(source.companions),
            source.shape[1],
            source.format.bits,
            source.format.group_size,
        )

    @property
    def row_unit(self) -> int:
        return 32 // self.bits

    def rows(self, start: int, stop: int) -> Self:
        zeros = self.weight_zero_point
        if zeros is not None and self.group_size != WHOLE:
            zeros = zeros[start // self.row_unit : -(-stop // self.row_unit)]
        return dataclasses.replace(
            self,
            weight_packed=self.weight_packed[start:stop],
            weight_scale=_rows_of(self.weight_scale, self.group_size, start, stop),
            weight_zero_point=zeros,
        )

    def unpack(self) -> Tensor:
        half = 1 << (self.bits - 1)
        values = unpack_words(self.weight_packed, self.bits, 1)[:, : self.in_features].float()
        zeros = None
        if self.weight_zero_point is None:
            values -= half
        elif self.group_size == WHOLE:
            values -= half
            zeros = self.weight_zero_point
        else:
            zeros = unpack_words(self.weight_zero_point, self.bits, 0)[: len(values)]
        return _scaled(values, self.weight_scale, zeros, self.group_size, self.weight_g_idx)

    def integers(self) -> StoredIntegers:
        """All of it as integers, zero points and scales."""
        values = unpack_words(self.weight_packed, self.bits, 1)[:, : self.in_features]
        half = 1 << (self.bits - 1)
        if self.weight_zero_point is None:
            zeros = torch.full_like(self.weight_scale, half)
        elif self.group_size == WHOLE:
            zeros = self.weight_zero_point.int() + half
        else:
            zeros = unpack_words(self.weight_zero_point, self.bits, 0)[: len(values)]
        groups = _groups_of(values, self.group_size, self.weight_g_idx)
        return StoredIntegers(values.to(torch.uint8), self.bits, zeros, self.weight_scale, groups)


@dataclass(frozen=True, slots=True)
class IntegersLinear:
    """`int-quantized`: w = (q - zero) * scale."""

    weight: Tensor
    """[out_features, in_features], int8."""
    weight_scale: Tensor
    """[out_features, num_groups], or [1, 1] for all."""
    weight_zero_point: Tensor | None
    """As `weight_scale`, int8; None: zero."""
    weight_g_idx: Tensor | None
    """[in_features], int32: the group of each; None: they follow each other."""
    group_size: int

    axis: ClassVar[Axis] = "out"

    @staticmethod
    def part_unit(_source: LinearSource) -> int:
        return 1

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        zeros = source.companions["weight_zero_point"] if source.format.has_zero_points else None
        return cls(
            main,
            _rows_of(source.companions["weight_scale"], source.format.group_size, start, stop),
            None if zeros is None else _rows_of(zeros, source.format.group_size, start, stop),
            _group_indices(source.companions),
            source.format.group_size,
        )

    @property
    def row_unit(self) -> int:
        return 1

    def rows(self, start: int, stop: int) -> Self:
        zeros = self.weight_zero_point
        if zeros is not None:
            zeros = _rows_of(zeros, self.group_size, start, stop)
        return dataclasses.replace(
            self,
            weight=self.weight[start:stop],
            weight_scale=_rows_of(self.weight_scale, self.group_size, start, stop),
            weight_zero_point=zeros,
        )

    def unpack(self) -> Tensor:
        values = self.weight.float()
        return _scaled(
            values, self.weight_scale, self.weight_zero_point, self.group_size, self.weight_g_idx
        )

    def integers(self) -> StoredIntegers:
        """All of it as integers from 0, zero points and scales."""
        zeros = torch.full_like(self.weight_scale, 128, dtype=torch.int32)
        if self.weight_zero_point is not None:
            zeros += self.weight_zero_point
        groups = _groups_of(self.weight, self.group_size, self.weight_g_idx)
        values = (self.weight.short() + 128).to(torch.uint8)
        return StoredIntegers(values, 8, zeros, self.weight_scale, groups)


def _groups_of(values: Tensor, group_size: int, g_idx: Tensor | None) -> Tensor:
    """[in_features]: the group of each column of values."""
    if g_idx is not None:
        return g_idx
    columns = torch.arange(values.shape[1], device=values.device)
    return columns // group_size if group_size > 0 else torch.zeros_like(columns)


def _rows_of(scale: Tensor, group_size: int, start: int, stop: int) -> Tensor:
    """[stop - start, num_groups], or [1, 1] for all."""
    if group_size == WHOLE:
        return scale.reshape(1, 1)
    return scale.reshape(len(scale), -1)[start:stop]


def _group_indices(companions: Mapping[str, Tensor]) -> Tensor | None:
    indices = companions.get("weight_g_idx")
    # Writers fill it with -1 where they kept the order.
    if indices is None or bool((indices == -1).all()):
        return None
    check_groups(indices, companions["weight_scale"].shape[-1], "weight_g_idx")
    return indices


def _scaled(
    values: Tensor, scale: Tensor, zeros: Tensor | None, group_size: int, g_idx: Tensor | None
) -> Tensor:
    """Subtracts zero points and multiplies by scales, in place.

    Args:
        values: [out_features, in_features], float32.
        scale: [out_features or 1, num_groups].
        zeros: as scale; or None.
        group_size: of groups that follow each other.
        g_idx: [in_features], the groups if they do not.
    """
    num_groups = scale.shape[1]
    if g_idx is None and 0 < num_groups * group_size == values.shape[1]:
        # Whole groups one after the other need no table of groups.
        groups = values.view(-1, num_groups, group_size)
        if zeros is not None:
            groups -= zeros[..., None]
        groups *= scale.float()[..., None]
        return values

    def spread(per_group: Tensor) -> Tensor:
        if g_idx is not None:
            return per_group.index_select(1, g_idx)
        if group_size <= 0:
            return per_group
        columns = torch.arange(values.shape[1], device=values.device)
        return per_group.index_select(1, columns // group_size)

    if zeros is not None:
        values -= spread(zeros)
    values *= spread(scale.float())
    return values

"""GPTQ: integers packed along the input features, with zero points and groups of any order."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from octavo.engine.quantization.stored_linear import (
    Axis,
    LinearSource,
    StoredIntegers,
    check_groups,
    unpack_words,
)

_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A one in every value of a word."""


@dataclass(frozen=True, slots=True)
class GPTQLinear:
    """w = (q - zero) * scale, with zero and scale of the group of the input feature."""

    qweight: Tensor
    """[in_features * bits / 32, out_features], int32; lowest bits first."""
    qzeros: Tensor
    """[num_groups, out_features * bits / 32], int32."""
    scales: Tensor
    """[num_groups, out_features]."""
    g_idx: Tensor
    """[in_features], int32: the group of each."""
    bits: int
    stores_zeros_less_one: bool
    is_symmetric: bool

    axis: ClassVar[Axis] = "in"

    @staticmethod
    def part_unit(source: LinearSource) -> int:
        return 32 if source.format.bits == 3 else 32 // source.format.bits

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        scales = source.companions["scales"]
        if "g_idx" in source.companions:
            g_idx = source.companions["g_idx"][start:stop]
        else:
            g_idx = torch.arange(start, stop, dtype=torch.int32, device=main.device)
            g_idx //= source.format.group_size if source.format.group_size > 0 else source.shape[1]
        check_groups(g_idx, len(scales), "g_idx")
        # Usually a part needs few groups; the others need not be unpacked.
        first, last = int(g_idx.min()), int(g_idx.max())
        return cls(
            main,
            source.companions["qzeros"][first : last + 1],
            scales[first : last + 1],
            g_idx - first,
            source.format.bits,
            source.format.stores_zeros_less_one,
            source.format.is_symmetric,
        )

    @property
    def row_unit(self) -> int:
        return 32 if self.bits == 3 else 32 // self.bits

    def rows(self, start: int, stop: int) -> Self:
        words = slice(start * self.bits // 32, stop * self.bits // 32)
        return dataclasses.replace(
            self,
            qweight=self.qweight[:, start:stop],
            qzeros=self.qzeros[:, words],
            scales=self.scales[:, start:stop],
        )

    def unpack(self) -> Tensor:
        values = unpack_words(self.qweight, self.bits, 0).float()
        values -= self._zeros().index_select(0, self.g_idx)
        values *= self.scales.float().index_select(0, self.g_idx)
        return values.T

    def integers(self) -> StoredIntegers:
        """All of it as integers, zero points and scales."""
        values = unpack_words(self.qweight, self.bits, 0).T.to(torch.uint8)
        return StoredIntegers(values, self.bits, self._zeros().T, self.scales.T, self.g_idx)

    def _zeros(self) -> Tensor:
        """[num_groups, out_features], int32."""
        if self.bits == 3 and self.is_symmetric:
            # Writers disagree on how 3-bit zero points lose their one; here they say nothing.
            return torch.full(self.scales.shape, 4, dtype=torch.int32, device=self.qzeros.device)
        if not self.stores_zeros_less_one:
            return unpack_words(self.qzeros, self.bits, 1)
        if self.bits == 3:
            return (unpack_words(self.qzeros, 3, 1) + 1).bitwise_and_(7)
        # Whole words lost their ones, so a zero borrowed from its neighbour.
        return unpack_words(self.qzeros + _ONES[self.bits], self.bits, 1)

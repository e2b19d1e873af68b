"""AWQ in its GEMM layout: 4-bit integers packed along the output features, in a certain order."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from octavo.engine.quantization.stored_linear import Axis, LinearSource, StoredIntegers

_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
"""Where in its word each of eight output features lies."""


@dataclass(frozen=True, slots=True)
class AWQLinear:
    """w = (q - zero) * scale, with zero and scale of the group of the input feature."""

    qweight: Tensor
    """[in_features, out_features / 8], int32."""
    qzeros: Tensor
    """[num_groups, out_features / 8], int32."""
    scales: Tensor
    """[num_groups, out_features]."""
    groups: Tensor
    """[in_features], int32: the group of each."""

    axis: ClassVar[Axis] = "in"

    @staticmethod
    def part_unit(_source: LinearSource) -> int:
        return 1

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        group_size = source.format.group_size if source.format.group_size > 0 else source.shape[1]
        first, last = start // group_size, (stop - 1) // group_size
        groups = torch.arange(start, stop, dtype=torch.int32, device=main.device)
        groups = groups // group_size - first
        return cls(
            main,
            source.companions["qzeros"][first : last + 1],
            source.companions["scales"][first : last + 1],
            groups,
        )

    @property
    def row_unit(self) -> int:
        return len(_SHIFTS)

    def rows(self, start: int, stop: int) -> Self:
        words = slice(start // len(_SHIFTS), stop // len(_SHIFTS))
        return dataclasses.replace(
            self,
            qweight=self.qweight[:, words],
            qzeros=self.qzeros[:, words],
            scales=self.scales[:, start:stop],
        )

    def unpack(self) -> Tensor:
        values = _unpack_words(self.qweight).float()
        values -= _unpack_words(self.qzeros).index_select(0, self.groups)
        values *= self.scales.float().index_select(0, self.groups)
        return values.T

    def integers(self) -> StoredIntegers:
        """All of it as integers, zero points and scales."""
        return StoredIntegers(
            _unpack_words(self.qweight).T.to(torch.uint8),
            32 // len(_SHIFTS),
            _unpack_words(self.qzeros).T,
            self.scales.T,
            self.groups,
        )


def _unpack_words(words: Tensor) -> Tensor:
    """[rows, 8 * columns], int32, from [rows, columns], int32."""
    shifts = torch.tensor(_SHIFTS, dtype=torch.int32, device=words.device)
    return (words[:, :, None] >> shifts).bitwise_and_(15).flatten(1)

"""`StoredLinear`: what all formats of quantised weights have in common.

Each format has one class, which holds the tensors of a linear layer as a checkpoint stores them.
Its `unpack` is the definition of the format in plain torch: loading uses it, and kernels that
multiply by the packed tensors are to be tested against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from octavo.checkpoint.weight_format import LinearFormat

Axis = Literal["out", "in", "flat"]


@dataclass(frozen=True, slots=True)
class LinearSource:
    """What is known of a whole layer while it is read part by part."""

    format: LinearFormat
    shape: tuple[int, int]
    """(out_features, in_features)."""
    companions: Mapping[str, Tensor]
    """All its tensors but that of the values, by the end of their names."""


class StoredLinear(Protocol):
    """The tensors of one linear layer, or of a part of its features.

    A part of a layer is a layer itself: whoever wants little memory unpacks part by part.
    """

    axis: ClassVar[Axis]
    """Along what a layer is cut: its out features, its in features, or its values in their order
    ([1, number of values])."""

    @staticmethod
    def part_unit(source: LinearSource, /) -> int:
        """Parts begin at multiples of this.

        Raises:
            WrongValuesError: a companion holds values that make no sense.
        """

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        """The features (or values) from `start` to `stop`.

        Args:
            source: the whole layer.
            main: the values' tensor of this part alone, as stored.
            start: a multiple of `part_unit`.
            stop: one too, or the end.

        Raises:
            WrongValuesError: a companion holds values that make no sense.
        """

    @property
    def row_unit(self) -> int:
        """`rows` begin at multiples of this out features."""

    def rows(self, start: int, stop: int) -> Self:
        """The out features from `start` to `stop`, as views of the same memory.

        Args:
            start: a multiple of `row_unit`.
            stop: one too, or the end.
        """

    def unpack(self) -> Tensor:
        """[out_features, in_features], float32."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredIntegers:
    """What formats of integers have in common: w = (value - zero) * scale of the value's group."""

    values: Tensor
    """[out_features, in_features], uint8, 0 to 2 ** bits - 1."""
    bits: int
    zeros: Tensor
    """[out_features or 1, num_groups], any type."""
    scales: Tensor
    """As zeros."""
    groups: Tensor
    """[in_features]: the group of each."""


class WrongValuesError(Exception):
    """A stored tensor has the right shape and type, but holds nonsense."""

    def __init__(self, role: str, problem: str) -> None:
        super().__init__(problem)
        self.role = role
        """The end of the tensor's name; empty: the values' own tensor."""
        self.problem = problem


def unpack_words(words: Tensor, bits: int, dim: int) -> Tensor:
    """Takes 32-bit words apart, the lowest bits first; values may cross from word to word.

    Args:
        words: int32.
        bits: per value; 2, 3, 4 or 8.
        dim: along which values are packed.

    Returns:
        `words` with 32 / bits times as many entries along `dim`, int32, 0 to 2 ** bits - 1.
    """
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
        spread = words.unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (words.ndim - dim - 1))
        return spread.bitwise_and_(mask).flatten(dim, dim + 1)
    # 32 values take `bits` words.
    first_bit = torch.arange(32, device=words.device) * bits
    shape = words.shape
    groups = words.reshape(*shape[:dim], -1, bits, *shape[dim + 1 :]).long() & 0xFFFFFFFF
    low = groups.index_select(dim + 1, first_bit // 32)
    high = groups.index_select(dim + 1, (first_bit // 32 + 1).clamp(max=bits - 1))
    shifts = (first_bit % 32).view(-1, *[1] * (words.ndim - dim - 1))
    values: Tensor = ((high << 32 | low) >> shifts) & mask
    return values.int().flatten(dim, dim + 1)


def check_groups(indices: Tensor, num_groups: int, role: str) -> None:
    """Checks the group of each input feature.

    Raises:
        WrongValuesError: one is out of range.
    """
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num_groups:
        wrong = int(indices.min() if int(indices.min()) < 0 else indices.max())
        raise WrongValuesError(role, f"names the group {wrong}, but there are {num_groups}")

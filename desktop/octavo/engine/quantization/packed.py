"""`PackedWeight`: a matrix that lies in memory as its checkpoint stores it.

What it stands for is said by `unpack_rows`, which is the definition that kernels which multiply by
packed weights are to be tested against. `PackedBlocks` is what GGUF stores, and any matrix of plain
numbers; `PackedLinear` is what model folders store, in one of the formats of `StoredLinear`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.quantization.gguf import (
    LARGEST_FACTOR,
    SCALE_OFFSETS,
    SLAB_ELEMENTS,
    unpack_blocks_into,
)
from octavo.engine.quantization.stored_linear import StoredLinear

PLAIN_DTYPES = {
    GGMLType.F32: torch.float32,
    GGMLType.F16: torch.float16,
    GGMLType.BF16: torch.bfloat16,
}
"""Types of blocks that are plain numbers."""

_DEVICE_SLAB_ELEMENTS = 1 << 22
"""Values that are looked at together on a card, which waits after each time: some tens of megabytes
for each thread that reads."""
_LARGEST_FP4 = 6.0
_LARGEST_INTEGER = 512.0
"""Above the magnitude of every integer less its zero point."""


class PackedWeight(ABC):
    """A matrix [out_features, in_features], or a range of the rows of one, read only."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """What it holds in memory; ranges of rows share the memory of the whole."""

    @property
    @abstractmethod
    def format_name(self) -> str:
        """`Q4_K`, `gptq`, …"""

    @abstractmethod
    def rows(self, start: int, stop: int) -> "PackedWeight":
        """The rows from `start` to `stop`, in the same memory."""

    @abstractmethod
    def unpack_rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """[stop - start, in_features]: new memory, or a view if `dtype` is what is stored."""

    @abstractmethod
    def select(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """[num_indices, in_features]: the rows of these indices, int64, in their order."""

    @abstractmethod
    def is_surely_finite(self, dtype: torch.dtype) -> bool:
        """Whether the scales alone prove that all values are finite in a type."""

    def is_finite(self, dtype: torch.dtype) -> bool:
        """Whether all values are, once they are unpacked to a type."""
        num_elements = SLAB_ELEMENTS if self.device.type == "cpu" else _DEVICE_SLAB_ELEMENTS
        return self.is_surely_finite(dtype) or all(
            bool(torch.sum(self.unpack_rows(start, stop, dtype), dtype=torch.float32).isfinite())
            for start, stop in self.slabs(num_elements)
        )

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """[out_features, in_features]: all of it, as `unpack_rows`."""
        return self.unpack_rows(0, self.shape[0], dtype)

    def slabs(self, num_elements: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows, of so many values or of one row, that together are all."""
        num_rows, num_columns = self.shape
        step = max(1, num_elements // num_columns)
        for start in range(0, num_rows, step):
            yield start, min(start + step, num_rows)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PackedBlocks(PackedWeight):
    """Rows of blocks of a GGML type; the rows of q and k are in Hugging Face's order."""

    blocks: Tensor
    """[out_features, bytes of a row], uint8, contiguous."""
    ggml_type: GGMLType

    @property
    def shape(self) -> tuple[int, int]:
        block_elements, block_bytes = BLOCK_LAYOUT[self.ggml_type]
        num_rows, row_bytes = self.blocks.shape
        return num_rows, row_bytes // block_bytes * block_elements

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    @property
    def num_bytes(self) -> int:
        return self.blocks.nbytes

    @property
    def format_name(self) -> str:
        return self.ggml_type.name

    def rows(self, start: int, stop: int) -> "PackedBlocks":
        return PackedBlocks(self.blocks[start:stop], self.ggml_type)

    def unpack_rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        return self._unpack(self.blocks[start:stop], dtype)

    def select(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        return self._unpack(self.blocks.index_select(0, indices), dtype)

    def is_surely_finite(self, dtype: torch.dtype) -> bool:
        if self.ggml_type is GGMLType.MXFP4:
            exponents = self.blocks.view(-1, BLOCK_LAYOUT[self.ggml_type][1])[:, 0]
            return _LARGEST_FP4 * 2.0 ** (int(exponents.max()) - 127) <= torch.finfo(dtype).max
        offsets = SCALE_OFFSETS.get(self.ggml_type)
        if offsets is None:
            return False
        # All blocks at once: a card is asked, and waited for, once a matrix and not once a slab.
        blocks = self.blocks.view(-1, BLOCK_LAYOUT[self.ggml_type][1])
        parts = [blocks[:, offset : offset + 2] for offset in offsets]
        scales = torch.stack(parts).view(torch.float16)
        # A NaN compares false.
        return float(scales.abs().max()) * LARGEST_FACTOR <= torch.finfo(dtype).max

    def _unpack(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        if PLAIN_DTYPES.get(self.ggml_type) is dtype:
            return blocks.view(dtype)
        out = torch.empty(len(blocks), self.shape[1], dtype=dtype, device=blocks.device)
        unpack_blocks_into(out, blocks, self.ggml_type)
        return out


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PackedLinear(PackedWeight):
    """A range of the rows of a `StoredLinear`."""

    stored: StoredLinear
    """All rows; its own `rows` begin where its words and blocks do."""
    layout: str
    stored_shape: tuple[int, int]
    first: int
    """Of the rows meant."""
    last: int
    """The row after them."""

    @classmethod
    def whole(cls, stored: StoredLinear, layout: str, shape: tuple[int, int]) -> "PackedLinear":
        return cls(stored, layout, shape, 0, shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        return self.last - self.first, self.stored_shape[1]

    @property
    def device(self) -> torch.device:
        return next(_tensors(self.stored)).device

    @property
    def num_bytes(self) -> int:
        num_rows = self.stored_shape[0]
        total = sum(tensor.nbytes for tensor in _tensors(self.stored))
        return total * self.last // num_rows - total * self.first // num_rows

    @property
    def format_name(self) -> str:
        return self.layout

    def rows(self, start: int, stop: int) -> "PackedLinear":
        return dataclasses.replace(self, first=self.first + start, last=self.first + stop)

    def unpack_rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        part, first = self.stored_rows(start, stop)
        return part.unpack()[first : first + stop - start].to(dtype)

    def stored_rows(self, start: int, stop: int) -> tuple[StoredLinear, int]:
        """The least of what is stored that holds these rows, and which of its rows is the first."""
        unit = self.stored.row_unit
        start, stop = self.first + start, self.first + stop
        begin = start // unit * unit
        end = min(-(-stop // unit) * unit, self.stored_shape[0])
        if (begin, end) == (0, self.stored_shape[0]):
            return self.stored, start
        return self.stored.rows(begin, end), start - begin

    def is_surely_finite(self, dtype: torch.dtype) -> bool:
        bound = _LARGEST_INTEGER
        for value in _values(self.stored):
            if isinstance(value, float):
                bound *= 1.0 + abs(value)
            elif isinstance(value, Tensor) and value.is_floating_point():
                if value.dtype.itemsize == 1:
                    return False
                bound *= 1.0 + float(value.abs().max())
        # A NaN compares false.
        return bound <= torch.finfo(dtype).max

    def select(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        wanted: list[int] = indices.tolist()
        rows = {row: self.unpack_rows(row, row + 1, dtype) for row in set(wanted)}
        if not rows:
            return torch.empty(0, self.shape[1], dtype=dtype, device=indices.device)
        return torch.cat([rows[row] for row in wanted])


def _tensors(stored: StoredLinear) -> Iterator[Tensor]:
    """Those among `_values`."""
    return (value for value in _values(stored) if isinstance(value, Tensor))


def _values(stored: object) -> Iterator[object]:
    """All that a stored format holds, its parts taken apart."""
    assert dataclasses.is_dataclass(stored)
    for one in dataclasses.fields(stored):
        value = getattr(stored, one.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value)
        else:
            yield value


@runtime_checkable
class KeepsPacked(Protocol):
    """A layer whose matrices may get their memory when they are loaded, packed or not."""

    device: torch.device
    """Where they belong."""

    def put(self, name: str, index: int, matrix: Tensor | PackedWeight, /) -> None:
        """Takes over one matrix.

        Args:
            name: of the parameter whose shape the matrix has.
            index: which one, where the parameter is a stack of matrices; else 0.
            matrix: [out_features, in_features], dense or packed.
        """

    def matrix(self, name: str, index: int, /) -> Tensor | PackedWeight:
        """What it has now, named as in `put`."""

"""bitsandbytes: 4-bit numbers from a table with scales per block, and 8-bit rows."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from octavo.engine.quantization.stored_linear import (
    Axis,
    LinearSource,
    StoredIntegers,
    WrongValuesError,
)

_STATE = "weight.quant_state.bitsandbytes__"
_PER_127 = 7.874015718698502e-3
"""What the library multiplies by: 1 / 127, rounded."""


@dataclass(frozen=True, slots=True)
class FourBitLinear:
    """w = table[q] * absmax of its block; blocks run on from row to row.

    With double quantisation the scales themselves are 8-bit numbers from a table.
    """

    weight: Tensor
    """[ceil(number of values / 2)], uint8; the first of two values in the high bits."""
    quant_map: Tensor
    """[16], float32: what the numbers stand for."""
    absmax: Tensor
    """[number of blocks], float32; or uint8: places in the table of `nested`."""
    block_size: int
    shape: tuple[int, int]
    nested: "NestedScales | None" = None

    axis: ClassVar[Axis] = "flat"

    @staticmethod
    def part_unit(source: LinearSource) -> int:
        block_size, *_ = _read_state(source.companions)
        return block_size

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        block_size, stored_shape, state = _read_state(source.companions)
        if stored_shape != list(source.shape):
            raise _wrong_state(
                source.companions, f"says the shape {stored_shape}, not {list(source.shape)}"
            )
        absmax = source.companions["weight.absmax"]
        num_blocks = math.ceil(source.shape[0] * source.shape[1] / block_size)
        if absmax.numel() != num_blocks:
            raise WrongValuesError(
                "weight.absmax", f"holds {absmax.numel():,} scales instead of {num_blocks:,}"
            )
        first, last = start // block_size, math.ceil(stop / block_size)
        nested = None
        if absmax.dtype == torch.uint8:
            nested = _nested_scales(first, num_blocks, source.companions, state)
        is_whole = source.shape[0] * source.shape[1] == stop - start
        return cls(
            main.reshape(-1).view(torch.uint8),
            source.companions["weight.quant_map"],
            absmax.reshape(-1)[first:last],
            block_size,
            source.shape if is_whole else (1, stop - start),
            nested,
        )

    @property
    def row_unit(self) -> int:
        # Rows whose first value is the first of a block.
        return self.block_size // math.gcd(self.block_size, self.shape[1])

    def rows(self, start: int, stop: int) -> Self:
        columns = self.shape[1]
        first, last = start * columns, stop * columns
        blocks = slice(first // self.block_size, math.ceil(last / self.block_size))
        nested = self.nested
        if nested is not None:
            nested = dataclasses.replace(nested, first_block=nested.first_block + blocks.start)
        return dataclasses.replace(
            self,
            weight=self.weight[first // 2 : math.ceil(last / 2)],
            absmax=self.absmax[blocks],
            shape=(stop - start, columns),
            nested=nested,
        )

    def unpack(self) -> Tensor:
        num_values = self.shape[0] * self.shape[1]
        pairs = torch.stack([self.weight >> 4, self.weight & 15], dim=1)
        values = self.quant_map[pairs.view(-1)[:num_values].int()]
        absmax = self.absmax if self.nested is None else self.nested.unpack(self.absmax)
        values *= absmax.repeat_interleave(self.block_size)[:num_values]
        return values.view(self.shape)


@dataclass(frozen=True, slots=True)
class NestedScales:
    """Double quantisation: absmax = table[q] * absmax of its block of blocks + offset."""

    table: Tensor
    """[256], float32."""
    absmax: Tensor
    """[number of blocks of blocks], float32; of the whole weight."""
    block_size: int
    """In blocks."""
    offset: float
    first_block: int
    """Where in the whole weight the first scale belongs."""

    def unpack(self, scales: Tensor) -> Tensor:
        """[number of blocks], float32, from the same in uint8."""
        last = self.first_block + len(scales)
        blocks = torch.arange(self.first_block, last, device=scales.device) // self.block_size
        return self.table[scales.int()] * self.absmax[blocks] + self.offset


@dataclass(frozen=True, slots=True)
class EightBitLinear:
    """w = q * SCB / 127."""

    weight: Tensor
    """[out_features, in_features], int8."""
    scb: Tensor
    """[out_features], float32: the largest magnitude of each row."""

    axis: ClassVar[Axis] = "out"

    @staticmethod
    def part_unit(_source: LinearSource) -> int:
        return 1

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        order = source.companions.get("weight_format")
        if order is not None and order.reshape(-1).tolist() != [0]:
            raise WrongValuesError(
                "weight_format", f"says the order {order.reshape(-1).tolist()}, not rows ([0])"
            )
        return cls(main, source.companions["SCB"][start:stop])

    @property
    def row_unit(self) -> int:
        return 1

    def rows(self, start: int, stop: int) -> Self:
        return dataclasses.replace(self, weight=self.weight[start:stop], scb=self.scb[start:stop])

    def unpack(self) -> Tensor:
        values = self.weight.float()
        values *= self.scb[:, None]
        values *= _PER_127
        return values

    def integers(self) -> StoredIntegers:
        """All of it as integers from 0, zero points and scales."""
        values = (self.weight.short() + 128).to(torch.uint8)
        scales = self.scb[:, None] * _PER_127
        groups = torch.zeros(self.weight.shape[1], dtype=torch.int32, device=values.device)
        return StoredIntegers(values, 8, torch.full_like(scales, 128), scales, groups)


def _nested_scales(
    first: int, num_blocks: int, companions: Mapping[str, Tensor], state: Mapping[str, Any]
) -> NestedScales:
    """What the scales of blocks from `first` are made of."""
    block_size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(block_size) is not int or not 1 <= block_size <= 1 << 20:
        raise _wrong_state(companions, f"says nested_blocksize {block_size!r}")
    if isinstance(offset, bool) or not isinstance(offset, int | float):
        raise _wrong_state(companions, f"says nested_offset {offset!r}")
    table, absmax = companions["weight.nested_quant_map"], companions["weight.nested_absmax"]
    if table.numel() != 256:
        raise WrongValuesError("weight.nested_quant_map", f"has {table.numel():,} values, not 256")
    if absmax.numel() != math.ceil(num_blocks / block_size):
        raise WrongValuesError(
            "weight.nested_absmax",
            f"holds {absmax.numel():,} scales instead of {math.ceil(num_blocks / block_size):,}",
        )
    return NestedScales(table.reshape(-1), absmax.reshape(-1), block_size, offset, first)


def _read_state(companions: Mapping[str, Tensor]) -> tuple[int, list[int], Mapping[str, Any]]:
    """Size of the blocks, shape of the weight, and all that the description says."""
    role = next(role for role in companions if role.startswith(_STATE))
    try:
        state = json.loads(bytes(companions[role].cpu().tolist()))
    except (ValueError, RecursionError) as error:
        raise WrongValuesError(role, "is no valid JSON") from error
    if not isinstance(state, dict):
        raise WrongValuesError(role, "is no JSON object")
    if state.get("quant_type") != role.removeprefix(_STATE):
        raise _wrong_state(companions, f"says quant_type {state.get('quant_type')!r}")
    block_size = state.get("blocksize")
    if type(block_size) is not int or not 2 <= block_size <= 1 << 20 or block_size % 2:
        raise _wrong_state(companions, f"says blocksize {block_size!r}")
    shape = state.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise _wrong_state(companions, f"says shape {shape!r:.80}")
    return block_size, shape, state


def _wrong_state(companions: Mapping[str, Tensor], problem: str) -> WrongValuesError:
    role = next(role for role in companions if role.startswith(_STATE))
    return WrongValuesError(role, problem)

"""8-bit floats with one scale per tensor, output feature or block of features."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from octavo.engine.quantization.stored_linear import Axis, LinearSource


@dataclass(frozen=True, slots=True)
class Float8Linear:
    """w = q * scale; the scale is called `weight_scale_inv` where it means the same."""

    weight: Tensor
    """[out_features, in_features], float8_e4m3fn or float8_e5m2."""
    scale: Tensor
    """[1, 1], [out_features, 1], or [blocks of out_features, blocks of in_features]."""
    row_blocks: Tensor | None
    """[out_features], int64: the block of each; None: no blocks."""
    block_columns: int
    """In features of a block."""
    has_float8_inputs: bool = False
    """Whether the layer is meant to round its inputs to 8-bit floats, too."""

    axis: ClassVar[Axis] = "out"

    @staticmethod
    def part_unit(_source: LinearSource) -> int:
        return 1

    @classmethod
    def take(cls, source: LinearSource, main: Tensor, start: int, stop: int) -> Self:
        scale = source.companions.get("weight_scale")
        if scale is None:
            scale = source.companions["weight_scale_inv"]
        has_float8_inputs = source.format.has_float8_inputs
        if source.format.block_shape is not None:
            rows = torch.arange(start, stop, device=main.device) // source.format.block_shape[0]
            return cls(main, scale, rows, source.format.block_shape[1], has_float8_inputs)
        scale = scale.reshape(-1, 1)
        scale = scale if len(scale) == 1 else scale[start:stop]
        return cls(main, scale, None, source.shape[1], has_float8_inputs)

    @property
    def row_unit(self) -> int:
        return 1

    def rows(self, start: int, stop: int) -> Self:
        weight = self.weight[start:stop]
        if self.row_blocks is not None:
            return dataclasses.replace(self, weight=weight, row_blocks=self.row_blocks[start:stop])
        scale = self.scale if len(self.scale) == 1 else self.scale[start:stop]
        return dataclasses.replace(self, weight=weight, scale=scale)

    def unpack(self) -> Tensor:
        values = self.weight.float()
        scale = self.scale.float()
        if self.row_blocks is not None:
            scale = scale.index_select(0, self.row_blocks)
            columns = torch.arange(values.shape[1], device=values.device)
            scale = scale.index_select(1, columns // self.block_columns)
        values *= scale
        return values

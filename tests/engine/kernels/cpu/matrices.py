"""Weight matrices of every kind, random, with what they stand for."""

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.kernels.cpu import tiles_pack
from octavo.engine.kernels.cpu.tiles import PackedMatrix
from octavo.engine.quantization.gguf import dequantize

_HALVES = MappingProxyType(
    {
        GGMLType.Q4_0: {0: 0.01},
        GGMLType.Q4_1: {0: 0.01, 2: 0.1},
        GGMLType.Q5_0: {0: 0.01},
        GGMLType.Q5_1: {0: 0.01, 2: 0.1},
        GGMLType.Q8_0: {0: 0.001},
        GGMLType.Q4_K: {0: 0.001, 2: 0.01},
        GGMLType.Q5_K: {0: 0.001, 2: 0.01},
        GGMLType.Q6_K: {208: 0.0001},
    }
)
"""Where in a block the float16 lie, and how large they may be."""


def random_blocks(
    ggml_type: GGMLType, num_rows: int, num_columns: int, generator: torch.Generator
) -> Tensor:
    """[num_rows, row_bytes], uint8: any bits, but scales as models have them."""
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    shape = (num_rows, num_columns // block_elements, block_bytes)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for place, size in _HALVES[ggml_type].items():
        halves = ((torch.rand(*shape[:2], 1, generator=generator) - 0.3) * size).half()
        raw[:, :, place : place + 2] = halves.view(torch.uint8)
    return raw.flatten(1)


def _gguf(ggml_type: GGMLType) -> Callable[..., tuple[PackedMatrix, Tensor]]:
    def make(
        num_rows: int, num_columns: int, generator: torch.Generator
    ) -> tuple[PackedMatrix, Tensor]:
        unit = BLOCK_LAYOUT[ggml_type][0]
        num_columns = -(-num_columns // unit) * unit
        raw = random_blocks(ggml_type, num_rows, num_columns, generator)
        shape = (num_rows, num_columns)
        weights = dequantize(raw.flatten(), ggml_type, shape, torch.float32)
        return tiles_pack.pack_gguf(raw, ggml_type, num_columns), weights

    return make


def _affine(
    bits: int, group_size: int, is_symmetric: bool = False
) -> Callable[..., tuple[PackedMatrix, Tensor]]:
    def make(
        num_rows: int, num_columns: int, generator: torch.Generator
    ) -> tuple[PackedMatrix, Tensor]:
        size = group_size or num_columns
        shape = (num_rows, num_columns)
        codes = torch.randint(0, 1 << bits, shape, dtype=torch.uint8, generator=generator)
        groups = (num_rows, -(-num_columns // size))
        scales = (torch.rand(groups, generator=generator) * 0.01 + 0.001).half().float()
        zeros = torch.randint(0, 1 << bits, groups, generator=generator)
        offsets = -scales * ((1 << (bits - 1)) if is_symmetric else zeros)
        per_column = [
            numbers.repeat_interleave(size, dim=1)[:, :num_columns] for numbers in (scales, offsets)
        ]
        packed = tiles_pack.pack_affine(codes, bits, size, scales, offsets)
        return packed, codes * per_column[0] + per_column[1]

    return make


def _floats(dtype: torch.dtype) -> Callable[..., tuple[PackedMatrix, Tensor]]:
    def make(
        num_rows: int, num_columns: int, generator: torch.Generator
    ) -> tuple[PackedMatrix, Tensor]:
        weights = torch.randn(num_rows, num_columns, generator=generator).to(dtype)
        return tiles_pack.pack_floats(weights), weights.float()

    return make


KINDS: MappingProxyType[str, tuple[str, Callable[..., tuple[PackedMatrix, Tensor]]]] = (
    MappingProxyType(
        {
            "Q4_0": ("q4_0", _gguf(GGMLType.Q4_0)),
            "Q4_1": ("q4_1", _gguf(GGMLType.Q4_1)),
            "Q5_0": ("q5_0", _gguf(GGMLType.Q5_0)),
            "Q5_1": ("q5_1", _gguf(GGMLType.Q5_1)),
            "Q8_0": ("q8_0", _gguf(GGMLType.Q8_0)),
            "Q4_K": ("q4_k", _gguf(GGMLType.Q4_K)),
            "Q5_K": ("q5_k", _gguf(GGMLType.Q5_K)),
            "Q6_K": ("q6_k", _gguf(GGMLType.Q6_K)),
            "4 bits, groups of 32": ("q4_1", _affine(4, 32)),
            "4 bits, groups of 32, symmetric": ("q4_0", _affine(4, 32, is_symmetric=True)),
            "4 bits, groups of 64": ("int4", _affine(4, 64)),
            "4 bits, groups of 128": ("int4", _affine(4, 128, is_symmetric=True)),
            "3 bits, rows": ("int4", _affine(3, 0)),
            "8 bits, groups of 32": ("int8", _affine(8, 32)),
            "8 bits, groups of 32, symmetric": ("q8_0", _affine(8, 32, is_symmetric=True)),
            "8 bits, rows": ("int8", _affine(8, 0, is_symmetric=True)),
            "5 bits, groups of 64": ("int8", _affine(5, 64)),
            "float16": ("float16", _floats(torch.float16)),
            "bfloat16": ("bfloat16", _floats(torch.bfloat16)),
            "float32": ("float32", _floats(torch.float32)),
        }
    )
)
"""What is stored: the form of its tiles, and a maker of (tiles, float32 weights)."""

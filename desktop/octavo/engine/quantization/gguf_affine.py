"""The storage types of GGUF that are affine, taken apart into codes, scales and offsets."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.gguf import GGMLType
from octavo.engine.quantization.gguf import (
    block_scale,
    bytes_apart,
    fifth_bits,
    scales_and_minimums,
)

Parts = tuple[Tensor, Tensor, Tensor]
"""Codes [num_blocks, block elements], uint8; scales and offsets [num_blocks, groups], float32."""


def _nibbles(packed: Tensor) -> Tensor:
    """[..., 2 * n]: low nibbles, then high nibbles, of each row of [..., n]."""
    return torch.cat([packed & 0x0F, packed >> 4], dim=-1)


def _centred(codes: Tensor, scales: Tensor, zero: int) -> Parts:
    """Of types that subtract the same from all codes."""
    return codes, scales, scales * -zero


def _take_q4_0(blocks: Tensor) -> Parts:
    return _centred(_nibbles(blocks[:, 2:]), block_scale(blocks, 0), 8)


def _take_q4_1(blocks: Tensor) -> Parts:
    return _nibbles(blocks[:, 4:]), block_scale(blocks, 0), block_scale(blocks, 2)


def _take_q5_0(blocks: Tensor) -> Parts:
    codes = _nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])
    return _centred(codes, block_scale(blocks, 0), 16)


def _take_q5_1(blocks: Tensor) -> Parts:
    codes = _nibbles(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])
    return codes, block_scale(blocks, 0), block_scale(blocks, 2)


def _take_q8_0(blocks: Tensor) -> Parts:
    # Flipping the sign bit adds 128.
    return _centred(blocks[:, 2:] ^ 0x80, block_scale(blocks, 0), 128)


def _take_q2_k(blocks: Tensor) -> Parts:
    crumbs = bytes_apart(blocks[:, 16:80].reshape(-1, 2, 32), 0, 2, 4, 6) & 3
    scales = block_scale(blocks, 80) * (blocks[:, :16] & 0x0F)
    return crumbs.reshape(-1, 256), scales, -block_scale(blocks, 82) * (blocks[:, :16] >> 4)


def _take_q3_k(blocks: Tensor) -> Parts:
    crumbs = bytes_apart(blocks[:, 32:96].reshape(-1, 2, 32), 0, 2, 4, 6) & 3
    high = bytes_apart(blocks[:, :32], *range(8)) & 1
    codes = crumbs.reshape(-1, 256) | (high << 2).reshape(-1, 256)
    low_scales = bytes_apart(blocks[:, 96:104], 0, 4) & 0x0F
    high_scales = bytes_apart(blocks[:, 104:108], 0, 2, 4, 6) & 3
    packed = low_scales.reshape(-1, 16) | (high_scales << 4).reshape(-1, 16)
    return _centred(codes, block_scale(blocks, 108) * (packed.float() - 32), 4)


def _take_q4_k(blocks: Tensor) -> Parts:
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    return codes, block_scale(blocks, 0) * scales, -block_scale(blocks, 2) * minimums


def _take_q5_k(blocks: Tensor) -> Parts:
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 256)
    high = bytes_apart(blocks[:, 16:48], *range(8)) & 1
    codes = codes | (high << 4).reshape(-1, 256)
    return codes, block_scale(blocks, 0) * scales, -block_scale(blocks, 2) * minimums


def _take_q6_k(blocks: Tensor) -> Parts:
    low = bytes_apart(blocks[:, :128].reshape(-1, 2, 64), 0, 4) & 0x0F
    high = bytes_apart(blocks[:, 128:192].reshape(-1, 2, 32), 0, 2, 4, 6) & 3
    codes = low.reshape(-1, 256) | (high << 4).reshape(-1, 256)
    scales = block_scale(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return _centred(codes, scales, 32)


AFFINE_BLOCKS: Mapping[GGMLType, tuple[int, int, Callable[[Tensor], Parts]]] = MappingProxyType(
    {
        GGMLType.Q4_0: (4, 32, _take_q4_0),
        GGMLType.Q4_1: (4, 32, _take_q4_1),
        GGMLType.Q5_0: (5, 32, _take_q5_0),
        GGMLType.Q5_1: (5, 32, _take_q5_1),
        GGMLType.Q8_0: (8, 32, _take_q8_0),
        GGMLType.Q2_K: (2, 16, _take_q2_k),
        GGMLType.Q3_K: (3, 16, _take_q3_k),
        GGMLType.Q4_K: (4, 32, _take_q4_k),
        GGMLType.Q5_K: (5, 32, _take_q5_k),
        GGMLType.Q6_K: (6, 16, _take_q6_k),
    }
)
"""Bits of a code, size of a group, and what takes [num_blocks, block bytes], uint8, apart."""

"""Rounds weights to ggml's block types Q8_0 and Q4_0, bit for bit as llama.cpp does.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c, `quantize_row_q8_0_ref` and
`quantize_row_q4_0_ref`.
"""

import torch
from torch import Tensor

BLOCK_ELEMENTS = 32


def to_q8_0(values: Tensor) -> Tensor:
    """[num_elements], float32, to [num_blocks, 34], uint8: a float16 scale and 32 bytes."""
    blocks = values.view(-1, BLOCK_ELEMENTS)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    # Halves are rounded away from zero, as C's roundf does and torch does not. Taken apart first:
    # adding 0.5 itself could round up what lies just below a half.
    whole = scaled.trunc()
    rounded = whole + torch.trunc((scaled - whole) * 2)
    return torch.cat([_half_bytes(scale), rounded.to(torch.int8).view(torch.uint8)], dim=1)


def to_q4_0(values: Tensor) -> Tensor:
    """[num_elements], float32, to [num_blocks, 18], uint8: a float16 scale and 32 nibbles.

    The scale is that of the largest weight, whose sign it takes, so that this weight becomes -8.
    """
    blocks = values.view(-1, BLOCK_ELEMENTS)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8
    shifted = (blocks * _inverse(scale)).add_(8.5)
    codes = shifted.clamp_(0, 15.5).to(torch.uint8)
    # Byte j holds weight j below and weight j + 16 above.
    low, high = torch.split(codes, BLOCK_ELEMENTS // 2, dim=1)
    return torch.cat([_half_bytes(scale), low | (high << 4)], dim=1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1.0 / scale)


def _half_bytes(scale: Tensor) -> Tensor:
    """[num_blocks, 2], uint8."""
    return scale.to(torch.float16).view(torch.uint8)

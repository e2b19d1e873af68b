"""Activations as 8-bit integers, one scale for 32 of them, as quantised layers take them.

`tiles_forms` draws a row of them.
"""

from typing import Any

import numpy as np
import torch
from numba import float32, int32, njit
from torch import Tensor

from octavo.engine.kernels.cpu import simd
from octavo.engine.kernels.cpu.tiles_forms import (
    GROUP,
    GROUP_BYTES,
    MINUS_FIRST,
    MINUS_HALVES,
    MINUS_LAST,
    MINUS_TOTAL,
    SCALE,
    SUM,
)

TINY = 1e-30
"""A group of nothing larger counts as zeros: the inverse of its scale would overflow."""


def quantized_row_bytes(num_columns: int) -> int:
    """Of one row; columns behind the last count as zeros."""
    return -(-num_columns // GROUP) * GROUP_BYTES


@njit(nogil=True, error_model="numpy", cache=True)
def quantize_group(first: Any, last: Any, target: Any) -> None:
    """Writes the cache line of one group.

    Args:
        first: sixteen float32, the first half.
        last: the second half.
        target: address of the cache line.
    """
    largest = simd.max_f32(simd.maximum(simd.absolute(first), simd.absolute(last)))
    inverse = float32(127.0) / largest if largest > float32(TINY) else float32(0.0)
    scale = largest / float32(127.0)
    factor = simd.splat_f32(inverse)
    first_codes = simd.to_i32(simd.mul(first, factor))
    last_codes = simd.to_i32(simd.mul(last, factor))
    simd.store_i8(target, first_codes)
    simd.store_i8(simd.at(target, 16), last_codes)
    first_total, last_total = simd.sum_i32(first_codes), simd.sum_i32(last_codes)
    total = int32(first_total + last_total)
    simd.write_f32(simd.at(target, SCALE), scale)
    simd.write_f32(simd.at(target, SUM), scale * float32(total))
    simd.write_i32(simd.at(target, MINUS_TOTAL), int32(-total))
    simd.write_i32(simd.at(target, MINUS_FIRST), int32(-first_total))
    simd.write_i32(simd.at(target, MINUS_LAST), int32(-last_total))
    halves = (-first_total & 0xFFFF) | (-last_total << 16)
    simd.write_i32(simd.at(target, MINUS_HALVES), int32(halves))


@njit(nogil=True, error_model="numpy", cache=True)
def quantize_row(source: Any, num_columns: int, target: Any) -> None:
    """Quantises a row.

    Args:
        source: address of `num_columns` float32, none of them NaN or infinite.
        num_columns: any number.
        target: address of `quantized_row_bytes(num_columns)` bytes.
    """
    num_whole = num_columns >> 5
    for group in range(num_whole):
        place = simd.at(source, group << 7)
        quantize_group(
            simd.load_f32(place), simd.load_f32(simd.at(place, 64)), simd.at(target, group << 6)
        )
    rest = num_columns & 31
    if rest:
        place = simd.at(source, num_whole << 7)
        quantize_group(
            simd.load_first_f32(place, min(rest, 16), float32(0.0)),
            simd.load_first_f32(simd.at(place, 64), max(rest - 16, 0), float32(0.0)),
            simd.at(target, num_whole << 6),
        )


@njit(nogil=True, error_model="numpy", cache=True)
def _quantize_rows(
    source: Any, source_stride: int, num_rows: int, num_columns: int, target: Any, stride: int
) -> None:
    for row in range(num_rows):
        quantize_row(
            simd.at(source, row * source_stride), num_columns, simd.at(target, row * stride)
        )


def quantize_rows(activations: Tensor) -> Tensor:
    """What `quantize` does, by the kernel.

    Args:
        activations: [num_tokens, num_columns], float32, each row contiguous.
    """
    num_tokens, num_columns = activations.shape
    stride = quantized_row_bytes(num_columns)
    quantized = torch.zeros(num_tokens, stride, dtype=torch.uint8)
    _quantize_rows(
        np.uint64(activations.data_ptr()),
        activations.stride(0) * activations.element_size(),
        num_tokens,
        num_columns,
        np.uint64(quantized.data_ptr()),
        stride,
    )
    return quantized


def quantize(activations: Tensor) -> Tensor:
    """The twin in plain torch of `quantize_row`, bit for bit.

    Args:
        activations: [num_tokens, num_columns], float32.

    Returns:
        [num_tokens, quantized_row_bytes(num_columns)], uint8.
    """
    num_tokens, num_columns = activations.shape
    padded = torch.nn.functional.pad(activations, (0, -num_columns % GROUP))
    groups = padded.view(num_tokens, -1, GROUP)
    largest = groups.abs().amax(dim=2)
    # Not 127.0 / largest, which torch rounds twice.
    inverse = torch.where(largest > TINY, torch.tensor(127.0) / largest, torch.zeros(()))
    codes = (groups * inverse[:, :, None]).round().to(torch.int8)
    halves = codes.view(*codes.shape[:2], 2, 16).sum(dim=3, dtype=torch.int32)
    totals = halves.sum(dim=2, dtype=torch.int32)
    scales = largest / 127.0
    lines = torch.zeros(*codes.shape[:2], GROUP_BYTES, dtype=torch.uint8)
    lines[:, :, :GROUP] = codes.view(torch.uint8)
    numbers = lines.view(torch.float32)
    numbers[:, :, SCALE // 4] = scales
    numbers[:, :, SUM // 4] = scales * totals
    integers = lines.view(torch.int32)
    integers[:, :, MINUS_TOTAL // 4] = -totals
    integers[:, :, MINUS_FIRST // 4 : MINUS_LAST // 4 + 1] = -halves
    words = lines.view(torch.int16)
    words[:, :, MINUS_HALVES // 2 : MINUS_HALVES // 2 + 2] = -halves.to(torch.int16)
    return lines.flatten(1)


def dequantize(quantized: Tensor, num_columns: int) -> Tensor:
    """[num_tokens, num_columns], float32: what kernels multiply by."""
    lines = quantized.view(len(quantized), -1, GROUP_BYTES)
    codes = lines[:, :, :GROUP].view(torch.int8).float()
    scales = lines.view(torch.float32)[:, :, SCALE // 4]
    return (codes * scales[:, :, None]).flatten(1)[:, :num_columns]

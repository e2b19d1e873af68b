"""Packs weights into tiles: blocks of GGUF as they are stored, integers in groups, floating point.

GGUF's integers and scales are only moved, never computed anew.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.kernels.cpu.tiles import PackedMatrix, empty_matrix
from octavo.engine.kernels.cpu.tiles_forms import GROUP, TILE_ROWS
from octavo.engine.kernels.cpu.tiles_interleave import interleave_rows

_SLAB_BYTES = 1 << 20
"""Rows are packed a few at a time, so that what is between stays in the cache."""

_FLOAT_FORMS = MappingProxyType(
    {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
)

_Planes = Mapping[str, Tensor]
"""Each [number of rows, number of groups, elements for a row], any integer or floating type."""


def pack_gguf(raw: Tensor, ggml_type: GGMLType, num_columns: int) -> PackedMatrix:
    """Packs rows of blocks.

    Args:
        raw: [num_rows, row_bytes], uint8, as the file has it.
        ggml_type: one of `GGUF_FORMS`.
        num_columns: a multiple of the type's block.
    """
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    assert raw.shape[1] == num_columns // block_elements * block_bytes, "whole blocks"
    if ggml_type in _GGUF_FLOATS:
        return pack_floats(raw.view(_GGUF_FLOATS[ggml_type]))
    form, take_apart = GGUF_FORMS[ggml_type]
    matrix = empty_matrix(form, len(raw), num_columns)
    for first, rows in _slabs(raw):
        _write(matrix, first, take_apart(rows.view(len(rows), -1, block_bytes)))
    return matrix


def pack_affine(
    codes: Tensor, bits: int, group_size: int, scales: Tensor, offsets: Tensor
) -> PackedMatrix:
    """Packs integers in groups: w = scale * code + offset.

    Args:
        codes: [num_rows, num_columns], uint8, 0 to 2 ** bits - 1.
        bits: up to 8; more than 4 take a byte each.
        group_size: columns of a group, a multiple of 32; or at least `num_columns`.
        scales: [num_rows, number of groups], float32.
        offsets: as scales.

    Raises:
        ValueError: groups of this size do not fit tiles.
    """
    num_rows, num_columns = codes.shape
    padded = -(-num_columns // GROUP) * GROUP
    if group_size >= num_columns:
        group_size = padded
    if group_size % GROUP:
        raise ValueError(f"Groups of {group_size} columns do not fit tiles of {GROUP} columns.")
    repeats = 1
    while padded % (group_size // repeats):
        # The last group is not whole: all are halved until they divide the columns.
        repeats *= 2
        if group_size // repeats % GROUP:
            raise ValueError(f"Groups of {group_size} columns do not divide {num_columns:,} ones.")
    bits_each, centre = (4, 0) if bits <= 4 else (8, 128)
    scales, offsets = scales.float(), offsets.float()
    form = _affine_form(bits_each, group_size, scales, offsets)
    matrix = empty_matrix(form, num_rows, num_columns, group_size // repeats)
    kind = torch.float32 if form.startswith("int") else torch.float16
    num_groups = padded // matrix.group_size
    for first, rows in _slabs(codes):
        parts = {}
        for name, numbers in (("scales", scales), ("offsets", offsets + centre * scales)):
            whole = _whole_tiles(numbers[first : first + len(rows)].to(kind))
            parts[name] = whole.repeat_interleave(repeats, dim=1)[:, :num_groups, None]
        grouped = torch.nn.functional.pad(rows, (0, padded - num_columns)).unflatten(1, (-1, GROUP))
        # Bytes are signed in tiles: 128 less, and so much more in the offset.
        parts["codes"] = _to_nibbles(grouped) if bits_each == 4 else grouped ^ 128
        places = {plane.name for plane in matrix.form.planes}
        _write(matrix, first, {name: parts[name] for name in parts if name in places})
    return matrix


def _affine_form(bits: int, group_size: int, scales: Tensor, offsets: Tensor) -> str:
    """The smallest form for integers in groups.

    For groups of 32 those of GGUF hold float16 scales; they are taken if that changes no scale, and
    if an offset is none, or is rounded by less than a hundredth of a step.
    """
    if group_size == GROUP and torch.equal(scales.half().float(), scales):
        if torch.equal(offsets, -(1 << (bits - 1)) * scales):
            return f"q{bits}_0"
        errors = (offsets.half().float() - offsets).abs()
        if bits == 4 and bool((errors <= scales.abs() / 100).all()):
            return "q4_1"
    return f"int{bits}"


def pack_floats(weights: Tensor) -> PackedMatrix:
    """Packs [num_rows, num_columns], float16, bfloat16 or float32.

    Raises:
        ValueError: the number of columns is odd.
    """
    num_rows, num_columns = weights.shape
    if num_columns % 2:
        raise ValueError(f"{num_columns:,} columns are an odd number; tiles have them in pairs.")
    matrix = empty_matrix(_FLOAT_FORMS[weights.dtype], num_rows, num_columns)
    for first, rows in _slabs(weights):
        _write(matrix, first, {"codes": rows[:, :, None]})
    return matrix


def _slabs(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Whole tiles of rows, the last with zeros in place of missing rows, and their first row."""
    row_bytes = max(1, rows.shape[1] * rows.element_size())
    size = max(1, _SLAB_BYTES // (row_bytes * TILE_ROWS)) * TILE_ROWS
    for first in range(0, len(rows), size):
        yield first, _whole_tiles(rows[first : first + size])


def _whole_tiles(rows: Tensor) -> Tensor:
    missing = -len(rows) % TILE_ROWS
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _write(matrix: PackedMatrix, first_row: int, planes: _Planes) -> None:
    """Writes planes of whole tiles."""
    for name, plane in planes.items():
        num_rows, num_groups, size = plane.shape
        element_bytes = plane.element_size()
        if size * element_bytes % 4 == 0 and element_bytes == 1:
            # Four bytes of each row beside the next row's.
            size, element_bytes = size // 4, 4
        if plane.stride(2) != 1:
            plane = plane.contiguous()
        target = matrix.plane(name)[first_row // TILE_ROWS :]
        _, num_records, num_parts, _ = target.shape
        interleave_rows(
            np.uint64(plane.data_ptr()),
            plane.stride(0) * plane.element_size(),
            plane.stride(1) * plane.element_size(),
            num_rows // TILE_ROWS,
            num_records,
            num_parts,
            num_groups // (num_records * num_parts),
            size,
            element_bytes,
            np.uint64(target.data_ptr()),
            *target.stride()[:3],
        )


def _to_nibbles(codes: Tensor) -> Tensor:
    """[..., 32], uint8 below 16, to [..., 4], int32: the second half in the upper nibbles."""
    words = codes.contiguous().view(torch.int32)
    return words[..., :4] | (words[..., 4:] << 4)


def _halves(blocks: Tensor, start: int) -> Tensor:
    """[num_rows, num_blocks, 1], int16: a float16 of each block, as its bits."""
    return blocks[:, :, start : start + 2].contiguous().view(torch.int16)


def _take_q4_0(blocks: Tensor) -> _Planes:
    return {"scales": _halves(blocks, 0), "codes": blocks[:, :, 2:]}


def _take_q4_1(blocks: Tensor) -> _Planes:
    return {
        "scales": _halves(blocks, 0),
        "offsets": _halves(blocks, 2),
        "codes": blocks[:, :, 4:],
    }


def _take_q5_0(blocks: Tensor) -> _Planes:
    return {
        "scales": _halves(blocks, 0),
        "high": _by_byte(blocks[:, :, 2:6]),
        "codes": blocks[:, :, 6:],
    }


def _take_q5_1(blocks: Tensor) -> _Planes:
    return {
        "scales": _halves(blocks, 0),
        "offsets": _halves(blocks, 2),
        "high": _by_byte(blocks[:, :, 4:8]),
        "codes": blocks[:, :, 8:],
    }


def _take_q8_0(blocks: Tensor) -> _Planes:
    return {"scales": _halves(blocks, 0), "codes": blocks[:, :, 2:]}


def _take_q4_k(blocks: Tensor) -> _Planes:
    # d 2, dmin 2, scales and minimums 12, quants 128
    return {**_k_scales(blocks), "codes": _k_nibbles(blocks[:, :, 16:])}


def _take_q5_k(blocks: Tensor) -> _Planes:
    # d 2, dmin 2, scales and minimums 12, high bits 32, quants 128
    return {
        **_k_scales(blocks),
        "high": blocks[:, :, 16:48],
        "codes": _k_nibbles(blocks[:, :, 48:]),
    }


def _take_q6_k(blocks: Tensor) -> _Planes:
    # low nibbles 128, high crumbs 64, scales 16, d 2
    num_rows = len(blocks)
    # Of each 128 columns: 32 of the first and third groups, 32 of the second and fourth.
    low = blocks[:, :, :128].contiguous().view(torch.int32).unflatten(2, (2, 2, 2, 4))
    pairs = _nibbles_of_two_groups(low[..., 0, :], low[..., 1, :])
    high = blocks[:, :, 128:192].contiguous().view(torch.int32).unflatten(2, (2, 1, 2, 4))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.int32)[:, None, None]
    # Step s of a half group lies at the bits 2s; four steps of four columns make a word.
    steps = ((high >> shifts) & 0x03030303) << torch.tensor([0, 2, 4, 6], dtype=torch.int32)
    crumbs = steps[..., 0] | steps[..., 1] | steps[..., 2] | steps[..., 3]
    return {
        "codes": pairs.transpose(3, 4).reshape(num_rows, -1, 4),
        "high": crumbs.reshape(num_rows, -1, 2),
        "scales": blocks[:, :, 192:208].reshape(num_rows, -1, 1),
        "factors": _halves(blocks, 208),
    }


def _by_byte(packed: Tensor) -> Tensor:
    """The bits of 32 columns, moved so that bit s of byte i is that of column 4s + i.

    Args:
        packed: [num_rows, num_groups, 4], uint8: bit c of the word is that of column c.
    """
    words = packed.contiguous().view(torch.int32)
    out = torch.empty_like(packed, memory_format=torch.contiguous_format)
    for index in range(4):
        bits = (words >> index) & 0x11111111
        bits = (bits | bits >> 3) & 0x03030303
        bits = (bits | bits >> 6) & 0x000F000F
        out[:, :, index] = ((bits | bits >> 12) & 0xFF)[:, :, 0]
    return out


def _k_nibbles(packed: Tensor) -> Tensor:
    """[num_rows, 8 * num_blocks, 4], int32: each group's nibbles in words of its own.

    Args:
        packed: [num_rows, num_blocks, 128], uint8: two groups in each 32 bytes.
    """
    words = packed.contiguous().view(torch.int32).unflatten(2, (4, 2, 4))
    return _nibbles_of_two_groups(words[..., 0, :], words[..., 1, :]).reshape(len(packed), -1, 4)


def _nibbles_of_two_groups(first: Tensor, last: Tensor) -> Tensor:
    """[..., 2, n], int32: low nibbles of both as one group, high ones as the next.

    Args:
        first: [..., n], int32: words of the first sixteen columns of both groups.
        last: as first, of the last sixteen.
    """
    low, high = 0x0F0F0F0F, -0x0F0F0F10
    even = (first & low) | ((last & low) << 4)
    odd = ((first >> 4) & low) | (last & high)
    return torch.stack([even, odd], dim=-2)


def _k_scales(blocks: Tensor) -> _Planes:
    """What `linear_emit` reads: 12 bytes of each row, and the two factors."""
    first, second, third = (blocks[:, :, start : start + 4] for start in (4, 8, 12))
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 0x30)], dim=2)
    minimums = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 0x30)], dim=2)
    upper = (minimums[:, :, ::2] >> 2) | (minimums[:, :, 1::2] >> 2 << 4)
    packed = torch.cat([scales | (minimums << 6), upper], dim=2)
    num_rows = len(blocks)
    return {
        # One byte of each row after the other, not four.
        "scales": packed.reshape(num_rows, -1, 1),
        "factors": blocks[:, :, :4].contiguous().view(torch.int16).reshape(num_rows, -1, 1),
    }


GGUF_FORMS: Mapping[GGMLType, tuple[str, Callable[[Tensor], _Planes]]] = MappingProxyType(
    {
        GGMLType.Q4_0: ("q4_0", _take_q4_0),
        GGMLType.Q4_1: ("q4_1", _take_q4_1),
        GGMLType.Q5_0: ("q5_0", _take_q5_0),
        GGMLType.Q5_1: ("q5_1", _take_q5_1),
        GGMLType.Q8_0: ("q8_0", _take_q8_0),
        GGMLType.Q4_K: ("q4_k", _take_q4_k),
        GGMLType.Q5_K: ("q5_k", _take_q5_k),
        GGMLType.Q6_K: ("q6_k", _take_q6_k),
    }
)
"""Quantised types of GGUF: the form of their tiles, and how a row's blocks come apart."""

_GGUF_FLOATS = MappingProxyType(
    {
        GGMLType.F16: torch.float16,
        GGMLType.BF16: torch.bfloat16,
        GGMLType.F32: torch.float32,
    }
)
PACKABLE_GGUF_TYPES = frozenset(GGUF_FORMS) | frozenset(_GGUF_FLOATS)
"""Types of GGUF that have a form of tiles."""

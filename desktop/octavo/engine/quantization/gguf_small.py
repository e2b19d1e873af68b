"""Unpacks the storage types of GGUF files below four bits that look numbers up, and FP4.

As in `gguf`: from [num_blocks, block bytes], uint8, to [num_blocks, block elements], float32, with
the operations in ggml's order, so that every bit is the same.
"""

import base64
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.gguf import GGMLType
from octavo.engine.quantization import gguf_grids
from octavo.engine.quantization.gguf_grids import PackedGrid

_FP4_TWICE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The numbers of E2M1, doubled."""
_IQ1_DELTA = 0.125


@cache
def _grid(packed: PackedGrid, device: torch.device) -> Tensor:
    """[num_rows, row_length], float32."""
    raw = torch.frombuffer(bytearray(base64.b85decode(packed.packed)), dtype=torch.uint8)
    shifts = torch.arange(0, 8, packed.bits, dtype=torch.uint8)
    indices = (raw[:, None] >> shifts) & ((1 << packed.bits) - 1)
    values = torch.tensor(packed.values, dtype=torch.float32)
    return values[indices.flatten().int()].view(packed.num_rows, packed.row_length).to(device)


@cache
def _signs(device: torch.device) -> Tensor:
    """[256, 8], float32: 1 or -1 for the bits of a byte, lowest first."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return (1.0 - 2.0 * bits).to(device)


@cache
def _even_signs(device: torch.device) -> Tensor:
    """[128, 8]: as `_signs` for seven bits; the eighth makes the number of ones even."""
    numbers = torch.arange(128)
    ones = ((numbers[:, None] >> torch.arange(7)) & 1).sum(dim=1)
    return _signs(device)[(numbers | (ones % 2) << 7).to(device)]


@cache
def _fp4(device: torch.device) -> Tensor:
    return torch.tensor(_FP4_TWICE, dtype=torch.float32, device=device)


def _scale(blocks: Tensor, offset: int) -> Tensor:
    """[num_blocks, 1], float32: the float16 at a place of each block."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def _words(raw: Tensor, num_bytes: int) -> Tensor:
    """[num_blocks, n], int32: little-endian words of 2 or 4 bytes; those of 2 are not negative."""
    if num_bytes == 4:
        return raw.clone(memory_format=torch.contiguous_format).view(torch.int32)
    return raw.contiguous().view(torch.int16).int() & 0xFFFF


def _bits(packed: Tensor, width: int, *shifts: int) -> Tensor:
    """[..., n * len(shifts)]: fields of each entry, side by side.

    Args:
        packed: [..., n], any integer type.
        width: of a field, in bits.
        shifts: where the fields begin.
    """
    places = torch.tensor(shifts, dtype=packed.dtype, device=packed.device)
    return ((packed[..., None] >> places) & ((1 << width) - 1)).flatten(-2)


def _nibble_factors(blocks: Tensor, scales: Tensor) -> Tensor:
    """[num_blocks, 2 * n]: of IQ2_XS and IQ2_S, a factor for every 16 values."""
    return _scale(blocks, 0) * (0.5 + _bits(scales, 4, 0, 4)) * 0.25


def _write(out: Tensor, factors: Tensor, values: Tensor, signs: Tensor) -> None:
    """Multiplies values by the factors of their groups, then by their signs."""
    groups = out.view(*factors.shape, -1)
    torch.mul(factors[..., None], values.view(groups.shape), out=groups)
    groups.mul_(signs.view(groups.shape))


def _unpack_iq2_xxs(blocks: Tensor, out: Tensor) -> None:
    # d 2, then for every 32 values: rows 4, signs and scale 4
    pairs = blocks[:, 2:].reshape(-1, 8, 8)
    words = _words(pairs[..., 4:].flatten(1), 4)
    factors = _scale(blocks, 0) * (0.5 + _bits(words, 4, 28)) * 0.25
    signs = _even_signs(blocks.device)[_bits(words, 7, 0, 7, 14, 21)]
    _write(out, factors, _grid(gguf_grids.IQ2_XXS, blocks.device)[pairs[..., :4].int()], signs)


def _unpack_iq2_xs(blocks: Tensor, out: Tensor) -> None:
    # d 2, rows and signs 64, scales 8
    words = _words(blocks[:, 2:66], 2)
    signs = _even_signs(blocks.device)[words >> 9]
    values = _grid(gguf_grids.IQ2_XS, blocks.device)[words & 511]
    _write(out, _nibble_factors(blocks, blocks[:, 66:]), values, signs)


def _unpack_iq2_s(blocks: Tensor, out: Tensor) -> None:
    # d 2, rows 32, signs 32, high bits of rows 8, scales 8
    rows = blocks[:, 2:34].int() | _bits(blocks[:, 66:74], 2, 0, 2, 4, 6).int() << 8
    signs = _signs(blocks.device)[blocks[:, 34:66].int()]
    values = _grid(gguf_grids.IQ2_S, blocks.device)[rows]
    _write(out, _nibble_factors(blocks, blocks[:, 74:]), values, signs)


def _unpack_iq3_xxs(blocks: Tensor, out: Tensor) -> None:
    # d 2, rows 64, signs and scales 32
    words = _words(blocks[:, 66:], 4)
    factors = _scale(blocks, 0) * (0.5 + _bits(words, 4, 28)) * 0.5
    signs = _even_signs(blocks.device)[_bits(words, 7, 0, 7, 14, 21)]
    values = _grid(gguf_grids.IQ3_XXS, blocks.device)[blocks[:, 2:66].int()]
    _write(out, factors, values, signs)


def _unpack_iq3_s(blocks: Tensor, out: Tensor) -> None:
    # d 2, rows 64, high bits of rows 8, signs 32, scales 4
    rows = blocks[:, 2:66].int() | _bits(blocks[:, 66:74], 1, *range(8)).int() << 8
    factors = _scale(blocks, 0) * (1 + 2 * _bits(blocks[:, 106:], 4, 0, 4))
    signs = _signs(blocks.device)[blocks[:, 74:106].int()]
    _write(out, factors, _grid(gguf_grids.IQ3_S, blocks.device)[rows], signs)


def _unpack_iq1_s(blocks: Tensor, out: Tensor) -> None:
    # d 2, rows 32, then for every 32 values 2: high bits of rows, scale, sign of the shift
    words = _words(blocks[:, 34:], 2)
    rows = blocks[:, 2:34].int() | _bits(words, 3, 0, 3, 6, 9) << 8
    factors = _scale(blocks, 0) * (2 * _bits(words, 3, 12) + 1)
    shifts = torch.where(words >> 15 == 0, _IQ1_DELTA, -_IQ1_DELTA)
    values = _grid(gguf_grids.IQ1_S, blocks.device)[rows].view(-1, 8, 32)
    torch.mul(factors[..., None], values + shifts[..., None], out=out.view(-1, 8, 32))


def _unpack_iq1_m(blocks: Tensor, out: Tensor) -> None:
    # rows 32, high bits of rows and signs of shifts 16, scales 8, in whose top bits d lies
    words = _words(blocks[:, 48:], 2)
    tops = (words >> 12) << torch.tensor([0, 4, 8, 12], dtype=torch.int32, device=blocks.device)
    scale = tops.sum(dim=1, keepdim=True).to(torch.int16).view(torch.float16).float()
    factors = scale * (2 * _bits(words, 3, 0, 3, 6, 9) + 1)
    nibbles = _bits(blocks[:, 32:48], 4, 0, 4).int()
    rows = blocks[:, :32].int() | (nibbles & 7) << 8
    shifts = torch.where(nibbles & 8 == 0, _IQ1_DELTA, -_IQ1_DELTA)
    values = _grid(gguf_grids.IQ1_S, blocks.device)[rows] + shifts[..., None]
    torch.mul(factors[..., None], values.view(-1, 16, 16), out=out.view(-1, 16, 16))


def _trits(packed: Tensor, num_digits: int) -> Tensor:
    """[num_blocks, num_digits * n], uint8: base-3 digits 0 to 2, all first ones first.

    Args:
        packed: [num_blocks, n], uint8: fractions of 256 whose digits come out on top.
        num_digits: in a byte.
    """
    powers = torch.tensor([3**i for i in range(num_digits)], dtype=torch.uint8)
    shifted = packed[:, None, :] * powers.to(packed.device)[:, None]
    return ((shifted.int() * 3) >> 8).flatten(1)


def _unpack_tq1_0(blocks: Tensor, out: Tensor) -> None:
    # five digits a byte 32 and 16, four digits a byte 4, d 2
    digits = [
        _trits(blocks[:, :32], 5),
        _trits(blocks[:, 32:48], 5),
        _trits(blocks[:, 48:52], 4),
    ]
    out.copy_(torch.cat(digits, dim=1)).sub_(1).mul_(_scale(blocks, 52))


def _unpack_tq2_0(blocks: Tensor, out: Tensor) -> None:
    # crumbs 64, d 2
    places = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)[:, None]
    crumbs = (blocks[:, :64].reshape(-1, 2, 1, 32) >> places) & 3
    out.copy_(crumbs.view(-1, 256)).sub_(1).mul_(_scale(blocks, 64))


def _unpack_q1_0(blocks: Tensor, out: Tensor) -> None:
    # d 2, signs 16: a bit that is not set means minus
    signs = _bits(blocks[:, 2:], 1, *range(8)).float()
    out.copy_(signs).mul_(2).sub_(1).mul_(_scale(blocks, 0))


def _unpack_mxfp4(blocks: Tensor, out: Tensor) -> None:
    # exponent 1, nibbles 16
    exponents = blocks[:, :1].int()
    # Half of 2 ** (e - 127), because the numbers are doubled; the first two are subnormal.
    bits = torch.where(exponents < 2, 0x00200000 << exponents, (exponents - 1) << 23)
    nibbles = torch.cat([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], dim=1)
    torch.mul(_fp4(blocks.device)[nibbles.int()], bits.view(torch.float32), out=out)


def _unpack_nvfp4(blocks: Tensor, out: Tensor) -> None:
    # a scale without sign (E4M3) for every 16 values 4, nibbles 32
    codes = blocks[:, :4].int()
    exponents, mantissas = codes >> 3 & 15, (codes & 7).float()
    normal = (1 + mantissas / 8) * torch.exp2(exponents.float() - 7)
    factors = torch.where(exponents == 0, mantissas * 2**-9, normal) * 0.5
    factors = factors.masked_fill((codes == 0) | (codes == 0x7F), 0.0)
    packed = blocks[:, 4:].reshape(-1, 4, 8)
    nibbles = torch.cat([packed & 15, packed >> 4], dim=2)
    values = _fp4(blocks.device)[nibbles.int()]
    torch.mul(factors[..., None], values, out=out.view(-1, 4, 16))


SMALL_UNPACKERS: Mapping[GGMLType, Callable[[Tensor, Tensor], None]] = MappingProxyType(
    {
        GGMLType.IQ1_S: _unpack_iq1_s,
        GGMLType.IQ1_M: _unpack_iq1_m,
        GGMLType.IQ2_XXS: _unpack_iq2_xxs,
        GGMLType.IQ2_XS: _unpack_iq2_xs,
        GGMLType.IQ2_S: _unpack_iq2_s,
        GGMLType.IQ3_XXS: _unpack_iq3_xxs,
        GGMLType.IQ3_S: _unpack_iq3_s,
        GGMLType.TQ1_0: _unpack_tq1_0,
        GGMLType.TQ2_0: _unpack_tq2_0,
        GGMLType.MXFP4: _unpack_mxfp4,
        GGMLType.NVFP4: _unpack_nvfp4,
        GGMLType.Q1_0: _unpack_q1_0,
    }
)
"""From [num_blocks, block bytes], uint8, to [num_blocks, block elements], float32."""

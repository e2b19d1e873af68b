"""Unpacks the storage types of GGUF files in plain torch, bit for bit as ggml defines them.

A tensor is a row of blocks; each block holds 32 or 256 values and their scales. The unpackers
below take many blocks at once and write float32, because every scale is applied in float32.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.model_config import unsupported_type
from octavo.engine.quantization.gguf_small import SMALL_UNPACKERS

SLAB_ELEMENTS = 1 << 18
"""Values unpacked at a time: their float32 form stays in a core's cache."""
DEVICE_SLAB_ELEMENTS = 1 << 24
"""The same on an accelerator, where few large steps are faster."""

_NONLINEAR_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 4-bit numbers of IQ4_NL and IQ4_XS stand for."""


def dequantize(
    raw: Tensor, ggml_type: GGMLType, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Unpacks one whole tensor into new memory.

    Args:
        raw: [num_bytes], uint8, as the file has it.
        ggml_type: how the bytes are to be read.
        shape: of the tensor, outermost first.
        dtype: of the result.

    Raises:
        UnsupportedModelError: the storage type is not one Octavo unpacks.
    """
    out = torch.empty(shape, dtype=dtype, device=raw.device)
    dequantize_into(out, raw, ggml_type)
    return out


def dequantize_into(out: Tensor, raw: Tensor, ggml_type: GGMLType) -> bool:
    """Unpacks a tensor, or whole rows of one, into memory that is already there.

    Works through slabs, so that beside `out` only a few megabytes are needed.

    Args:
        out: contiguous, of any shape and floating type.
        raw: [num_bytes], uint8, on the device of `out`.
        ggml_type: how the bytes are to be read.

    Returns:
        Whether all values are finite, also after the rounding to the type of `out`.

    Raises:
        UnsupportedModelError: the storage type is not one Octavo unpacks.
    """
    is_finite = torch.ones((), dtype=torch.bool, device=out.device)
    for target in _unpack_slabs(out, raw, ggml_type):
        # One infinity or NaN makes the sum infinite or NaN; weights are far too small to do so.
        is_finite &= torch.sum(target, dtype=torch.float32).isfinite()
    return bool(is_finite)


def unpack_blocks_into(out: Tensor, raw: Tensor, ggml_type: GGMLType) -> None:
    """As `dequantize_into`, of values that are known to be finite."""
    for _ in _unpack_slabs(out, raw, ggml_type):
        pass


def _unpack_slabs(out: Tensor, raw: Tensor, ggml_type: GGMLType) -> Iterator[Tensor]:
    """Yields [num_blocks, block_elements], parts of `out`, each when it is filled."""
    unpack = UNPACKERS.get(ggml_type)
    if unpack is None:
        raise unsupported_type(ggml_type, "The tensor")
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    values = out.view(-1, block_elements)
    blocks = raw.view(-1, block_bytes)
    assert len(values) == len(blocks), "raw has as many blocks as out"
    slab_elements = SLAB_ELEMENTS if out.device.type == "cpu" else DEVICE_SLAB_ELEMENTS
    slab_blocks = max(1, slab_elements // block_elements)
    scratch = None
    if out.dtype != torch.float32:
        size = (min(slab_blocks, len(blocks)), block_elements)
        scratch = torch.empty(size, dtype=torch.float32, device=out.device)
    for start in range(0, len(blocks), slab_blocks):
        source = blocks[start : start + slab_blocks]
        target = values[start : start + slab_blocks]
        if scratch is None:
            unpack(source, target)
        else:
            unpacked = scratch[: len(target)]
            unpack(source, unpacked)
            target.copy_(unpacked)
        yield target


def block_scale(blocks: Tensor, offset: int) -> Tensor:
    """[num_blocks, 1], float32: the float16 at a place of each block."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def _write_nibbles(packed: Tensor, out: Tensor) -> None:
    """Writes low nibbles to the first half and high nibbles to the second half of each row.

    Args:
        packed: [..., n], uint8.
        out: [..., 2 * n], float32.
    """
    half = packed.shape[-1]
    out[..., :half] = packed & 0x0F
    out[..., half:] = packed >> 4


def _shifts(device: torch.device, *bits: int) -> Tensor:
    """[len(bits), 1], uint8: to take a byte apart along a new dimension."""
    return torch.tensor(bits, dtype=torch.uint8, device=device)[:, None]


def bytes_apart(packed: Tensor, *shifts: int) -> Tensor:
    """[..., len(shifts), n], uint8: [..., n] shifted right by each, the rest of the bits kept."""
    return packed[..., None, :] >> _shifts(packed.device, *shifts)


def fifth_bits(packed: Tensor) -> Tensor:
    """[num_blocks, 32], uint8: 16 where bit j of the four bytes is set, else 0."""
    bits = packed[:, :, None] >> _shifts(packed.device, *range(8))[:, 0]
    return (bits.flatten(1) & 1) << 4


def scales_and_minimums(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Takes apart the eight 6-bit scales and minimums of Q4_K and Q5_K.

    Args:
        packed: [num_blocks, 12], uint8.

    Returns:
        Twice [num_blocks, 8], uint8.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)], dim=1)
    minimums = torch.cat([second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)], dim=1)
    return scales, minimums


def _unpack_f32(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.float32))


def _unpack_f16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.float16))


def _unpack_bf16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.bfloat16))


def _unpack_q4_0(blocks: Tensor, out: Tensor) -> None:
    _write_nibbles(blocks[:, 2:], out)
    out.sub_(8).mul_(block_scale(blocks, 0))


def _unpack_q4_1(blocks: Tensor, out: Tensor) -> None:
    _write_nibbles(blocks[:, 4:], out)
    out.mul_(block_scale(blocks, 0)).add_(block_scale(blocks, 2))


def _unpack_q5_0(blocks: Tensor, out: Tensor) -> None:
    _write_nibbles(blocks[:, 6:], out)
    out.add_(fifth_bits(blocks[:, 2:6])).sub_(16).mul_(block_scale(blocks, 0))


def _unpack_q5_1(blocks: Tensor, out: Tensor) -> None:
    _write_nibbles(blocks[:, 8:], out)
    out.add_(fifth_bits(blocks[:, 4:8])).mul_(block_scale(blocks, 0)).add_(block_scale(blocks, 2))


def _unpack_q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(block_scale(blocks, 0))


def _unpack_q2_k(blocks: Tensor, out: Tensor) -> None:
    # scales 16, quants 64, d 2, dmin 2
    scales = blocks[:, :16]
    crumbs = blocks[:, 16:80].reshape(-1, 2, 1, 32) >> _shifts(blocks.device, 0, 2, 4, 6)
    factors = block_scale(blocks, 80) * (scales & 0x0F)
    minimums = block_scale(blocks, 82) * (scales >> 4)
    groups = out.view(-1, 16, 16)
    groups.copy_((crumbs & 3).view(-1, 16, 16))
    groups.mul_(factors[:, :, None]).sub_(minimums[:, :, None])


def _unpack_q3_k(blocks: Tensor, out: Tensor) -> None:
    # mask of high bits 32, quants 64, scales 12, d 2
    device = blocks.device
    crumbs = blocks[:, 32:96].reshape(-1, 2, 1, 32) >> _shifts(device, 0, 2, 4, 6)
    high = blocks[:, None, :32] >> _shifts(device, *range(8))
    # A bit that is not set means: four less.
    quants = (crumbs & 3).view(-1, 256) + ((high & 1) << 2).view(-1, 256)
    low_scales = blocks[:, None, 96:104] >> _shifts(device, 0, 4)
    high_scales = blocks[:, None, 104:108] >> _shifts(device, 0, 2, 4, 6)
    scales = (low_scales & 0x0F).view(-1, 16) | ((high_scales & 3) << 4).view(-1, 16)
    factors = block_scale(blocks, 108) * (scales.float() - 32)
    groups = out.view(-1, 16, 16)
    groups.copy_(quants.view(-1, 16, 16)).sub_(4).mul_(factors[:, :, None])


def _unpack_q4_k(blocks: Tensor, out: Tensor) -> None:
    # d 2, dmin 2, scales and minimums 12, quants 128
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    _write_nibbles(blocks[:, 16:].view(-1, 4, 32), out.view(-1, 4, 64))
    groups = out.view(-1, 8, 32)
    groups.mul_((block_scale(blocks, 0) * scales)[:, :, None])
    groups.sub_((block_scale(blocks, 2) * minimums)[:, :, None])


def _unpack_q5_k(blocks: Tensor, out: Tensor) -> None:
    # d 2, dmin 2, scales and minimums 12, high bits 32, quants 128
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    high = blocks[:, None, 16:48] >> _shifts(blocks.device, *range(8))
    _write_nibbles(blocks[:, 48:].view(-1, 4, 32), out.view(-1, 4, 64))
    groups = out.view(-1, 8, 32)
    groups.add_((high & 1) << 4)
    groups.mul_((block_scale(blocks, 0) * scales)[:, :, None])
    groups.sub_((block_scale(blocks, 2) * minimums)[:, :, None])


def _unpack_q6_k(blocks: Tensor, out: Tensor) -> None:
    # low nibbles 128, high crumbs 64, scales 16, d 2
    device = blocks.device
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> _shifts(device, 0, 4)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _shifts(device, 0, 2, 4, 6)
    quants = (low & 0x0F).view(-1, 256) | ((high & 3) << 4).view(-1, 256)
    scales = blocks[:, 192:208].view(torch.int8)
    groups = out.view(-1, 16, 16)
    groups.copy_(quants.view(-1, 16, 16)).sub_(32)
    groups.mul_((block_scale(blocks, 208) * scales)[:, :, None])


def _nonlinear(packed: Tensor) -> Tensor:
    """[..., 2 * n], float32: the values of nibbles, ordered as `_write_nibbles` does.

    Args:
        packed: [..., n], uint8.
    """
    table = torch.tensor(_NONLINEAR_VALUES, dtype=torch.float32, device=packed.device)
    return table[torch.cat([packed & 0x0F, packed >> 4], dim=-1).int()]


def _unpack_iq4_nl(blocks: Tensor, out: Tensor) -> None:
    torch.mul(_nonlinear(blocks[:, 2:]), block_scale(blocks, 0), out=out)


def _unpack_iq4_xs(blocks: Tensor, out: Tensor) -> None:
    # d 2, high bits of scales 2, low bits of scales 4, quants 128
    device = blocks.device
    low = blocks[:, 4:8, None] >> _shifts(device, 0, 4)[:, 0]
    high = blocks[:, 2:4, None] >> _shifts(device, 0, 2, 4, 6)[:, 0]
    scales = (low & 0x0F).view(-1, 8) | ((high & 3) << 4).view(-1, 8)
    factors = block_scale(blocks, 0) * (scales.float() - 32)
    values = _nonlinear(blocks[:, 8:].view(-1, 8, 16))
    torch.mul(values, factors[:, :, None], out=out.view(-1, 8, 32))


UNPACKERS: Mapping[GGMLType, Callable[[Tensor, Tensor], None]] = MappingProxyType(
    {
        GGMLType.F32: _unpack_f32,
        GGMLType.F16: _unpack_f16,
        GGMLType.BF16: _unpack_bf16,
        GGMLType.Q4_0: _unpack_q4_0,
        GGMLType.Q4_1: _unpack_q4_1,
        GGMLType.Q5_0: _unpack_q5_0,
        GGMLType.Q5_1: _unpack_q5_1,
        GGMLType.Q8_0: _unpack_q8_0,
        GGMLType.Q2_K: _unpack_q2_k,
        GGMLType.Q3_K: _unpack_q3_k,
        GGMLType.Q4_K: _unpack_q4_k,
        GGMLType.Q5_K: _unpack_q5_k,
        GGMLType.Q6_K: _unpack_q6_k,
        GGMLType.IQ4_NL: _unpack_iq4_nl,
        GGMLType.IQ4_XS: _unpack_iq4_xs,
        **SMALL_UNPACKERS,
    }
)
"""From [num_blocks, block bytes], uint8, to [num_blocks, block elements], float32."""

SCALE_OFFSETS: Mapping[GGMLType, tuple[int, ...]] = MappingProxyType(
    {
        GGMLType.Q4_0: (0,),
        GGMLType.Q4_1: (0, 2),
        GGMLType.Q5_0: (0,),
        GGMLType.Q5_1: (0, 2),
        GGMLType.Q8_0: (0,),
        GGMLType.Q2_K: (80, 82),
        GGMLType.Q3_K: (108,),
        GGMLType.Q4_K: (0, 2),
        GGMLType.Q5_K: (0, 2),
        GGMLType.Q6_K: (208,),
        GGMLType.IQ4_NL: (0,),
        GGMLType.IQ4_XS: (0,),
        GGMLType.IQ1_S: (0,),
        GGMLType.IQ2_XXS: (0,),
        GGMLType.IQ2_XS: (0,),
        GGMLType.IQ2_S: (0,),
        GGMLType.IQ3_XXS: (0,),
        GGMLType.IQ3_S: (0,),
        GGMLType.TQ1_0: (52,),
        GGMLType.TQ2_0: (64,),
        GGMLType.Q1_0: (0,),
    }
)
"""Where in a block its float16 scales lie, of types in which nothing else can be infinite."""
LARGEST_FACTOR = 8192.0
"""Above the magnitude of what any of those types multiplies a scale by, sums counted twice."""

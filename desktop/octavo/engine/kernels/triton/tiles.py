"""Packed matrices as the GPU's kernels read them: codes in tiles, and what they are scaled by.

A weight is scale * (code - centre) + shift, with a scale and a shift for each group of input
features. A row is cut into tiles of 32 half words. A half word holds a code of each part of its
tile: of four parts where codes have four to six bits, of two where they have eight. So part i of a
tile is what one shift and one mask make of its half words:

    code of feature (tile * parts + i) * 32 + e  =  bits from 16 / parts * i of half word e

A group is one part, or several; of Q6_K, half of one.

Of codes of five and six bits, half words hold the lower four. The others lie in bytes: of six
bits, bits 2 i of byte e of the tile; of five, bit i, in the lower half of the byte for even tiles
and in the upper half for odd ones.

Scales and shifts are plain numbers, or lie as GGUF's K formats have them: products of a small
integer and a float16 for each 256 features. Nothing is computed anew then, so values are exact and
as large as in the file.

The plain-torch twin of all kernels is `TiledWeights.unpack`.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch

PLAIN_SCALES, Q4_K_SCALES, Q6_K_SCALES = range(3)
"""How scales lie."""
SUPER_BLOCK = 256
"""Features that share the float16 factors of the K formats."""
LANES = 32
"""Half words of a tile."""
_MAX_HALF, _MIN_HALF = 65504.0, 2.0**-14


@dataclass(frozen=True, slots=True)
class TileForm:
    """What a kernel has to know of a matrix to read it."""

    bits: int
    """Of a code: 4, 5, 6 or 8."""
    group_size: int
    """Features that share a scale."""
    centre: int = 0
    """Subtracted from all codes."""
    scales: int = PLAIN_SCALES
    """`PLAIN_SCALES`, `Q4_K_SCALES` or `Q6_K_SCALES`."""
    has_shifts: bool = False
    is_float8: bool = False
    """Codes are numbers of float8_e4m3fn."""
    has_float8_inputs: bool = False
    """Inputs are meant to be rounded to such numbers, too."""

    @property
    def parts(self) -> int:
        """Codes of a half word."""
        return 2 if self.bits == 8 else 4

    @property
    def tile_size(self) -> int:
        """Features of a tile."""
        return LANES * self.parts

    def fits(self, num_columns: int) -> bool:
        """Whether rows of so many features can lie like this."""
        group, tile = self.group_size, self.tile_size
        if self.scales != PLAIN_SCALES:
            return num_columns % SUPER_BLOCK == 0
        fits_group = group % tile == 0 or (tile % group == 0 and group % LANES == 0)
        return num_columns % tile == 0 and num_columns % group == 0 and fits_group


@dataclass(frozen=True, slots=True)
class TiledWeights:
    """A matrix in the layout above."""

    form: TileForm
    words: torch.Tensor
    """[out_features, words of a row], int32."""
    high: torch.Tensor | None
    """[out_features, bytes of a row], uint8: the bits of codes above four; None: there are none."""
    scales: torch.Tensor
    """`PLAIN_SCALES`: [out_features, num_groups], float16 or float32. `Q4_K_SCALES`: [out_features,
    4 * num_super_blocks], int32, as `_pack_scales` has them. `Q6_K_SCALES`: [out_features,
    num_groups / 4], int32: of each tile the signed bytes of its parts' first halves, then of their
    second ones."""
    shifts: torch.Tensor | None
    """`PLAIN_SCALES`: as `scales`; None: all are 0."""
    factors: torch.Tensor | None
    """`Q6_K_SCALES`: [out_features, num_super_blocks], float16, factors on the scales."""
    input_order: torch.Tensor | None = None
    """[in_features], int32: column j is for input feature `input_order[j]`; None: j. Kernels see
    columns only; whoever calls them brings inputs into this order."""

    @property
    def out_features(self) -> int:
        return len(self.words)

    @property
    def in_features(self) -> int:
        return self.words.shape[1] * 2 * self.form.parts

    @property
    def kind(self) -> Hashable:
        """Equal where the same kernels multiply by them."""
        dtypes = self.scales.dtype, None if self.shifts is None else self.shifts.dtype
        return self.form, self.out_features, self.in_features, *dtypes, self.input_order is None

    @property
    def num_bytes(self) -> int:
        tensors = self.words, self.high, self.scales, self.shifts, self.factors, self.input_order
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def unpack(self) -> torch.Tensor:
        """[out_features, in_features], float32, in the order of the columns."""
        form, codes = self.form, self._codes()
        scales, shifts = self._scales_and_shifts()
        if form.is_float8:
            values = codes.to(torch.uint8).view(torch.float8_e4m3fn).float()
        else:
            values = (codes - form.centre).float()
        groups = values.view(*scales.shape, -1) * scales.unsqueeze(-1)
        if shifts is not None:
            groups += shifts.unsqueeze(-1)
        return groups.view(self.out_features, -1)

    def _codes(self) -> torch.Tensor:
        """[out_features, in_features], int32."""
        form, num_rows = self.form, self.out_features
        halves = self.words.view(torch.int16).view(num_rows, -1, 1, LANES).int()
        width = 16 // form.parts
        first = torch.arange(form.parts, device=halves.device)[:, None]
        codes = (halves >> (width * first)) & ((1 << width) - 1)
        if self.high is not None:
            high = self.high.view(num_rows, -1, 1, LANES).int()
            if form.bits == 5:
                high = torch.stack([high & 15, high >> 4], 2).view(num_rows, -1, 1, LANES)
                high = high[:, : codes.shape[1]]
            extra = form.bits - 4
            codes |= ((high >> (extra * first)) & ((1 << extra) - 1)) << 4
        return codes.reshape(num_rows, -1)

    def _scales_and_shifts(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both [out_features, num_groups], float32."""
        num_rows = self.out_features
        if self.form.scales == PLAIN_SCALES:
            return self.scales.float(), None if self.shifts is None else self.shifts.float()
        if self.form.scales == Q6_K_SCALES:
            assert self.factors is not None
            integers = self.scales.view(torch.int8).view(num_rows, -1, 2, 2, 4).transpose(3, 4)
            factors = self.factors.float()[:, :, None]
            return (factors * integers.reshape(num_rows, -1, 16)).view(num_rows, -1), None
        records = self.scales.view(num_rows, -1, 4)
        factors = records[..., :1].contiguous().view(torch.float16).float()
        scales, minimums = _unpack_scales(records)
        products = factors[..., :1] * scales, factors[..., 1:] * -minimums
        return products[0].view(num_rows, -1), products[1].view(num_rows, -1)


def tile_codes(codes: torch.Tensor, form: TileForm) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Brings codes into tiles.

    Args:
        codes: [out_features, in_features], uint8.
        form: says how.

    Returns:
        `words` and `high` of `TiledWeights`.
    """
    num_rows, num_columns = codes.shape
    assert form.fits(num_columns)
    parts = codes.view(num_rows, -1, form.parts, LANES)
    width = 16 // form.parts
    mask = (1 << width) - 1
    halves = torch.zeros(num_rows, parts.shape[1], LANES, dtype=torch.int32, device=codes.device)
    for i in range(form.parts):
        halves |= (parts[:, :, i] & mask).int() << (width * i)
    # Two's complement: the upper half of the range is negative.
    words = torch.where(halves >= 1 << 15, halves - (1 << 16), halves).to(torch.int16)
    words = words.view(num_rows, -1).view(torch.int32)
    if form.bits in (4, 8):
        return words, None
    extra = form.bits - 4
    high = torch.zeros(halves.shape, dtype=torch.uint8, device=codes.device)
    for i in range(4):
        high |= (parts[:, :, i] >> 4) << (extra * i)
    if form.bits == 5:
        if high.shape[1] % 2:
            high = torch.cat([high, torch.zeros_like(high[:, :1])], 1)
        high = high[:, 0::2] | (high[:, 1::2] << 4)
    return words, high.reshape(num_rows, -1)


def tile_affine(
    codes: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    offsets: torch.Tensor,
    *,
    keeps_offsets: bool = False,
) -> TiledWeights | None:
    """Brings weights of the form scale * code + offset into the layout.

    Args:
        codes: [out_features, in_features], uint8, 0 to 2 ** bits - 1.
        bits: up to 8.
        scales: [out_features, num_groups], float32.
        offsets: as scales.
        keeps_offsets: whether offsets are to be shifts as they are, because they are stored so.

    Returns:
        None: groups of this size do not fit the layout.
    """
    num_columns = codes.shape[1]
    group_size = num_columns // scales.shape[1]
    centre = 1 << (bits - 1)
    bits = 8 if bits > 6 else max(4, bits)
    shifts: torch.Tensor | None = offsets
    if bool((offsets + centre * scales == 0).all()):
        shifts = None
    elif keeps_offsets:
        centre = 0
    else:
        # Small numbers, which lose little when they are rounded to float16.
        shifts = offsets + centre * scales
    form = TileForm(bits, group_size, centre, has_shifts=shifts is not None)
    if not form.fits(num_columns):
        return None
    words, high = tile_codes(codes, form)
    narrow = _fits_half(scales) and (shifts is None or _fits_half(shifts))
    dtype = torch.float16 if narrow else torch.float32
    return TiledWeights(
        form, words, high, scales.to(dtype), None if shifts is None else shifts.to(dtype), None
    )


def tile_float8(
    weight: torch.Tensor, scales: torch.Tensor, *, has_float8_inputs: bool = False
) -> TiledWeights | None:
    """Brings numbers of float8 with scales into the layout.

    Args:
        weight: [out_features, in_features], float8_e4m3fn.
        scales: [out_features, num_groups], float32.
        has_float8_inputs: whether inputs are meant to be rounded to such numbers, too.

    Returns:
        None: groups of this size do not fit the layout.
    """
    group_size = weight.shape[1] // scales.shape[1]
    form = TileForm(8, group_size, is_float8=True, has_float8_inputs=has_float8_inputs)
    if not form.fits(weight.shape[1]):
        return None
    words, _ = tile_codes(weight.view(torch.uint8), form)
    return TiledWeights(form, words, None, scales, None, None)


def tile_q4_k(
    codes: torch.Tensor,
    bits: int,
    factors: torch.Tensor,
    scales: torch.Tensor,
    minimums: torch.Tensor,
) -> TiledWeights:
    """Brings Q4_K or Q5_K into the layout.

    Args:
        codes: [out_features, in_features], uint8.
        bits: 4 or 5.
        factors: [out_features, num_super_blocks, 2], float16: of scales, of minimums.
        scales: [out_features, num_super_blocks, 8], uint8, six bits.
        minimums: as scales.
    """
    form = TileForm(bits, 32, scales=Q4_K_SCALES, has_shifts=True)
    words, high = tile_codes(codes, form)
    num_rows = len(codes)
    records = torch.cat(
        [factors.contiguous().view(torch.int32), _pack_scales(scales, minimums)], -1
    )
    return TiledWeights(form, words, high, records.view(num_rows, -1), None, None)


def tile_q6_k(codes: torch.Tensor, factors: torch.Tensor, scales: torch.Tensor) -> TiledWeights:
    """Brings Q6_K into the layout.

    Args:
        codes: [out_features, in_features], uint8.
        factors: [out_features, num_super_blocks], float16.
        scales: [out_features, num_super_blocks, 16], int8.
    """
    form = TileForm(6, 16, 32, scales=Q6_K_SCALES)
    words, high = tile_codes(codes, form)
    halves = scales.view(len(codes), -1, 4, 2).transpose(2, 3).contiguous()
    integers = halves.view(len(codes), -1).view(torch.int32)
    return TiledWeights(form, words, high, integers, None, factors.contiguous())


def stack_rows(matrices: list[TiledWeights]) -> TiledWeights:
    """Matrices of one form and order above each other."""
    first = matrices[0]
    assert all(one.form == first.form for one in matrices)
    if len(matrices) == 1:
        return first
    scales = _stacked([one.scales for one in matrices])
    assert scales is not None
    return TiledWeights(
        first.form,
        torch.cat([one.words for one in matrices]),
        _stacked([one.high for one in matrices]),
        scales,
        _stacked([one.shifts for one in matrices]),
        _stacked([one.factors for one in matrices]),
        first.input_order,
    )


def _stacked(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    """In the widest of their types; None: no matrix has any."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    is_wide = any(part.dtype is torch.float32 for part in given)
    return torch.cat([part.float() if is_wide else part for part in given])


def _pack_scales(scales: torch.Tensor, minimums: torch.Tensor) -> torch.Tensor:
    """Eight scales and eight minimums of six bits, so that each tile finds its own together.

    Word t holds, from bit 0, the four scales of tile t, its first minimum, and the upper two bits
    of its last one. Half t of word 2 holds its second and third minimum and the lower four bits of
    the last.

    Args:
        scales: [out_features, num_super_blocks, 8], uint8.
        minimums: as scales.

    Returns:
        [out_features, num_super_blocks, 3], int32.
    """
    words = []
    rest = torch.zeros_like(scales[..., 0], dtype=torch.int64)
    for tile in range(2):
        s = scales[..., 4 * tile : 4 * tile + 4].long()
        m = minimums[..., 4 * tile : 4 * tile + 4].long()
        own = s[..., 0] | s[..., 1] << 6 | s[..., 2] << 12 | s[..., 3] << 18
        words.append(own | m[..., 0] << 24 | (m[..., 3] >> 4) << 30)
        rest |= (m[..., 1] | m[..., 2] << 6 | (m[..., 3] & 15) << 12) << (16 * tile)
    packed = torch.stack([*words, rest], -1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def _unpack_scales(records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_pack_scales` was given: twice [out_features, num_super_blocks, 8], float32.

    Args:
        records: [out_features, num_super_blocks, 4], int32.
    """
    words = records.long() & 0xFFFFFFFF
    scales, minimums = [], []
    for tile in range(2):
        own, rest = words[..., 1 + tile], words[..., 3] >> (16 * tile)
        scales += [(own >> (6 * i)) & 63 for i in range(4)]
        last = ((rest >> 12) & 15) | (own >> 30) << 4
        minimums += [(own >> 24) & 63, rest & 63, (rest >> 6) & 63, last]
    return torch.stack(scales, -1).float(), torch.stack(minimums, -1).float()


def _fits_half(values: torch.Tensor) -> bool:
    """Whether float16 has the values, or nothing overflows or fades in it.

    The rounding is far below that of codes.
    """
    sizes = values.abs()
    is_normal = (sizes <= _MAX_HALF) & (sizes >= _MIN_HALF)
    return bool((is_normal | (values == values.half().float())).all())

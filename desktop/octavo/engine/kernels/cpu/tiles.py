"""`PackedMatrix`: a weight matrix in tiles, and what it stands for in plain torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.engine.kernels.cpu.tiles_forms import (
    ALIGNMENT,
    FORMS,
    GROUP,
    SUPER_GROUP,
    TILE_ROWS,
    Codes,
    Scales,
    TileForm,
)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A weight matrix as the kernels read it."""

    form: TileForm
    tiles: Tensor
    """[num_tiles, tile_bytes], uint8."""
    num_rows: int
    """Out features."""
    num_columns: int
    """In features."""
    group_size: int
    """Columns of a scale group; meaningful where the form leaves it open."""

    @property
    def padded_columns(self) -> int:
        """What kernels are told: a multiple of the form's column unit."""
        unit = self.form.column_unit
        return -(-self.num_columns // unit) * unit

    @property
    def num_records(self) -> int:
        """In each tile."""
        return self.padded_columns // (self.form.record_columns or self.group_size)

    def plane(self, name: str) -> Tensor:
        """[num_tiles, num_records, groups of a record, bytes], uint8: a plane where it lies."""
        form, places = self.form, self.form.places(self.group_size)
        plane = next(plane for plane in form.planes if plane.name == name)
        is_of_group = form.group_bytes != 0 and plane.num_columns == GROUP
        num_groups = (form.record_columns or self.group_size) // GROUP if is_of_group else 1
        return self.tiles[:, places[name] :].as_strided(
            (len(self.tiles), self.num_records, num_groups, plane.num_bytes),
            (self.tiles.stride(0), places["end"], form.group_bytes, 1),
        )

    def unpack(self) -> Tensor:
        """[num_rows, num_columns], float32: the weights that the tiles stand for."""
        planes = {
            plane.name: self.plane(plane.name).flatten(1).contiguous() for plane in self.form.planes
        }
        if self.form.scales is Scales.NONE:
            columns = planes["codes"].view(_FLOATS[self.form.codes])
            weights = columns.view(len(self.tiles), -1, TILE_ROWS).float().transpose(1, 2)
        else:
            codes = _unpack_codes(self.form.codes, planes).float() - self.form.centre
            scales, offsets = _unpack_scales(self.form.scales, planes)
            grouped = codes.unflatten(2, (scales.shape[2], -1)) * scales[..., None]
            if offsets is not None:
                grouped += offsets[..., None]
            weights = grouped.flatten(2)
        return weights.flatten(0, 1)[: self.num_rows, : self.num_columns].contiguous()


_FLOATS = {
    Codes.FLOAT16: torch.float16,
    Codes.BFLOAT16: torch.bfloat16,
    Codes.FLOAT32: torch.float32,
}


def empty_matrix(
    form: str, num_rows: int, num_columns: int, group_size: int = GROUP
) -> PackedMatrix:
    """A matrix whose tiles are not written yet; rows and columns that it lacks are zero."""
    num_tiles = -(-num_rows // TILE_ROWS)
    nothing = torch.empty(num_tiles, 0, dtype=torch.uint8)
    matrix = PackedMatrix(FORMS[form], nothing, num_rows, num_columns, group_size)
    num_bytes = matrix.num_records * matrix.form.places(group_size)["end"]
    tile_bytes = -(-num_bytes // ALIGNMENT) * ALIGNMENT
    return replace(matrix, tiles=torch.zeros(num_tiles, tile_bytes, dtype=torch.uint8))


def _unpack_codes(codes: Codes, planes: Mapping[str, Tensor]) -> Tensor:
    """[num_tiles, TILE_ROWS, padded_columns], uint8 or int8."""
    raw = planes["codes"]
    num_tiles = len(raw)
    if codes is Codes.SIGNED_BYTE:
        steps = raw.view(torch.int8).view(num_tiles, -1, 8, TILE_ROWS, 4)
        return steps.permute(0, 3, 1, 2, 4).flatten(2)
    pairs = raw.view(num_tiles, -1, 4, TILE_ROWS, 4)
    nibbles = torch.stack([pairs & 15, pairs >> 4], dim=2)
    values = nibbles.permute(0, 4, 1, 2, 3, 5).flatten(2)
    if codes is Codes.FIVE_BIT:
        bits = _fields(planes["high"].view(num_tiles, -1, TILE_ROWS, 4), 1)
        values |= bits.permute(0, 2, 1, 4, 3).flatten(2) << 4
    elif codes is Codes.FIVE_BIT_K:
        bits = _fields(planes["high"].view(num_tiles, -1, 8, TILE_ROWS, 4), 1)
        values |= bits.permute(0, 3, 1, 5, 2, 4).flatten(2) << 4
    elif codes is Codes.SIX_BIT:
        crumbs = _fields(planes["high"].view(num_tiles, -1, 2, TILE_ROWS, 4), 2)
        values |= crumbs.permute(0, 3, 1, 2, 5, 4).flatten(2) << 4
    return values


def _fields(packed: Tensor, width: int) -> Tensor:
    """[..., 8 / width]: the fields of each byte, lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)
    return (packed[..., None] >> shifts) & ((1 << width) - 1)


def _unpack_scales(scales: Scales, planes: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Scales and offsets, each [num_tiles, TILE_ROWS, number of groups], float32."""
    if scales in (Scales.HALF, Scales.HALF_AND_OFFSET):
        offsets = _by_row(planes["offsets"].view(torch.float16)) if "offsets" in planes else None
        return _by_row(planes["scales"].view(torch.float16)), offsets
    if scales is Scales.FLOAT_AND_OFFSET:
        kind = torch.float32
        return _by_row(planes["scales"].view(kind)), _by_row(planes["offsets"].view(kind))
    factors = _by_row(planes["factors"].view(torch.float16))
    if scales is Scales.K_HALVES:
        integers = _by_row(planes["scales"].view(torch.int8))
        return integers * factors.repeat_interleave(SUPER_GROUP // 16, dim=2), None
    rows = planes["scales"].view(len(factors), -1, 12, TILE_ROWS).permute(0, 3, 1, 2)
    low, high = rows[..., :8], rows[..., 8:]
    upper = torch.stack([high & 15, high >> 4], dim=4).flatten(3)
    minimums = (low >> 6) | (upper << 2)
    each = factors.unflatten(2, (-1, 2))
    return (
        ((low & 63) * each[..., :1]).flatten(2),
        (minimums * -each[..., 1:]).flatten(2),
    )


def _by_row(plane: Tensor) -> Tensor:
    """[num_tiles, TILE_ROWS, number of groups], float32."""
    return plane.view(len(plane), -1, TILE_ROWS).transpose(1, 2).float()

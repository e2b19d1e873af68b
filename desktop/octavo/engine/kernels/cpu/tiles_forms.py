"""How weights and activations lie in memory for the CPU kernels. No torch, no Numba.

Weights are tiles of sixteen rows. A tile is made of records, one behind the other from the left to
the right columns, so that kernels read memory in one line. A record has all of some columns: first
the planes with numbers for all of them, then, for each group of 32 of them, the planes with numbers
of that group. A plane has numbers of each of the sixteen rows side by side. So a SIMD lane is a
row, an activation is the same for all lanes, and nothing is summed across lanes.

    4-bit codes, a group of 32 columns:  four vectors of 64 bytes
    vector v, lane r, byte i:            row r; column 4v + i in the low nibble, 16 + 4v + i above

Formats of GGUF stay as exact as their files and, but for rounding up to a cache line, as small.

Activations of quantised layers are one cache line for each group of 32 columns:

    32 int8      codes, from -127 to 127
    float32      scale: the largest magnitude / 127
    float32      scale * sum of the codes
    3 int32      minus the sum of all codes, of the first 16, of the last 16
    2 int16      minus the sum of the first 16, of the last 16
    8 bytes      nothing
"""

from dataclasses import dataclass
from enum import StrEnum

TILE_ROWS = 16
GROUP = 32
"""Columns that share a scale of their activations."""
GROUP_BYTES = 64
"""Of a group of quantised activations."""
SCALE, SUM, MINUS_TOTAL, MINUS_FIRST, MINUS_LAST, MINUS_HALVES = 32, 36, 40, 44, 48, 52
"""Where the numbers lie in them."""
SUPER_GROUP = 256
"""Columns of a block of the K formats."""
ALIGNMENT = 64
"""Tiles begin at multiples of this many bytes."""
SCALE_GROUP = 0
"""Stands for the group size of the matrix, which formats of any group size have."""


class Codes(StrEnum):
    """What the weights themselves are."""

    FOUR_BIT = "four-bit"
    FIVE_BIT = "five-bit"
    FIVE_BIT_K = "five-bit-k"
    """As `FIVE_BIT`, with the fifth bits of eight groups in one byte."""
    SIX_BIT = "six-bit"
    SIGNED_BYTE = "signed-byte"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Scales(StrEnum):
    """What turns codes into weights: w = scale * (code - centre) + offset."""

    HALF = "half"
    """One float16 for each group of 32 columns."""
    HALF_AND_OFFSET = "half-and-offset"
    """Two float16, scale and offset."""
    FLOAT_AND_OFFSET = "float-and-offset"
    """Two float32 for each scale group of the matrix, a multiple of 32 columns."""
    K_AND_OFFSET = "k-and-offset"
    """As in Q4_K: 6-bit scale and minimum for 32 columns, their float16 factors for 256."""
    K_HALVES = "k-halves"
    """As in Q6_K: 8-bit scale for 16 columns, their float16 factor for 256."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Plane:
    """A part of each record of a tile."""

    name: str
    num_bytes: int
    """Of sixteen rows, for a group of columns."""
    num_columns: int
    """Of a group; `SCALE_GROUP`: as the matrix has it."""


@dataclass(frozen=True, slots=True)
class TileForm:
    """One way of storing tiles; a kernel is compiled for each that a model has."""

    name: str
    codes: Codes
    scales: Scales
    planes: tuple[Plane, ...]
    """In the order of a record: those of groups within come last."""
    centre: int = 0
    """Subtracted from every code; a power of two, or 0."""

    @property
    def is_quantized(self) -> bool:
        """Whether kernels take activations as 8-bit integers; else as float32."""
        return self.scales is not Scales.NONE

    @property
    def column_unit(self) -> int:
        """Kernels see a number of columns that is a multiple of this."""
        units = [plane.num_columns for plane in self.planes]
        return max(units) if self.is_quantized else 2

    @property
    def record_columns(self) -> int:
        """Columns of a record; `SCALE_GROUP`: as the matrix has it."""
        sizes = [plane.num_columns for plane in self.planes]
        return SCALE_GROUP if SCALE_GROUP in sizes else max(sizes)

    @property
    def group_bytes(self) -> int:
        """From a group's numbers to the next group's in a record; 0: it has no groups within."""
        if self.record_columns == GROUP:
            return 0
        return sum(plane.num_bytes for plane in self.planes if plane.num_columns == GROUP)

    def places(self, group_size: int) -> dict[str, int]:
        """Where each plane begins in a record, and under the name `end` where the next one begins.

        Args:
            group_size: columns of a scale group, where the form leaves it open.
        """
        places, place = {}, 0
        for plane in self.planes:
            places[plane.name] = place
            place += plane.num_bytes
        num_groups = (self.record_columns or group_size) // GROUP
        places["end"] = place + max(0, num_groups - 1) * self.group_bytes
        return places


_NIBBLES = Plane("codes", 8 * GROUP, GROUP)
_BYTES = Plane("codes", 16 * GROUP, GROUP)
_HALF_SCALES = Plane("scales", 32, GROUP)
_HALF_OFFSETS = Plane("offsets", 32, GROUP)
_FLOAT_SCALES = Plane("scales", 64, SCALE_GROUP)
_FLOAT_OFFSETS = Plane("offsets", 64, SCALE_GROUP)
_FIFTH_BITS = Plane("high", 64, GROUP)
_K_SCALES = Plane("scales", 192, SUPER_GROUP)
_K_FACTORS = Plane("factors", 64, SUPER_GROUP)

FORMS: dict[str, TileForm] = {
    form.name: form
    for form in (
        TileForm("q4_0", Codes.FOUR_BIT, Scales.HALF, (_NIBBLES, _HALF_SCALES), centre=8),
        TileForm(
            "q4_1",
            Codes.FOUR_BIT,
            Scales.HALF_AND_OFFSET,
            (_NIBBLES, _HALF_SCALES, _HALF_OFFSETS),
        ),
        TileForm(
            "q5_0",
            Codes.FIVE_BIT,
            Scales.HALF,
            (_NIBBLES, _FIFTH_BITS, _HALF_SCALES),
            centre=16,
        ),
        TileForm(
            "q5_1",
            Codes.FIVE_BIT,
            Scales.HALF_AND_OFFSET,
            (_NIBBLES, _FIFTH_BITS, _HALF_SCALES, _HALF_OFFSETS),
        ),
        TileForm("q8_0", Codes.SIGNED_BYTE, Scales.HALF, (_BYTES, _HALF_SCALES)),
        TileForm("q4_k", Codes.FOUR_BIT, Scales.K_AND_OFFSET, (_K_SCALES, _K_FACTORS, _NIBBLES)),
        TileForm(
            "q5_k",
            Codes.FIVE_BIT_K,
            Scales.K_AND_OFFSET,
            (_K_SCALES, _K_FACTORS, Plane("high", 512, SUPER_GROUP), _NIBBLES),
        ),
        TileForm(
            "q6_k",
            Codes.SIX_BIT,
            Scales.K_HALVES,
            (
                Plane("factors", 32, SUPER_GROUP),
                Plane("scales", 32, GROUP),
                Plane("high", 128, GROUP),
                _NIBBLES,
            ),
            centre=32,
        ),
        TileForm(
            "int4",
            Codes.FOUR_BIT,
            Scales.FLOAT_AND_OFFSET,
            (_FLOAT_SCALES, _FLOAT_OFFSETS, _NIBBLES),
        ),
        TileForm(
            "int8",
            Codes.SIGNED_BYTE,
            Scales.FLOAT_AND_OFFSET,
            (_FLOAT_SCALES, _FLOAT_OFFSETS, _BYTES),
        ),
        TileForm("float16", Codes.FLOAT16, Scales.NONE, (Plane("codes", 32, 1),)),
        TileForm("bfloat16", Codes.BFLOAT16, Scales.NONE, (Plane("codes", 32, 1),)),
        TileForm("float32", Codes.FLOAT32, Scales.NONE, (Plane("codes", 64, 1),)),
    )
}
"""By name: those of GGUF types, `int4` and `int8` with groups of any size, and floating point."""

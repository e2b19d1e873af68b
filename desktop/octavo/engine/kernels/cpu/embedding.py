"""Looking tokens up: rows of a matrix in tiles, as float32, into the residual stream."""

from numba import cfunc, float32, int64, njit, uint64

from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.simd import (
    at,
    read_bf16,
    read_f16,
    read_f32,
    read_i64,
    read_u8,
    read_u64,
    write_f32,
)
from octavo.engine.kernels.cpu.step_loop import FIRST_ARGUMENT, KERNEL_SIGNATURE
from octavo.engine.kernels.cpu.tiles_forms import (
    GROUP,
    TILE_ROWS,
    Codes,
    Scales,
    TileForm,
)

TILES = FIRST_ARGUMENT
TILE_BYTES = FIRST_ARGUMENT + 1
SIZE = FIRST_ARGUMENT + 2
"""Columns of the matrix."""
CODES = FIRST_ARGUMENT + 3
"""Which of `tiles_forms.Codes`, by its number there."""
SCALES = FIRST_ARGUMENT + 4
"""Which of `tiles_forms.Scales`, by its number there."""
CENTRE = FIRST_ARGUMENT + 5
RECORD_COLUMNS = FIRST_ARGUMENT + 6
RECORD_BYTES = FIRST_ARGUMENT + 7
GROUP_BYTES = FIRST_ARGUMENT + 8
"""From a group to the next one of a record."""
ROWS = FIRST_ARGUMENT + 9
"""Address of [num_tokens, SIZE], float32."""
ROW_SCALE = FIRST_ARGUMENT + 10
FIRST_PLANE = FIRST_ARGUMENT + 11
"""Where the planes begin in a record, in the order of `PLANES`."""
PLANES = ("codes", "high", "scales", "offsets", "factors")

_CODES = tuple(Codes)
_SCALES = tuple(Scales)
_FOUR_BIT, _FIVE_BIT, _FIVE_BIT_K, _SIX_BIT, _SIGNED_BYTE, _FLOAT16, _BFLOAT16, _FLOAT32 = range(8)
_HALF, _HALF_AND_OFFSET, _FLOAT_AND_OFFSET, _K_AND_OFFSET, _K_HALVES, _NO_SCALES = range(6)
assert len(_CODES) == 8
assert len(_SCALES) == 6


def form_words(form: TileForm, group_size: int) -> dict[int, int]:
    """What of an operation's words follows from the form of the tiles."""
    places = form.places(group_size)
    found = {
        CODES: _CODES.index(form.codes),
        SCALES: _SCALES.index(form.scales),
        CENTRE: form.centre,
        RECORD_COLUMNS: form.record_columns or group_size,
        RECORD_BYTES: places["end"],
        GROUP_BYTES: form.group_bytes,
    }
    for number, plane in enumerate(PLANES):
        found[FIRST_PLANE + number] = places.get(plane, 0)
    return found


@njit(nogil=True, cache=True)
def _code(kind, codes, high, lane, group, place):
    """A code, its centre not subtracted; `tiles._unpack_codes` is its twin.

    Args:
        kind: by its number in `_CODES`.
        codes: address of the group's.
        high: address of what belongs to them.
        lane: of the row.
        group: in the record.
        place: of the column in the group.
    """
    in_four = 4 * lane + place % 4
    if kind == _SIGNED_BYTE:
        byte = read_u8(at(codes, 64 * (place // 4) + in_four))
        return byte - 256 if byte > 127 else byte
    step = place % 16 // 4
    byte = read_u8(at(codes, 64 * step + in_four))
    code = byte & 15 if place < 16 else byte >> 4
    if kind == _FIVE_BIT:
        bits = read_u8(at(high, in_four))
        code |= (bits >> (place // 4) & 1) << 4
    elif kind == _FIVE_BIT_K:
        bits = read_u8(at(high, 64 * (place // 4) + in_four))
        code |= (bits >> group & 1) << 4
    elif kind == _SIX_BIT:
        bits = read_u8(at(high, 64 * (place // 16) + in_four))
        code |= (bits >> (2 * step) & 3) << 4
    return code


@njit(nogil=True, cache=True)
def _scale_and_offset(kind, scales, offsets, factors, lane, number, place):
    """What turns a code into a weight; `tiles._unpack_scales` is its twin.

    Args:
        kind: by its number in `_SCALES`.
        scales: address of the record's, or of the group's where they are its own.
        offsets: as scales.
        factors: address of the record's.
        lane: of the row.
        number: of the group in the record.
        place: of the column in the group.
    """
    if kind == _HALF:
        return read_f16(at(scales, 2 * lane)), float32(0.0)
    if kind == _HALF_AND_OFFSET:
        return read_f16(at(scales, 2 * lane)), read_f16(at(offsets, 2 * lane))
    if kind == _FLOAT_AND_OFFSET:
        return read_f32(at(scales, 4 * lane)), read_f32(at(offsets, 4 * lane))
    factor = read_f16(at(factors, 2 * lane))
    if kind == _K_HALVES:
        byte = read_u8(at(scales, 16 * (place // 16) + lane))
        integer = byte - 256 if byte > 127 else byte
        return float32(integer) * factor, float32(0.0)
    low = read_u8(at(scales, 16 * number + lane))
    upper = read_u8(at(scales, 16 * (8 + number // 2) + lane)) >> (4 * (number % 2)) & 15
    offset_factor = read_f16(at(factors, 32 + 2 * lane))
    return float32(low & 63) * factor, float32(low >> 6 | upper << 2) * -offset_factor


@njit(nogil=True, cache=True)
def _read_float(kind, codes, lane):
    """A weight that is stored in floating point."""
    if kind == _FLOAT32:
        return read_f32(at(codes, 4 * lane))
    place = at(codes, 2 * lane)
    return read_f16(place) if kind == _FLOAT16 else read_bf16(place)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def embed_tokens(operation, step, scratch, begin, end):
    """Writes the rows of some tokens. Extent: NUM_TOKENS.

    A token -1 - i is the one that the step before chose for its row i.
    """
    op, step_ = uint64(operation), uint64(step)
    size = read_i64(at(op, 8 * SIZE))
    codes_kind, scales_kind = read_i64(at(op, 8 * CODES)), read_i64(at(op, 8 * SCALES))
    centre = read_i64(at(op, 8 * CENTRE))
    record_columns = read_i64(at(op, 8 * RECORD_COLUMNS))
    record_bytes = read_i64(at(op, 8 * RECORD_BYTES))
    group_bytes = read_i64(at(op, 8 * GROUP_BYTES))
    codes_at = read_i64(at(op, 8 * FIRST_PLANE))
    high_at = read_i64(at(op, 8 * (FIRST_PLANE + 1)))
    scales_at = read_i64(at(op, 8 * (FIRST_PLANE + 2)))
    offsets_at = read_i64(at(op, 8 * (FIRST_PLANE + 3)))
    factors_at = read_i64(at(op, 8 * (FIRST_PLANE + 4)))
    row_scale = read_f32(at(op, 8 * ROW_SCALE))
    token_ids = read_u64(at(step_, 8 * words.TOKEN_IDS))
    for token in range(begin, end):
        token_id = read_i64(at(token_ids, 8 * token))
        if token_id < 0:
            chosen = read_u64(at(step_, 8 * words.CHOSEN_BEFORE))
            # Where nothing could be chosen, the step before ends with an error.
            token_id = max(int64(0), read_i64(at(chosen, 8 * (-1 - token_id))))
        record = at(
            read_u64(at(op, 8 * TILES)),
            token_id // TILE_ROWS * read_i64(at(op, 8 * TILE_BYTES)),
        )
        lane = token_id % TILE_ROWS
        row = at(read_u64(at(op, 8 * ROWS)), 4 * size * token)
        scale, offset = float32(1.0), float32(0.0)
        for first in range(0, size, record_columns):
            codes, high, scales = at(record, codes_at), at(record, high_at), at(record, scales_at)
            offsets, factors = at(record, offsets_at), at(record, factors_at)
            for column in range(min(record_columns, size - first)):
                if scales_kind == _NO_SCALES:
                    weight = _read_float(codes_kind, codes, lane)
                else:
                    group, place = column // GROUP, column % GROUP
                    if place == 0 and column != 0:
                        codes = at(codes, group_bytes)
                        if scales_kind == _K_HALVES:
                            high, scales = at(high, group_bytes), at(scales, group_bytes)
                    if place % 16 == 0:
                        scale, offset = _scale_and_offset(
                            scales_kind, scales, offsets, factors, lane, group, place
                        )
                    code = _code(codes_kind, codes, high, lane, group, place)
                    weight = float32(code - centre) * scale + offset
                write_f32(at(row, 4 * (first + column)), weight * row_scale)
            record = at(record, record_bytes)

"""Puts sixteen rows side by side, element by element: what packing does to every byte."""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from octavo.engine.kernels.cpu import simd
from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.tiles_forms import TILE_ROWS


@intrinsic(prefer_literal=True)
def _copy(_context, source, target, num_bytes):
    """Copies an element of 1, 2 or 4 bytes, a number known when compiled."""
    if not isinstance(num_bytes, types.IntegerLiteral):
        return None
    element = ir.IntType(8 * num_bytes.literal_value)

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        emit.store(b, arguments[1], emit.load(b, arguments[0], element))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, num_bytes), generate


@njit(nogil=True, error_model="numpy", cache=True)
def _interleave_group(
    elements: Any, row_stride: int, num_elements: int, element_bytes: int, place: Any
) -> None:
    """Writes one group of sixteen rows, element by element."""
    for _ in range(num_elements):
        if element_bytes == 4:
            for row in range(TILE_ROWS):
                _copy(simd.at(elements, row * row_stride), simd.at(place, 4 * row), 4)
        elif element_bytes == 2:
            for row in range(TILE_ROWS):
                _copy(simd.at(elements, row * row_stride), simd.at(place, 2 * row), 2)
        else:
            for row in range(TILE_ROWS):
                _copy(simd.at(elements, row * row_stride), simd.at(place, row), 1)
        elements = simd.at(elements, element_bytes)
        place = simd.at(place, element_bytes * TILE_ROWS)


@njit(nogil=True, error_model="numpy", cache=True)
def interleave_rows(
    source: Any,
    row_stride: int,
    group_stride: int,
    num_tiles: int,
    num_records: int,
    num_parts: int,
    num_groups: int,
    num_elements: int,
    element_bytes: int,
    target: Any,
    tile_stride: int,
    record_stride: int,
    part_stride: int,
) -> None:
    """Writes one plane of some tiles.

    Args:
        source: address of the first row's first group; elements of a group follow each other.
        row_stride: bytes from a row to the next.
        group_stride: bytes from a group to the next.
        num_tiles: of sixteen rows each.
        num_records: in a tile.
        num_parts: in a record.
        num_groups: in a row of a part.
        num_elements: in a group.
        element_bytes: 1, 2 or 4.
        target: address of the plane in the first record of the first tile.
        tile_stride: bytes from a tile to the next.
        record_stride: bytes from a record to the next.
        part_stride: bytes from a part to the next.
    """
    for tile in range(num_tiles):
        elements = simd.at(source, tile * TILE_ROWS * row_stride)
        for record in range(num_records):
            for part in range(num_parts):
                offset = tile * tile_stride + record * record_stride + part * part_stride
                place = simd.at(target, offset)
                for _ in range(num_groups):
                    _interleave_group(elements, row_stride, num_elements, element_bytes, place)
                    elements = simd.at(elements, group_stride)
                    place = simd.at(place, num_elements * element_bytes * TILE_ROWS)

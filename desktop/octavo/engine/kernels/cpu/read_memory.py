"""Reads memory and nothing else: what the bandwidth that kernels can hope for is measured with."""

from numba import njit

from octavo.engine.kernels.cpu import simd

PIECE_BYTES = 256
"""Read at a time; a number of bytes that is no multiple of it is read to the next one."""


@njit(nogil=True)
def read_memory(address, num_bytes):
    """The sum of all its words of 32 bits, in order: asking for memory early reads a tenth less."""
    first, second = simd.zero_i32(), simd.zero_i32()
    third, fourth = simd.zero_i32(), simd.zero_i32()
    for place in range(0, num_bytes, PIECE_BYTES):
        here = simd.at(address, place)
        first = simd.add_i32(first, simd.load_i32(here))
        second = simd.add_i32(second, simd.load_i32(simd.at(here, 64)))
        third = simd.add_i32(third, simd.load_i32(simd.at(here, 128)))
        fourth = simd.add_i32(fourth, simd.load_i32(simd.at(here, 192)))
    return simd.sum_i32(simd.add_i32(simd.add_i32(first, second), simd.add_i32(third, fourth)))

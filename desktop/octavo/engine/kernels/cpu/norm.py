"""RMS normalisation of rows of float32, and sums of them."""

import math

from numba import float32, njit

from octavo.engine.kernels.cpu.simd import (
    add,
    at,
    fma,
    load_f32,
    mul,
    splat_f32,
    store_f32,
    sum_f32,
    zero_f32,
)


@njit(nogil=True, cache=True)
def normalise(row, weights, output, size, eps):
    """Divides a row by its root mean square and multiplies it by the weights.

    Args:
        row: address of [size], float32.
        weights: address of [size], float32; what models add to them is in them.
        output: address of [size]; may be the row itself.
        size: divisible by 16.
        eps: float32, added to the mean square.
    """
    squares = zero_f32()
    for index in range(0, size, 16):
        values = load_f32(at(row, 4 * index))
        squares = fma(values, values, squares)
    mean = sum_f32(squares) / float32(size) + eps
    factor = splat_f32(float32(1.0) / float32(math.sqrt(mean)))
    for index in range(0, size, 16):
        values = mul(load_f32(at(row, 4 * index)), factor)
        store_f32(at(output, 4 * index), mul(values, load_f32(at(weights, 4 * index))))


@njit(nogil=True, cache=True)
def add_to(row, added, size):
    """Adds a row to another; both are addresses of [size], float32, divisible by 16."""
    for index in range(0, size, 16):
        place = at(row, 4 * index)
        store_f32(place, add(load_f32(place), load_f32(at(added, 4 * index))))


@njit(nogil=True, cache=True)
def add_scaled(row, added, size, scale):
    """As `add_to`, with a factor on what is added."""
    factor = splat_f32(scale)
    for index in range(0, size, 16):
        place = at(row, 4 * index)
        store_f32(place, fma(load_f32(at(added, 4 * index)), factor, load_f32(place)))

"""RMS normalisation of rows of float32."""

import math

from numba import float32, njit

from octavo.engine.kernels.cpu.simd import (
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

"""The inner loops of attention in 16 bits: many rows of queries against a stretch of the context.

A register holds sixteen pairs, so that one instruction multiplies twice as many numbers as in
float32. Queries and keys are integers, pairs of two channels of a token: scores need exact factors.
Weights and values are bfloat16, pairs of two tokens of a channel: weights need small numbers.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.simd_types import F32, I32, I64, LANES

ROWS = 8
"""That are computed together: their sums for `COLUMNS` vectors are in registers."""
COLUMNS = 2
Dot: TypeAlias = Callable[[Any, Any, Any, Any], Any]
_STEPS = 4
"""Pairs of channels in one turn of the loop."""
_VECTOR_BYTES = 4 * LANES
_FLOATS = ir.VectorType(F32, LANES)
_PAIRS = ir.VectorType(I32, LANES)


def _number(value: int) -> Any:
    return ir.Constant(I64, value)


def _rows_from(b: Any, start: Any, stride: Any) -> list[Any]:
    return [b.add(start, b.mul(stride, _number(row))) for row in range(ROWS)]


def _add_pairs(
    b: Any, dot: Dot, sums: list[Any], factors: list[Any], vectors: list[Any]
) -> list[Any]:
    """Sums of all rows, row by row, with a pair of each row times the vectors added."""
    results = []
    for row, factor in enumerate(factors):
        pair = emit.splat(b, emit.load(b, factor, I32), LANES)
        olds = sums[row * len(vectors) : (row + 1) * len(vectors)]
        results += [dot(b, old, vector, pair) for old, vector in zip(olds, vectors, strict=True)]
    return results


@intrinsic
def score_pairs(
    _context: Any,
    queries: Any,
    query_stride: Any,
    query_steps: Any,
    keys: Any,
    key_steps: Any,
    num_pairs: Any,
    scores: Any,
    score_stride: Any,
) -> Any:
    """Writes the products of `ROWS` queries with the keys of `COLUMNS` blocks.

    Args:
        queries: [ROWS, 2 * num_pairs], int16, rows `query_stride` bytes apart.
        query_stride: in bytes.
        query_steps: [ROWS], float32: what a query's integers are multiples of.
        keys: [COLUMNS, num_pairs, 16] pairs of int16.
        key_steps: [COLUMNS, 16], float32: what a key's integers are multiples of.
        num_pairs: of channels, divisible by 4.
        scores: [ROWS, COLUMNS * 16], float32, rows `score_stride` bytes apart.
        score_stride: in bytes.
    """

    def generate(target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        queries, query_stride, query_steps, keys, key_steps, num_pairs = arguments[:6]
        scores, score_stride = arguments[6:]
        rows = _rows_from(b, queries, query_stride)
        block_bytes = b.mul(num_pairs, _number(_VECTOR_BYTES))
        blocks = [b.add(keys, b.mul(block_bytes, _number(block))) for block in range(COLUMNS)]

        def add_channels(index: Any, sums: list[Any]) -> list[Any]:
            first = b.mul(index, _number(_STEPS))
            for step in range(_STEPS):
                place = b.mul(b.add(first, _number(step)), _number(4))
                in_block = b.mul(place, _number(LANES))
                vectors = [emit.load(b, b.add(block, in_block), _PAIRS) for block in blocks]
                factors = [b.add(row, place) for row in rows]
                sums = _add_pairs(b, emit.dot_words, sums, factors, vectors)
            return sums

        zeros = [emit.constant(_PAIRS, 0)] * (ROWS * COLUMNS)
        sums = emit.loop(b, b.udiv(num_pairs, _number(_STEPS)), zeros, add_channels)
        steps = [
            emit.load(b, emit.offset(b, key_steps, column * _VECTOR_BYTES), _FLOATS)
            for column in range(COLUMNS)
        ]
        for row, start in enumerate(_rows_from(b, scores, score_stride)):
            step = emit.splat(b, emit.load(b, emit.offset(b, query_steps, 4 * row), F32), LANES)
            for column in range(COLUMNS):
                score = b.fmul(emit.to_float(b, sums[row * COLUMNS + column]), steps[column])
                place = emit.offset(b, start, column * _VECTOR_BYTES)
                emit.store(b, place, b.fmul(score, step))
        return target.get_dummy_value()

    address, number = types.uint64, types.int64
    kinds = (address, number, address, address, address, number, address, number)
    return types.void(*kinds), generate


@intrinsic(prefer_literal=True)
def weigh_pairs(
    _context: Any,
    columns: Any,
    weights: Any,
    weight_stride: Any,
    values: Any,
    num_pairs: Any,
    pair_bytes: Any,
    outputs: Any,
    output_stride: Any,
) -> Any:
    """Adds weighted values to `ROWS` rows of the output.

    Args:
        columns: vectors of 16 channels, known when this is compiled.
        weights: [ROWS, 2 * num_pairs], bfloat16, rows `weight_stride` bytes apart.
        weight_stride: in bytes.
        values: [num_pairs, columns * 16] pairs, of two tokens each.
        num_pairs: of tokens.
        pair_bytes: from two tokens' values to the next two's.
        outputs: [ROWS, columns * 16], float32, rows `output_stride` bytes apart.
        output_stride: in bytes.
    """
    num_columns = columns.literal_value

    def generate(target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        weights, weight_stride, values, num_pairs, pair_bytes = arguments[1:6]
        outputs, output_stride = arguments[6:]
        rows = _rows_from(b, weights, weight_stride)
        places = [
            emit.offset(b, row, column * _VECTOR_BYTES)
            for row in _rows_from(b, outputs, output_stride)
            for column in range(num_columns)
        ]

        def add_tokens(index: Any, sums: list[Any]) -> list[Any]:
            place = b.mul(index, _number(4))
            start = b.add(values, b.mul(index, pair_bytes))
            vectors = [
                emit.load(b, emit.offset(b, start, column * _VECTOR_BYTES), _PAIRS)
                for column in range(num_columns)
            ]
            factors = [b.add(row, place) for row in rows]
            return _add_pairs(b, emit.dot_bfloat, sums, factors, vectors)

        before = [emit.load(b, place, _FLOATS) for place in places]
        sums = emit.loop(b, num_pairs, before, add_tokens)
        for place, total in zip(places, sums, strict=True):
            emit.store(b, place, total)
        return target.get_dummy_value()

    address, number = types.uint64, types.int64
    kinds = (address, number, address, number, number, address, number)
    return types.void(columns, *kinds), generate

"""The inner loops of attention: a few rows of queries against blocks of the KV cache.

Blocks hold 16 tokens in float16. A block of keys is [head_dim, 16], so that a vector is one channel
of 16 tokens and no sum goes across lanes; a block of values is [16, head_dim].
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.limits import BLOCK_SIZE
from octavo.engine.kernels.cpu.simd_types import F32, I32, I64, LANES

_CHANNELS_AT_ONCE = 4
BLOCKS_AHEAD = 3
"""How far ahead of its use a block is asked for: they lie anywhere, no processor foresees it."""
_VECTOR_BYTES = LANES * 4
_HALF_BYTES = LANES * 2
_FLOATS = ir.VectorType(F32, LANES)


def _number(value: int) -> Any:
    return ir.Constant(I64, value)


def _further(b: Any, address: Any, count: Any, num_bytes: int) -> Any:
    """The address `count` times so many bytes further on."""
    return b.add(address, b.mul(count, _number(num_bytes)))


def _smaller(b: Any, left: Any, right: Any) -> Any:
    return b.select(b.icmp_signed("<", left, right), left, right)


def _table_entry(b: Any, table: Any, index: Any) -> Any:
    return b.sext(emit.load(b, _further(b, table, index, 4), I32), I64)


@contextlib.contextmanager
def _loop(b: Any, count: Any) -> Iterator[Any]:
    with cgutils.for_range(b, count, intp=I64) as loop:
        yield loop.index


class _Sums:
    """Vectors that change in a loop; LLVM keeps them in registers."""

    def __init__(self, b: Any, starts: list[Any]) -> None:
        self._builder = b
        self._places = [cgutils.alloca_once(b, start.type) for start in starts]
        for place, start in zip(self._places, starts, strict=True):
            b.store(start, place)

    def add_products(self, factor: Any, vectors: list[Any]) -> None:
        b = self._builder
        for vector, place in zip(vectors, self._places, strict=True):
            b.store(emit.fma(b, factor, vector, b.load(place)), place)

    def values(self) -> list[Any]:
        return [self._builder.load(place) for place in self._places]


@intrinsic(prefer_literal=True)
def score_blocks(
    _context: Any,
    rows: Any,
    blocks: Any,
    query: Any,
    query_stride: Any,
    keys: Any,
    table: Any,
    block_bytes: Any,
    last: Any,
    head_dim: Any,
    scores: Any,
    score_stride: Any,
    values: Any,
) -> Any:
    """Writes the products of some queries with the keys of consecutive blocks.

    Meanwhile it asks for the keys of later blocks and for these blocks' values.

    Args:
        rows: of queries, known when this is compiled.
        blocks: at a time, known when this is compiled.
        query: [rows, head_dim], float32, rows `query_stride` bytes apart.
        query_stride: in bytes.
        keys: of this head in block 0; block b lies b * `block_bytes` further.
        table: [blocks], int32.
        block_bytes: from a block to the next.
        last: the highest index into `table`, which stands for all above it.
        head_dim: divisible by 4.
        scores: [rows, blocks * 16], float32, rows `score_stride` bytes apart.
        score_stride: in bytes.
        values: of this head in block 0.
    """
    num_rows, num_blocks = rows.literal_value, blocks.literal_value
    distance = -(-BLOCKS_AHEAD // num_blocks) * num_blocks

    def generate(target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        query, query_stride, keys, table, block_bytes, last, head_dim, scores, score_stride = (
            arguments[2:11]
        )

        def in_block(start: Any, number: int) -> Any:
            block = _table_entry(b, table, _smaller(b, _number(number), last))
            return b.add(start, b.mul(block, block_bytes))

        starts = [in_block(keys, number) for number in range(num_blocks)]
        wanted = [in_block(keys, distance + number) for number in range(num_blocks)]
        wanted += [in_block(arguments[11], number) for number in range(num_blocks)]
        queries = [b.add(query, b.mul(query_stride, _number(row))) for row in range(num_rows)]
        sums = [_Sums(b, [emit.constant(_FLOATS, 0.0)] * num_blocks) for _ in queries]
        with _loop(b, b.udiv(head_dim, _number(_CHANNELS_AT_ONCE))) as step:
            for start in wanted:
                place = _further(b, start, step, _CHANNELS_AT_ONCE * _HALF_BYTES)
                for line in range(0, _CHANNELS_AT_ONCE * _HALF_BYTES, 64):
                    emit.prefetch(b, emit.offset(b, place, line))
            for channel in range(_CHANNELS_AT_ONCE):
                vectors = []
                for start in starts:
                    place = _further(b, start, step, _CHANNELS_AT_ONCE * _HALF_BYTES)
                    place = emit.offset(b, place, channel * _HALF_BYTES)
                    vectors.append(emit.load_half(b, place, LANES))
                for row, row_sums in zip(queries, sums, strict=True):
                    place = _further(b, row, step, _CHANNELS_AT_ONCE * 4)
                    factor = emit.load(b, emit.offset(b, place, channel * 4), F32)
                    row_sums.add_products(emit.splat(b, factor, LANES), vectors)
        for row, row_sums in enumerate(sums):
            start = b.add(scores, b.mul(score_stride, _number(row)))
            for number, total in enumerate(row_sums.values()):
                emit.store(b, emit.offset(b, start, number * _VECTOR_BYTES), total)
        return target.get_dummy_value()

    addresses_and_numbers = (
        *(types.uint64, types.int64, types.uint64, types.uint64),
        *(types.int64, types.int64, types.int64, types.uint64, types.int64, types.uint64),
    )
    return types.void(rows, blocks, *addresses_and_numbers), generate


@intrinsic(prefer_literal=True)
def weigh_values(
    _context: Any,
    rows: Any,
    vectors: Any,
    weights: Any,
    weight_stride: Any,
    values: Any,
    table: Any,
    block_bytes: Any,
    num_tokens: Any,
    row_bytes: Any,
    output: Any,
    output_stride: Any,
) -> Any:
    """Adds the weighted values of consecutive blocks to some rows of the output.

    Args:
        rows: of the output, known when this is compiled.
        vectors: of 16 channels, known when this is compiled.
        weights: [rows, num_tokens], float32, rows `weight_stride` bytes apart.
        weight_stride: in bytes.
        values: of this head and the first of the channels in block 0.
        table: int32.
        block_bytes: from a block to the next.
        num_tokens: in all blocks together; the rest of the last is not read.
        row_bytes: from a token's values to the next one's.
        output: [rows, vectors * 16], float32, rows `output_stride` bytes apart.
        output_stride: in bytes.
    """
    num_rows, num_vectors = rows.literal_value, vectors.literal_value

    def generate(target: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        weights, weight_stride, values, table, block_bytes, num_tokens, row_bytes = arguments[2:9]
        output, output_stride = arguments[9:]
        outputs = [b.add(output, b.mul(output_stride, _number(row))) for row in range(num_rows)]
        places = [
            [emit.offset(b, start, number * _VECTOR_BYTES) for number in range(num_vectors)]
            for start in outputs
        ]
        sums = [_Sums(b, [emit.load(b, place, _FLOATS) for place in row]) for row in places]
        factors = [b.add(weights, b.mul(weight_stride, _number(row))) for row in range(num_rows)]
        block_size = _number(BLOCK_SIZE)
        num_blocks = b.udiv(b.add(num_tokens, _number(BLOCK_SIZE - 1)), block_size)
        with _loop(b, num_blocks) as number:
            start = b.add(values, b.mul(_table_entry(b, table, number), block_bytes))
            before = b.mul(number, block_size)
            with _loop(b, _smaller(b, b.sub(num_tokens, before), block_size)) as token:
                place = b.add(start, b.mul(token, row_bytes))
                loaded = [
                    emit.load_half(b, emit.offset(b, place, vector * _HALF_BYTES), LANES)
                    for vector in range(num_vectors)
                ]
                for row, row_sums in zip(factors, sums, strict=True):
                    factor = emit.load(b, _further(b, row, b.add(before, token), 4), F32)
                    row_sums.add_products(emit.splat(b, factor, LANES), loaded)
        for row_places, row_sums in zip(places, sums, strict=True):
            for place, total in zip(row_places, row_sums.values(), strict=True):
                emit.store(b, place, total)
        return target.get_dummy_value()

    addresses_and_numbers = (
        *(types.uint64, types.int64, types.uint64, types.uint64),
        *(types.int64, types.int64, types.int64, types.uint64, types.int64),
    )
    return types.void(rows, vectors, *addresses_and_numbers), generate

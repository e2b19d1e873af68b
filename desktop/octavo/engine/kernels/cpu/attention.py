"""Causal attention over the paged KV cache, for decodes and prompts alike.

Queries are taken in tiles of rows that share a key head: the query heads of one token, or of many
tokens of one sequence. A tile walks its context in stretches whose scores stay in the nearest
cache, and keeps maximum and sum as it goes.

Source: Dao et al. 2022, arXiv:2205.14135 (tiles); Kwon et al. 2023, arXiv:2309.06180 (blocks).
"""

import math

from numba import cfunc, float32, njit, uint64

from octavo.engine.kernels.cpu import attention_prompt, rotary
from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.attention_prompt import attend_prompt
from octavo.engine.kernels.cpu.attention_rows import (
    LOWEST,
    MAY_ROUND,
    PART_NUMBERS,
    PARTS,
    SCALE,
    SINKS,
    SOFTCAP,
    WINDOW,
    context_of,
    hide_scores,
    highest_of,
    scale_row,
    squeeze_scores,
    write_row,
)
from octavo.engine.kernels.cpu.attention_tiles import BLOCKS_AHEAD, score_blocks, weigh_values
from octavo.engine.kernels.cpu.limits import BLOCK_SIZE, MAX_HEAD_DIM
from octavo.engine.kernels.cpu.norm import add_scaled
from octavo.engine.kernels.cpu.rotary import turn_heads
from octavo.engine.kernels.cpu.simd import (
    TIER,
    add,
    at,
    exp,
    load_f32,
    prefetch,
    read_f32,
    read_i32,
    read_i64,
    read_u64,
    splat_f32,
    store_f32,
    sub,
    sum_f32,
    write_f32,
    write_i64,
    zero_f32,
)
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.step_loop import KERNEL_SIGNATURE

TILE_ROWS = attention_prompt.TILE_ROWS
"""Rows of a tile: whole parts of what any tier computes together, and any group of heads."""
STRETCH = 256
"""Keys whose scores are held at a time."""
_HAS_WIDE_REGISTERS = TIER is Tier.AVX512VNNI
_MOST_ROWS = 8 if _HAS_WIDE_REGISTERS else 6
"""Rows that are computed together: as many as have their sums in registers."""
_SCORE_BYTES = 4 * (STRETCH + 4 * BLOCK_SIZE)
"""Of a row; the last step may write some blocks more."""

# What lies where in a thread's scratch memory.
_QUERIES = 0
_OUTPUTS = _QUERIES + 4 * _MOST_ROWS * MAX_HEAD_DIM
_SCORES = _OUTPUTS + 4 * _MOST_ROWS * MAX_HEAD_DIM
_ENDS = _SCORES + _MOST_ROWS * _SCORE_BYTES
_MAXIMA = _ENDS + 8 * _MOST_ROWS
_SUMS = _MAXIMA + 4 * _MOST_ROWS
SCRATCH_BYTES = max(_SUMS + 4 * _MOST_ROWS, attention_prompt.SCRATCH_BYTES)


@njit(nogil=True, cache=True)
def _exponentiate(scores, num_vectors, highest):
    """Replaces each score by exp(score - highest), and returns their sum."""
    shift, total = splat_f32(highest), zero_f32()
    for number in range(num_vectors):
        place = at(scores, 64 * number)
        weights = exp(sub(load_f32(place), shift))
        store_f32(place, weights)
        total = add(total, weights)
    return sum_f32(total)


@njit(nogil=True, cache=True)
def _weigh_stretch(row, output, start, num_vectors, end, window, softcap, head_dim, state):
    """Turns a row's scores into weights, and its maximum, sum and output into the new scale.

    Args:
        row: address of the scores.
        output: address of the row's output so far.
        start: the first key's position.
        num_vectors: of scores.
        end: how many keys the query may see if there is no window.
        window: as in the operation.
        softcap: as in the operation.
        head_dim: of the output.
        state: address of the row's maximum; its sum lies `_SUMS - _MAXIMA` further.
    """
    if softcap != 0:
        squeeze_scores(row, num_vectors, softcap)
    hide_scores(row, num_vectors, start, end, window)
    before = read_f32(state)
    highest = highest_of(row, num_vectors, before)
    total = _exponentiate(row, num_vectors, highest)
    place = at(state, _SUMS - _MAXIMA)
    if highest != before:
        shrink = float32(math.exp(max(before - highest, float32(-87.0))))
        scale_row(output, output, head_dim, shrink)
        total += read_f32(place) * shrink
        write_f32(state, highest)
    else:
        total += read_f32(place)
    write_f32(place, total)


def _make_attend(rows, blocks, vectors):
    """Attention of a fixed number of rows, whose inner loops are unrolled for it.

    Args:
        rows: that are computed together.
        blocks: of keys that they meet at a time.
        vectors: of channels of values that are summed at a time.
    """

    @njit(nogil=True, cache=True, inline="never")
    def attend(scratch, keys, values, table, block_bytes, first, end, head_dim, window, softcap):
        """Lets the rows in the scratch memory attend to the keys from `first` to `end`.

        Args:
            scratch: address; queries, ends, maxima, sums and outputs are set.
            keys: address of this head's keys in block 0.
            values: address of this head's values in block 0.
            table: address of the sequence's block table, int32.
            block_bytes: from a block to the next.
            first: divisible by 16.
            end: the last key and one.
            head_dim: divisible by 16.
            window: as in the operation.
            softcap: as in the operation.
        """
        queries, outputs, scores = (
            at(scratch, _QUERIES),
            at(scratch, _OUTPUTS),
            at(scratch, _SCORES),
        )
        stride = 4 * head_dim
        for start in range(first, end, STRETCH):
            num_keys = min(STRETCH, end - start)
            num_blocks = (num_keys + BLOCK_SIZE - 1) // BLOCK_SIZE
            blocks_here = at(table, 4 * (start // BLOCK_SIZE))
            for number in range(0, num_blocks, blocks):
                score_blocks(
                    rows,
                    blocks,
                    queries,
                    stride,
                    keys,
                    at(blocks_here, 4 * number),
                    block_bytes,
                    num_blocks - 1 - number,
                    head_dim,
                    at(scores, 64 * number),
                    _SCORE_BYTES,
                    values,
                )
            for row in range(rows):
                _weigh_stretch(
                    at(scores, _SCORE_BYTES * row),
                    at(outputs, stride * row),
                    start,
                    num_blocks,
                    read_i64(at(scratch, _ENDS + 8 * row)),
                    window,
                    softcap,
                    head_dim,
                    at(scratch, _MAXIMA + 4 * row),
                )
            vector = 0
            while vector + vectors <= head_dim // 16:
                weigh_values(
                    rows,
                    vectors,
                    scores,
                    _SCORE_BYTES,
                    at(values, 32 * vector),
                    blocks_here,
                    block_bytes,
                    num_keys,
                    2 * head_dim,
                    at(outputs, 64 * vector),
                    stride,
                )
                vector += vectors
            while vector < head_dim // 16:
                weigh_values(
                    rows,
                    1,
                    scores,
                    _SCORE_BYTES,
                    at(values, 32 * vector),
                    blocks_here,
                    block_bytes,
                    num_keys,
                    2 * head_dim,
                    at(outputs, 64 * vector),
                    stride,
                )
                vector += 1

    return attend


# Sums, one vector of each operand and one factor must fit the registers: 32 long ones, or 16 of
# which a vector takes two.
_attend_1 = _make_attend(1, 4, 4)
_attend_2 = _make_attend(2, 4, 4) if _HAS_WIDE_REGISTERS else _make_attend(2, 2, 2)
_attend_3 = _make_attend(3, 2, 4) if _HAS_WIDE_REGISTERS else _make_attend(3, 1, 1)
_attend_4 = _make_attend(4, 2, 2) if _HAS_WIDE_REGISTERS else _make_attend(4, 1, 1)
_attend_most = _make_attend(_MOST_ROWS, *((2, 2) if _HAS_WIDE_REGISTERS else (1, 1)))


@njit(nogil=True, cache=True)
def _part_of(operation, step, tile, split, head):
    """The address of a row of PARTS."""
    num_heads = read_i64(at(operation, 8 * rotary.GROUP_SIZE))
    num_heads *= read_i64(at(operation, 8 * rotary.NUM_KV_HEADS))
    row_bytes = 4 * (read_i64(at(operation, 8 * rotary.HEAD_DIM)) + PART_NUMBERS)
    number = (tile * read_i64(at(step, 8 * words.NUM_SPLITS)) + split) * num_heads + head
    return at(read_u64(at(operation, 8 * PARTS)), row_bytes * number)


@njit(nogil=True, cache=True)
def _attend_rows(operation, step, scratch, sequence, kv_head, begin, rows, split):
    """Computes some rows of a sequence: row i is its token i // group_size of this step."""
    head_dim = read_i64(at(operation, 8 * rotary.HEAD_DIM))
    group_size = read_i64(at(operation, 8 * rotary.GROUP_SIZE))
    window = read_i64(at(operation, 8 * WINDOW))
    sinks = read_u64(at(operation, 8 * SINKS))
    scale = read_f32(at(operation, 8 * SCALE))
    projected = read_u64(at(operation, 8 * rotary.PROJECTED))
    row_bytes = read_i64(at(operation, 8 * rotary.ROW_BYTES))
    positions = read_u64(at(step, 8 * words.POSITIONS))
    token = int(read_i32(at(read_u64(at(step, 8 * words.FIRST_TOKENS)), 4 * sequence)))
    first_end = read_i64(at(positions, 8 * (token + begin // group_size))) + 1
    last_end = first_end
    for row in range(rows):
        index = begin + row
        last_end = read_i64(at(positions, 8 * (token + index // group_size))) + 1
        head = kv_head * group_size + index % group_size
        query = at(projected, (token + index // group_size) * row_bytes + 4 * head_dim * head)
        scale_row(query, at(scratch, _QUERIES + 4 * head_dim * row), head_dim, scale)
        output = at(scratch, _OUTPUTS + 4 * head_dim * row)
        for channel in range(0, head_dim, 16):
            store_f32(at(output, 4 * channel), zero_f32())
        highest, total = float32(LOWEST), float32(0.0)
        if sinks != 0 and split == 0:
            highest, total = read_f32(at(sinks, 4 * head)), float32(1.0)
        write_f32(at(scratch, _MAXIMA + 4 * row), highest)
        write_f32(at(scratch, _SUMS + 4 * row), total)
        write_i64(at(scratch, _ENDS + 8 * row), last_end)
    first = 0
    if window != 0:
        first = max(0, first_end - window) // BLOCK_SIZE * BLOCK_SIZE
    num_splits = read_i64(at(step, 8 * words.NUM_SPLITS))
    if num_splits > 1:
        num_blocks = (last_end - first + BLOCK_SIZE - 1) // BLOCK_SIZE
        span = (num_blocks + num_splits - 1) // num_splits * BLOCK_SIZE
        first += span * split
        last_end = min(last_end, first + span)
    keys, values, table, block_bytes = context_of(operation, step, sequence, kv_head)
    softcap = read_f32(at(operation, 8 * SOFTCAP))
    arguments = (
        *(scratch, keys, values, table, block_bytes, first, last_end, head_dim, window, softcap),
    )
    if rows == 1:
        _attend_1(*arguments)
    elif rows == 2:
        _attend_2(*arguments)
    elif rows == 3:
        _attend_3(*arguments)
    elif rows == 4:
        _attend_4(*arguments)
    else:
        _attend_most(*arguments)
    for row in range(rows):
        index = begin + row
        head = kv_head * group_size + index % group_size
        source = at(scratch, _OUTPUTS + 4 * head_dim * row)
        total = read_f32(at(scratch, _SUMS + 4 * row))
        if num_splits == 1:
            write_row(operation, token + index // group_size, head, source, float32(1.0) / total)
            continue
        place = _part_of(operation, step, sequence, split, head)
        scale_row(source, place, head_dim, float32(1.0))
        write_f32(at(place, 4 * head_dim), read_f32(at(scratch, _MAXIMA + 4 * row)))
        write_f32(at(place, 4 * head_dim + 4), total)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def join_parts(operation, step, scratch, begin, end):
    """Joins what threads found in parts of a context. Extent: NUM_JOINED times the heads.

    Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
    """
    op, step_, sums = uint64(operation), uint64(step), at(uint64(scratch), _OUTPUTS)
    head_dim = read_i64(at(op, 8 * rotary.HEAD_DIM))
    num_heads = read_i64(at(op, 8 * rotary.GROUP_SIZE))
    num_heads *= read_i64(at(op, 8 * rotary.NUM_KV_HEADS))
    num_splits = read_i64(at(step_, 8 * words.NUM_SPLITS))
    for index in range(begin, end):
        sequence, head = index // num_heads, index % num_heads
        highest = float32(LOWEST)
        for split in range(num_splits):
            part = _part_of(op, step_, sequence, split, head)
            highest = max(highest, read_f32(at(part, 4 * head_dim)))
        total = float32(0.0)
        for split in range(num_splits):
            part = _part_of(op, step_, sequence, split, head)
            distance = read_f32(at(part, 4 * head_dim)) - highest
            share = float32(math.exp(max(distance, float32(-87.0))))
            total += share * read_f32(at(part, 4 * head_dim + 4))
            if split == 0:
                scale_row(part, sums, head_dim, share)
            else:
                add_scaled(sums, part, head_dim, share)
        write_row(op, sequence, head, sums, float32(1.0) / total)


@njit(nogil=True, cache=True)
def _ask_for_keys(operation, step, sequence, kv_head):
    """Asks for the first blocks of keys, before there is time for it."""
    keys, _values, table, block_bytes = context_of(operation, step, sequence, kv_head)
    num_bytes = 2 * BLOCK_SIZE * read_i64(at(operation, 8 * rotary.HEAD_DIM))
    num_keys = read_i64(at(read_u64(at(step, 8 * words.POSITIONS)), 8 * sequence)) + 1
    for number in range(min(BLOCKS_AHEAD, (num_keys + BLOCK_SIZE - 1) // BLOCK_SIZE)):
        block = int(read_i32(at(table, 4 * number)))
        start = at(keys, block * block_bytes)
        for line in range(0, num_bytes, 64):
            prefetch(at(start, line))


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def attend_tiles(operation, step, scratch, begin, end):
    """Lets tiles of queries attend; a decode is turned and cached first.

    Extent: NUM_TILES times NUM_KV_HEADS.
    """
    operation_, step_, scratch_ = uint64(operation), uint64(step), uint64(scratch)
    num_kv_heads = read_i64(at(operation_, 8 * rotary.NUM_KV_HEADS))
    group_size = read_i64(at(operation_, 8 * rotary.GROUP_SIZE))
    num_decode = read_i64(at(step_, 8 * words.NUM_DECODE))
    num_splits = read_i64(at(step_, 8 * words.NUM_SPLITS))
    may_round = attention_prompt.IS_USED and read_i64(at(operation_, 8 * MAY_ROUND)) != 0
    sequences = read_u64(at(step_, 8 * words.TILE_SEQUENCES))
    starts = read_u64(at(step_, 8 * words.TILE_STARTS))
    first_tokens = read_u64(at(step_, 8 * words.FIRST_TOKENS))
    for index in range(begin, end):
        part, kv_head = index // num_kv_heads, index % num_kv_heads
        tile, split = part // num_splits, part % num_splits
        sequence = int(read_i32(at(sequences, 4 * tile)))
        row = int(read_i32(at(starts, 4 * tile)))
        if sequence < num_decode:
            _ask_for_keys(operation_, step_, sequence, kv_head)
            turn_heads(operation_, step_, sequence, kv_head)
        num_tokens = read_i32(at(first_tokens, 4 * (sequence + 1)))
        num_tokens -= read_i32(at(first_tokens, 4 * sequence))
        end_row = min(row + TILE_ROWS, int(num_tokens) * group_size)
        if may_round and sequence >= num_decode and num_splits == 1:
            attend_prompt(operation_, step_, scratch_, sequence, kv_head, row, end_row - row)
            continue
        while row < end_row:
            rows = min(_MOST_ROWS, end_row - row)
            if 4 < rows < _MOST_ROWS:
                rows = 4
            _attend_rows(operation_, step_, scratch_, sequence, kv_head, row, rows, split)
            row += rows

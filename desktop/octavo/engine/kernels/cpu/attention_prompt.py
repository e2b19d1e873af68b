"""Attention of prompts in 16 bits: tiles of many rows, for processors that multiply pairs of them.

A stretch of the context is rounded once for all rows of a tile: keys to integers, as fine as
float16, and values to bfloat16; scores, maxima, sums and outputs are float32. Scores are in units
of ln 2, so that weights are powers of two.

Source: Dao et al. 2022, arXiv:2205.14135.
"""

import math

from numba import float32, njit

from octavo.engine.kernels.cpu import rotary
from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.attention_pairs import COLUMNS, ROWS, score_pairs, weigh_pairs
from octavo.engine.kernels.cpu.attention_rows import (
    LOWEST,
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
from octavo.engine.kernels.cpu.limits import BLOCK_SIZE, MAX_HEAD_DIM
from octavo.engine.kernels.cpu.simd import (
    add,
    at,
    div,
    exp2_coarse,
    fma,
    load_f16,
    load_f32,
    maximum,
    mul,
    read_f32,
    read_i32,
    read_i64,
    read_u64,
    splat_f32,
    square_root,
    store_bfloat_pairs,
    store_bfloats,
    store_f32,
    store_word_pairs,
    store_words,
    sub,
    sum_f32,
    write_f32,
    write_i64,
    zero_f32,
)
from octavo.engine.kernels.cpu.simd_tier import has_bfloat_dots

IS_USED = has_bfloat_dots()
"""Whether prompts are computed here, where they may round: all of their tokens, however they are
cut into steps, so that a text is the same whatever part of its prompt was cached."""
TILE_ROWS = 192
"""At most; a multiple of `ROWS`."""
STRETCH = 512
"""Keys that are held in 16 bits at a time: with their values, and the tile, they stay in L2."""
_LONGEST = 32000.0
"""Length of a query or key in steps of its integers: no product of two passes 2 ** 31."""
_SCORE_BYTES = 4 * (STRETCH + COLUMNS * BLOCK_SIZE)
"""Of a row; the last step may write a block more."""
_WEIGHT_BYTES = 2 * STRETCH
_SHORTEST = 1e-30
"""Length that a vector of nothing but zeros is given."""
_LOG2_E = 1.4426950408889634

# What lies where in a thread's scratch memory.
_QUERIES = 0
_OUTPUTS = _QUERIES + 2 * TILE_ROWS * MAX_HEAD_DIM
_KEYS = _OUTPUTS + 4 * TILE_ROWS * MAX_HEAD_DIM
_VALUES = _KEYS + 2 * (STRETCH + COLUMNS * BLOCK_SIZE) * MAX_HEAD_DIM
_SCORES = _VALUES + 2 * STRETCH * MAX_HEAD_DIM
_WEIGHTS = _SCORES + ROWS * _SCORE_BYTES
_ENDS = _WEIGHTS + ROWS * _WEIGHT_BYTES
_QUERY_STEPS = _ENDS + 8 * TILE_ROWS
_KEY_STEPS = _QUERY_STEPS + 4 * TILE_ROWS
_MAXIMA = _KEY_STEPS + 4 * (STRETCH + COLUMNS * BLOCK_SIZE)
_SUMS = _MAXIMA + 4 * TILE_ROWS
SCRATCH_BYTES = _SUMS + 4 * TILE_ROWS if IS_USED else 0


@njit(nogil=True, cache=True)
def _take_queries(operation, step, scratch, sequence, kv_head, begin, rows):
    """Rounds queries to integers and sets what their rows begin with.

    Returns how many keys the first row sees if there is no window. Rows that are missing in the
    last part are as the last one, and not written.
    """
    head_dim = read_i64(at(operation, 8 * rotary.HEAD_DIM))
    group_size = read_i64(at(operation, 8 * rotary.GROUP_SIZE))
    sinks = read_u64(at(operation, 8 * SINKS))
    projected = read_u64(at(operation, 8 * rotary.PROJECTED))
    row_bytes = read_i64(at(operation, 8 * rotary.ROW_BYTES))
    positions = read_u64(at(step, 8 * words.POSITIONS))
    first_token = int(read_i32(at(read_u64(at(step, 8 * words.FIRST_TOKENS)), 4 * sequence)))
    factor = read_f32(at(operation, 8 * SCALE))
    if read_f32(at(operation, 8 * SOFTCAP)) == 0:
        factor *= float32(_LOG2_E)
    first_end = 0
    for row in range((rows + ROWS - 1) // ROWS * ROWS):
        index = begin + min(row, rows - 1)
        token = first_token + index // group_size
        head = kv_head * group_size + index % group_size
        query = at(projected, token * row_bytes + 4 * head_dim * head)
        target = at(scratch, _QUERIES + 2 * head_dim * row)
        output = at(scratch, _OUTPUTS + 4 * head_dim * row)
        squares = zero_f32()
        for channel in range(0, head_dim, 16):
            numbers = load_f32(at(query, 4 * channel))
            squares = fma(numbers, numbers, squares)
            store_f32(at(output, 4 * channel), zero_f32())
        length = max(float32(math.sqrt(sum_f32(squares))), float32(_SHORTEST))
        write_f32(at(scratch, _QUERY_STEPS + 4 * row), factor * length / float32(_LONGEST))
        steps = splat_f32(float32(_LONGEST) / length)
        for channel in range(0, head_dim, 16):
            store_words(at(target, 2 * channel), mul(load_f32(at(query, 4 * channel)), steps))
        highest, total = float32(LOWEST), float32(0.0)
        if sinks != 0:
            highest, total = read_f32(at(sinks, 4 * head)) * float32(_LOG2_E), float32(1.0)
        write_f32(at(scratch, _MAXIMA + 4 * row), highest)
        write_f32(at(scratch, _SUMS + 4 * row), total)
        end = read_i64(at(positions, 8 * token)) + 1
        write_i64(at(scratch, _ENDS + 8 * row), end)
        if row == 0:
            first_end = end
    return first_end


@njit(nogil=True, cache=True)
def _take_keys(source, target, steps, head_dim):
    """Rounds a block of keys, [head_dim, 16]: pairs of channels, and each key's step."""
    squares = zero_f32()
    for channel in range(head_dim):
        numbers = load_f16(at(source, 2 * BLOCK_SIZE * channel))
        squares = fma(numbers, numbers, squares)
    lengths = maximum(square_root(squares), splat_f32(float32(_SHORTEST)))
    store_f32(steps, div(lengths, splat_f32(float32(_LONGEST))))
    factors = div(splat_f32(float32(_LONGEST)), lengths)
    for channel in range(0, head_dim, 2):
        place = at(source, 2 * BLOCK_SIZE * channel)
        first, second = load_f16(place), load_f16(at(place, 2 * BLOCK_SIZE))
        goal = at(target, 2 * BLOCK_SIZE * channel)
        store_word_pairs(goal, mul(first, factors), mul(second, factors))


@njit(nogil=True, cache=True)
def _take_values(source, target, num_tokens, head_dim):
    """Rounds a block of values, [16, head_dim]: pairs of tokens; what is behind is not read."""
    for token in range(0, num_tokens, 2):
        for channel in range(0, head_dim, 16):
            place = at(source, 2 * (head_dim * token + channel))
            second = zero_f32()
            if token + 1 < num_tokens:
                second = load_f16(at(place, 2 * head_dim))
            goal = at(target, 2 * head_dim * token + 4 * channel)
            store_bfloat_pairs(goal, load_f16(place), second)


@njit(nogil=True, cache=True)
def _exponentiate(scores, weights, num_vectors, highest):
    """Writes 2 to the power of (score - highest) as bfloat16, and returns their sum."""
    shift, total = splat_f32(highest), zero_f32()
    for number in range(num_vectors):
        power = exp2_coarse(sub(load_f32(at(scores, 64 * number)), shift))
        store_bfloats(at(weights, 32 * number), power)
        total = add(total, power)
    return sum_f32(total)


@njit(nogil=True, cache=True)
def _weigh_row(operation, scratch, row, start, num_vectors):
    """Turns a row's scores into weights, and its maximum, sum and output into the new scale.

    Args:
        operation: address.
        scratch: address.
        row: of the tile.
        start: the first key's position.
        num_vectors: of scores.
    """
    scores = at(scratch, _SCORES + _SCORE_BYTES * (row % ROWS))
    weights = at(scratch, _WEIGHTS + _WEIGHT_BYTES * (row % ROWS))
    softcap = read_f32(at(operation, 8 * SOFTCAP))
    if softcap != 0:
        squeeze_scores(scores, num_vectors, softcap)
        scale_row(scores, scores, 16 * num_vectors, float32(_LOG2_E))
    end = read_i64(at(scratch, _ENDS + 8 * row))
    hide_scores(scores, num_vectors, start, end, read_i64(at(operation, 8 * WINDOW)))
    top, sums = at(scratch, _MAXIMA + 4 * row), at(scratch, _SUMS + 4 * row)
    before = read_f32(top)
    highest = highest_of(scores, num_vectors, before)
    total = _exponentiate(scores, weights, num_vectors, highest)
    if highest != before:
        shrink = float32(math.exp2(max(before - highest, float32(-126.0))))
        head_dim = read_i64(at(operation, 8 * rotary.HEAD_DIM))
        output = at(scratch, _OUTPUTS + 4 * head_dim * row)
        scale_row(output, output, head_dim, shrink)
        write_f32(sums, total + read_f32(sums) * shrink)
        write_f32(top, highest)
    else:
        write_f32(sums, total + read_f32(sums))


@njit(nogil=True, cache=True)
def _attend_part(operation, scratch, first_row, start, num_keys):
    """Lets `ROWS` rows of the tile attend to the first keys of the stretch."""
    head_dim = read_i64(at(operation, 8 * rotary.HEAD_DIM))
    queries = at(scratch, _QUERIES + 2 * head_dim * first_row)
    outputs = at(scratch, _OUTPUTS + 4 * head_dim * first_row)
    keys, values = at(scratch, _KEYS), at(scratch, _VALUES)
    scores, weights = at(scratch, _SCORES), at(scratch, _WEIGHTS)
    num_blocks = (num_keys + BLOCK_SIZE - 1) // BLOCK_SIZE
    for block in range(0, num_blocks, COLUMNS):
        score_pairs(
            queries,
            2 * head_dim,
            at(scratch, _QUERY_STEPS + 4 * first_row),
            at(keys, 2 * BLOCK_SIZE * head_dim * block),
            at(scratch, _KEY_STEPS + 4 * BLOCK_SIZE * block),
            head_dim // 2,
            at(scores, 64 * block),
            _SCORE_BYTES,
        )
    for row in range(first_row, first_row + ROWS):
        _weigh_row(operation, scratch, row, start, num_blocks)
    num_pairs, channel = (num_keys + 1) // 2, 0
    while channel + 16 * COLUMNS <= head_dim:
        weigh_pairs(
            COLUMNS,
            weights,
            _WEIGHT_BYTES,
            at(values, 4 * channel),
            num_pairs,
            4 * head_dim,
            at(outputs, 4 * channel),
            4 * head_dim,
        )
        channel += 16 * COLUMNS
    while channel < head_dim:
        weigh_pairs(
            1,
            weights,
            _WEIGHT_BYTES,
            at(values, 4 * channel),
            num_pairs,
            4 * head_dim,
            at(outputs, 4 * channel),
            4 * head_dim,
        )
        channel += 16


def _attend_prompt(operation, step, scratch, sequence, kv_head, begin, rows):
    """Computes a tile: row i is the sequence's token i // group_size of this step.

    Args:
        operation: address.
        step: address of the step's words.
        scratch: address.
        sequence: of the step.
        kv_head: of keys and values.
        begin: the first row.
        rows: at most `TILE_ROWS`.
    """
    head_dim = read_i64(at(operation, 8 * rotary.HEAD_DIM))
    group_size = read_i64(at(operation, 8 * rotary.GROUP_SIZE))
    window = read_i64(at(operation, 8 * WINDOW))
    first_end = _take_queries(operation, step, scratch, sequence, kv_head, begin, rows)
    last_end = read_i64(at(scratch, _ENDS + 8 * (rows - 1)))
    first = 0
    if window != 0:
        first = max(0, first_end - window) // BLOCK_SIZE * BLOCK_SIZE
    keys, values, table, block_bytes = context_of(operation, step, sequence, kv_head)
    for start in range(first, last_end, STRETCH):
        stretch_end = min(start + STRETCH, last_end)
        for position in range(start, stretch_end, BLOCK_SIZE):
            block = int(read_i32(at(table, 4 * (position // BLOCK_SIZE)))) * block_bytes
            place = 2 * head_dim * (position - start)
            steps = at(scratch, _KEY_STEPS + 4 * (position - start))
            _take_keys(at(keys, block), at(scratch, _KEYS + place), steps, head_dim)
            num_tokens = min(BLOCK_SIZE, stretch_end - position)
            _take_values(at(values, block), at(scratch, _VALUES + place), num_tokens, head_dim)
        for row in range(0, rows, ROWS):
            part_end = read_i64(at(scratch, _ENDS + 8 * (row + ROWS - 1)))
            num_keys = min(stretch_end, part_end) - start
            if num_keys > 0:
                _attend_part(operation, scratch, row, start, num_keys)
    first_token = int(read_i32(at(read_u64(at(step, 8 * words.FIRST_TOKENS)), 4 * sequence)))
    for row in range(rows):
        index = begin + row
        head = kv_head * group_size + index % group_size
        source = at(scratch, _OUTPUTS + 4 * head_dim * row)
        total = read_f32(at(scratch, _SUMS + 4 * row))
        write_row(operation, first_token + index // group_size, head, source, float32(1.0) / total)


def _refuse(_operation, _step, _scratch, _sequence, _kv_head, _begin, _rows):
    """For processors that LLVM has no such instructions for: it would abort the process."""
    raise AssertionError("no tile is computed here unless IS_USED")


attend_prompt = njit(nogil=True, cache=True)(_attend_prompt if IS_USED else _refuse)

"""Turning queries and keys by their positions, and writing keys and values into the KV cache."""

import math

from numba import cfunc, float32, njit, uint64

from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.limits import BLOCK_SIZE
from octavo.engine.kernels.cpu.norm import add_to, normalise
from octavo.engine.kernels.cpu.simd import (
    at,
    fma,
    load_f32,
    maximum,
    minimum,
    mul,
    read_f32,
    read_i64,
    read_u64,
    splat_f32,
    store_f16,
    store_f32,
    sub,
    write_f16,
    write_f32,
)
from octavo.engine.kernels.cpu.step_loop import FIRST_ARGUMENT, KERNEL_SIGNATURE

# Words of an operation that handles heads; attention has the same and more.
PROJECTED = FIRST_ARGUMENT
"""Address of [num_tokens, ...], float32: queries, keys and values side by side."""
ROW_BYTES = FIRST_ARGUMENT + 1
NUM_KV_HEADS = FIRST_ARGUMENT + 2
GROUP_SIZE = FIRST_ARGUMENT + 3
"""Query heads that share a key head."""
HEAD_DIM = FIRST_ARGUMENT + 4
KEYS = FIRST_ARGUMENT + 5
"""Address of the layer's keys: [num_blocks, num_kv_heads, head_dim, 16], float16."""
VALUES = FIRST_ARGUMENT + 6
"""Address of the layer's values: [num_blocks, num_kv_heads, 16, head_dim], float16."""
BLOCK_BYTES = FIRST_ARGUMENT + 7
KV_GROUP = FIRST_ARGUMENT + 8
"""Which word of the step the layer's KV group begins at."""
HALF = FIRST_ARGUMENT + 9
"""Half of the channels that are turned; 0: none are."""
COSINES = FIRST_ARGUMENT + 10
"""Address of [num_tokens, HALF], float32."""
SINES = FIRST_ARGUMENT + 11
QUERY_NORM = FIRST_ARGUMENT + 12
"""Address of [head_dim], float32: weights of each query head's norm; 0: there is none."""
KEY_NORM = FIRST_ARGUMENT + 13
EPS = FIRST_ARGUMENT + 14
BIAS = FIRST_ARGUMENT + 15
"""Address of what is added to all heads, as PROJECTED has them, float32; 0: nothing is."""
NUM_HEAD_WORDS = 16

LARGEST_HALF = 65504.0


@njit(nogil=True, cache=True)
def _turn(head, half, cosines, sines):
    """Channel i of a head pairs with i + half."""
    second = at(head, 4 * half)
    whole = half // 16 * 16
    for channel in range(0, whole, 16):
        cosine, sine = load_f32(at(cosines, 4 * channel)), load_f32(at(sines, 4 * channel))
        low, high = load_f32(at(head, 4 * channel)), load_f32(at(second, 4 * channel))
        store_f32(at(head, 4 * channel), sub(mul(low, cosine), mul(high, sine)))
        store_f32(at(second, 4 * channel), fma(high, cosine, mul(low, sine)))
    for channel in range(whole, half):
        cosine, sine = read_f32(at(cosines, 4 * channel)), read_f32(at(sines, 4 * channel))
        low, high = read_f32(at(head, 4 * channel)), read_f32(at(second, 4 * channel))
        write_f32(at(head, 4 * channel), low * cosine - high * sine)
        write_f32(at(second, 4 * channel), high * cosine + low * sine)


@njit(nogil=True, cache=True)
def _store_key(key, block, offset, head_dim):
    """Into one column of a block of keys."""
    for channel in range(head_dim):
        value = read_f32(at(key, 4 * channel))
        value = min(max(value, float32(-LARGEST_HALF)), float32(LARGEST_HALF))
        write_f16(at(block, 2 * (BLOCK_SIZE * channel + offset)), value)


@njit(nogil=True, cache=True)
def _store_value(value, block, offset, head_dim):
    """Into one row of a block of values."""
    low, high = splat_f32(float32(-LARGEST_HALF)), splat_f32(float32(LARGEST_HALF))
    row = at(block, 2 * head_dim * offset)
    for channel in range(0, head_dim, 16):
        vector = minimum(maximum(load_f32(at(value, 4 * channel)), low), high)
        store_f16(at(row, 2 * channel), vector)


@njit(nogil=True, cache=True)
def turn_heads(operation, step, token, kv_head):
    """Norms and turns a key head and its query heads in place, and caches the key and the value."""
    head_dim = read_i64(at(operation, 8 * HEAD_DIM))
    num_kv_heads = read_i64(at(operation, 8 * NUM_KV_HEADS))
    group_size = read_i64(at(operation, 8 * GROUP_SIZE))
    half = read_i64(at(operation, 8 * HALF))
    query_norm, key_norm = (
        read_u64(at(operation, 8 * QUERY_NORM)),
        read_u64(at(operation, 8 * KEY_NORM)),
    )
    bias = read_u64(at(operation, 8 * BIAS))
    eps = read_f32(at(operation, 8 * EPS))
    row = at(read_u64(at(operation, 8 * PROJECTED)), token * read_i64(at(operation, 8 * ROW_BYTES)))
    cosines = at(read_u64(at(operation, 8 * COSINES)), 4 * half * token)
    sines = at(read_u64(at(operation, 8 * SINES)), 4 * half * token)
    queries = at(row, 4 * head_dim * group_size * kv_head)
    key = at(row, 4 * head_dim * (group_size * num_kv_heads + kv_head))
    value = at(key, 4 * head_dim * num_kv_heads)
    if bias != 0:
        of_key = 4 * head_dim * (group_size * num_kv_heads + kv_head)
        add_to(queries, at(bias, 4 * head_dim * group_size * kv_head), head_dim * group_size)
        add_to(key, at(bias, of_key), head_dim)
        add_to(value, at(bias, of_key + 4 * head_dim * num_kv_heads), head_dim)
    for number in range(group_size):
        query = at(queries, 4 * head_dim * number)
        if query_norm != 0:
            normalise(query, query_norm, query, head_dim, eps)
        _turn(query, half, cosines, sines)
    if key_norm != 0:
        normalise(key, key_norm, key, head_dim, eps)
    _turn(key, half, cosines, sines)
    group = read_i64(at(operation, 8 * KV_GROUP))
    slots = read_u64(at(step, 8 * (group + words.SLOTS)))
    slot = read_i64(at(slots, 8 * token))
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    distance = block * read_i64(at(operation, 8 * BLOCK_BYTES))
    distance += 2 * BLOCK_SIZE * head_dim * kv_head
    _store_key(key, at(read_u64(at(operation, 8 * KEYS)), distance), offset, head_dim)
    _store_value(value, at(read_u64(at(operation, 8 * VALUES)), distance), offset, head_dim)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def turn_prompts(operation, step, scratch, begin, end):
    """Turns all heads of the tokens after the decodes; attention does it for those itself.

    Extent: NUM_PREFILL_TOKENS times NUM_KV_HEADS.
    """
    operation_, step_ = uint64(operation), uint64(step)
    num_kv_heads = read_i64(at(operation_, 8 * NUM_KV_HEADS))
    first = read_i64(at(step_, 8 * words.NUM_DECODE))
    for index in range(begin, end):
        turn_heads(operation_, step_, first + index // num_kv_heads, index % num_kv_heads)


FREQUENCIES = FIRST_ARGUMENT
MAGNITUDE = FIRST_ARGUMENT + 1
ANGLES_HALF = FIRST_ARGUMENT + 2
ANGLES_COSINES = FIRST_ARGUMENT + 3
ANGLES_SINES = FIRST_ARGUMENT + 4


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def compute_angles(operation, step, scratch, begin, end):
    """Writes the cosines and sines of some tokens' positions, which all layers read.

    Extent: NUM_TOKENS.
    """
    operation_, step_ = uint64(operation), uint64(step)
    frequencies = read_u64(at(operation_, 8 * FREQUENCIES))
    magnitude = read_f32(at(operation_, 8 * MAGNITUDE))
    half = read_i64(at(operation_, 8 * ANGLES_HALF))
    cosines = read_u64(at(operation_, 8 * ANGLES_COSINES))
    sines = read_u64(at(operation_, 8 * ANGLES_SINES))
    positions = read_u64(at(step_, 8 * words.POSITIONS))
    for token in range(begin, end):
        position = float32(read_i64(at(positions, 8 * token)))
        for channel in range(half):
            angle = float32(position * read_f32(at(frequencies, 4 * channel)))
            place = 4 * (half * token + channel)
            write_f32(at(cosines, place), float32(math.cos(angle)) * magnitude)
            write_f32(at(sines, place), float32(math.sin(angle)) * magnitude)

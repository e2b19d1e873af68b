"""What all ways of attention share: words of the operation, the context, and rows of numbers."""

from numba import float32, njit

from octavo.engine.kernels.cpu import rotary
from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.limits import BLOCK_SIZE
from octavo.engine.kernels.cpu.quantize_activations import quantize_row
from octavo.engine.kernels.cpu.simd import (
    add,
    at,
    div,
    exp,
    load_f32,
    max_f32,
    maximum,
    mul,
    read_i64,
    read_u64,
    splat_f32,
    store_f32,
    sub,
    write_f32,
)
from octavo.engine.kernels.cpu.step_loop import FIRST_ARGUMENT
from octavo.engine.kernels.cpu.tiles_forms import GROUP, GROUP_BYTES

# Words of an attention operation, behind those that it shares with `rotary`.
_FIRST = FIRST_ARGUMENT + rotary.NUM_HEAD_WORDS
OUTPUT = _FIRST
"""Address of [num_tokens, num_heads, head_dim], float32; 0: nobody wants it."""
SCALE = _FIRST + 1
WINDOW = _FIRST + 2
"""Keys a query sees; 0: all."""
SOFTCAP = _FIRST + 3
"""0: none."""
SINKS = _FIRST + 4
"""Address of [num_heads], float32; 0: none."""
QUANTIZED = _FIRST + 5
"""Address of the output as 8-bit integers; 0: nobody wants it. Heads are whole groups then."""
PARTS = _FIRST + 6
"""Address of [num_tiles, NUM_SPLITS, num_heads, head_dim + 16], float32: a head's output of each
part of the context, then its maximum and its sum. A step that splits has one token a sequence."""
MAY_ROUND = _FIRST + 7
"""1: prompts may attend in 16 bits, where the processor is faster so; 0: in float32."""
PART_NUMBERS = 16
"""How much longer a row of PARTS is than a head."""

LOWEST = -1e30
"""Where a maximum begins."""
HIDDEN = -3e38
"""Score of a key that a query does not see."""


@njit(nogil=True, cache=True)
def context_of(operation, step, sequence, kv_head):
    """Where a sequence's keys and values are, those of a key head.

    Returns:
        Addresses of keys and of values in block 0, of the block table, and bytes from a block to
        the next.
    """
    group = read_i64(at(operation, 8 * rotary.KV_GROUP))
    table = at(
        read_u64(at(step, 8 * (group + words.TABLES))),
        sequence * read_i64(at(step, 8 * (group + words.TABLE_BYTES))),
    )
    of_head = 2 * BLOCK_SIZE * read_i64(at(operation, 8 * rotary.HEAD_DIM)) * kv_head
    keys = at(read_u64(at(operation, 8 * rotary.KEYS)), of_head)
    values = at(read_u64(at(operation, 8 * rotary.VALUES)), of_head)
    return keys, values, table, read_i64(at(operation, 8 * rotary.BLOCK_BYTES))


@njit(nogil=True, cache=True)
def squeeze_scores(scores, num_vectors, limit):
    """Replaces each score by limit * tanh(score / limit)."""
    limits, one, two = splat_f32(limit), splat_f32(float32(1)), splat_f32(float32(2))
    doubled = div(two, limits)
    for number in range(num_vectors):
        place = at(scores, 64 * number)
        # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        power = exp(mul(load_f32(place), doubled))
        store_f32(place, mul(limits, sub(one, div(two, add(power, one)))))


@njit(nogil=True, cache=True)
def highest_of(scores, num_vectors, least):
    """The highest of some scores and `least`."""
    best = splat_f32(least)
    for number in range(num_vectors):
        best = maximum(best, load_f32(at(scores, 64 * number)))
    return max_f32(best)


@njit(nogil=True, cache=True)
def scale_row(source, target, size, factor):
    """Writes a row times a factor; both may be the same."""
    factors = splat_f32(factor)
    for index in range(0, size, 16):
        store_f32(at(target, 4 * index), mul(load_f32(at(source, 4 * index)), factors))


@njit(nogil=True, cache=True)
def hide_scores(row, num_vectors, start, end, window):
    """Hides the scores of keys that a query does not see.

    Args:
        row: address of the scores.
        num_vectors: of scores.
        start: the first key's position.
        end: how many keys the query may see if there is no window.
        window: as in the operation.
    """
    for key in range(max(0, end - start), num_vectors * 16):
        write_f32(at(row, 4 * key), float32(HIDDEN))
    if window != 0:
        for key in range(min(num_vectors * 16, end - window - start)):
            write_f32(at(row, 4 * key), float32(HIDDEN))


@njit(nogil=True, cache=True)
def write_row(operation, token, head, source, factor):
    """Writes a row of the output, in all forms that are wanted; the source is used up."""
    head_dim = read_i64(at(operation, 8 * rotary.HEAD_DIM))
    num_heads = read_i64(at(operation, 8 * rotary.GROUP_SIZE))
    num_heads *= read_i64(at(operation, 8 * rotary.NUM_KV_HEADS))
    output = read_u64(at(operation, 8 * OUTPUT))
    quantized = read_u64(at(operation, 8 * QUANTIZED))
    channel = (token * num_heads + head) * head_dim
    place = source if output == 0 else at(output, 4 * channel)
    scale_row(source, place, head_dim, factor)
    if quantized != 0:
        quantize_row(place, head_dim, at(quantized, channel // GROUP * GROUP_BYTES))

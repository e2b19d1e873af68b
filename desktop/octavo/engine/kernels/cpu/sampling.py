"""Choosing tokens from logits: the likeliest, or one drawn from what `truncation` leaves.

The plain-torch twin is `Sampler`: the same noise, a function of a row's key and the token id.

Source: Steele et al. 2014, "Fast splittable pseudorandom number generators"; Maddison et al. 2014,
arXiv:1411.0030.
"""

import math

import numpy as np
from numba import cfunc, float32, float64, int32, int64, njit, uint64

from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.simd import (
    at,
    div,
    exp,
    fma,
    load_f32,
    load_first_f32,
    max_f32,
    maximum,
    mul,
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
from octavo.engine.kernels.cpu.step_loop import FIRST_ARGUMENT, KERNEL_SIGNATURE

NOT_FINITE = -1
"""Stands for a token where a row's logits are not finite numbers."""
PART_SIZE = 4096
"""Tokens of the vocabulary that a thread takes at a time."""
GROUP_SIZE = 64
"""Tokens whose highest logit is noted, so that others need not look at each of them."""
PART_GROUPS = PART_SIZE // GROUP_SIZE
SCRATCH_BYTES = 128

LOGITS = FIRST_ARGUMENT
"""Address of [num_rows, VOCAB_SIZE], float32."""
VOCAB_SIZE = FIRST_ARGUMENT + 1
NUM_PARTS = FIRST_ARGUMENT + 2
"""Into how many parts a row is cut."""
PART_SCORES = FIRST_ARGUMENT + 3
"""Address of [num_rows, NUM_PARTS], float32: the best score of each part."""
PART_TOKENS = FIRST_ARGUMENT + 4
"""Address of [num_rows, NUM_PARTS], int64: whose score that is."""
BEST_SCORES = FIRST_ARGUMENT + 5
"""Address of [num_rows], float32: the highest logit."""
GROUP_SCORES = FIRST_ARGUMENT + 6
"""Address of [num_rows, NUM_PARTS, PART_GROUPS], float32: the highest logit of each group."""
PART_MASSES = FIRST_ARGUMENT + 7
"""Address of [num_rows, NUM_PARTS], float32: the sum of exp(score) of each part, in rows with top-p
alone. A score is what a logit lies below the row's highest, by the temperature."""
LOWEST_SCORES = FIRST_ARGUMENT + 8
"""Address of [num_rows], float32: the least score that is left, in steps with NUM_CUTS."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_NONE = float32(-math.inf)
"""The logit of a token that may not come."""
_LOWEST = float32(-3.4e38)
LOWEST_TEMPERATURE = float32(1e-30)
"""As good as greedy, and float32 can divide by it."""
_SLACK = float32(1.001)
"""On a bound that is computed in float32."""


@njit(nogil=True, cache=True)
def _uniform(key, token_id):
    """A number between 0 and 1, both excluded; the steps of `sampler.gumbel_noise`."""
    bits = uint64(token_id + 1) * _GAMMA + key
    bits = (bits ^ (bits >> uint64(30))) * _FIRST_FACTOR
    bits = (bits ^ (bits >> uint64(27))) * _SECOND_FACTOR
    bits ^= bits >> uint64(31)
    return (float64(bits >> uint64(12)) + 0.5) * 2.0**-52


@njit(nogil=True, cache=True)
def load_logits(address, count):
    """The next sixteen of so many logits; -inf in the lanes behind them."""
    if count >= 16:
        return load_f32(address)
    return load_first_f32(address, count, _NONE)


@njit(nogil=True, cache=True)
def _forbid(logits, mask, count):
    """Takes the tokens whose bits are 0 out of a part, which begins with a word of the mask."""
    for start in range(0, count, 32):
        word = read_i32(at(mask, start // 8))
        if word == int32(-1):
            continue
        for place in range(start, min(start + 32, count)):
            if (word >> int32(place - start)) & int32(1) == int32(0):
                write_f32(at(logits, 4 * place), _NONE)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def find_likeliest(operation, step, scratch, begin, end):
    """Finds the best token of each part, after those that may not come are taken out.

    Extent: NUM_CHOICES times NUM_PARTS.
    """
    op, masks = uint64(operation), read_u64(at(uint64(step), 8 * words.MASKS))
    size, parts = read_i64(at(op, 8 * VOCAB_SIZE)), read_i64(at(op, 8 * NUM_PARTS))
    for index in range(begin, end):
        row, part = index // parts, index % parts
        first = PART_SIZE * part
        count = min(PART_SIZE, size - first)
        logits = at(read_u64(at(op, 8 * LOGITS)), 4 * (size * row + first))
        groups = at(read_u64(at(op, 8 * GROUP_SCORES)), 4 * PART_GROUPS * index)
        mask = read_u64(at(masks, 8 * row))
        if mask != 0:
            _forbid(logits, at(mask, first // 8), count)
        highest, check = splat_f32(_NONE), zero_f32()
        for start in range(0, count, GROUP_SIZE):
            group = splat_f32(_NONE)
            for place in range(start, min(start + GROUP_SIZE, count), 16):
                values = load_logits(at(logits, 4 * place), count - place)
                group = maximum(values, group)
                # NaN for NaN and for infinity, 0 for the others, -infinity among them.
                check = fma(maximum(splat_f32(_LOWEST), values), zero_f32(), check)
            write_f32(at(groups, 4 * (start // GROUP_SIZE)), max_f32(group))
            highest = maximum(group, highest)
        best, token = max_f32(highest), int64(NOT_FINITE)
        if sum_f32(check) == float32(0.0):
            place = 0
            while read_f32(at(groups, 4 * place)) != best:
                place += 1
            place *= GROUP_SIZE
            while read_f32(at(logits, 4 * place)) != best:
                place += 1
            token = int64(first + place)
        write_f32(at(read_u64(at(op, 8 * PART_SCORES)), 4 * index), best)
        write_i64(at(read_u64(at(op, 8 * PART_TOKENS)), 8 * index), token)


@njit(nogil=True, cache=True)
def _best_part(operation, row, parts):
    """The number of a row's best part; below 0 if one of them is not finite, or no token is."""
    best = parts * row
    for index in range(parts * row, parts * (row + 1)):
        if read_i64(at(read_u64(at(operation, 8 * PART_TOKENS)), 8 * index)) == NOT_FINITE:
            return int64(-1)
        scores = read_u64(at(operation, 8 * PART_SCORES))
        if read_f32(at(scores, 4 * index)) > read_f32(at(scores, 4 * best)):
            best = index
    if read_f32(at(read_u64(at(operation, 8 * PART_SCORES)), 4 * best)) == _NONE:
        return int64(-1)
    return int64(best)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def take_likeliest(operation, step, scratch, begin, end):
    """Chooses each row's best token. Extent: NUM_CHOICES."""
    op, step_ = uint64(operation), uint64(step)
    parts = read_i64(at(op, 8 * NUM_PARTS))
    for row in range(begin, end):
        best = _best_part(op, row, parts)
        token, score = int64(NOT_FINITE), float32(0.0)
        if best >= 0:
            token = read_i64(at(read_u64(at(op, 8 * PART_TOKENS)), 8 * best))
            score = read_f32(at(read_u64(at(op, 8 * PART_SCORES)), 4 * best))
        write_f32(at(read_u64(at(op, 8 * BEST_SCORES)), 4 * row), score)
        write_i64(at(read_u64(at(step_, 8 * words.CHOSEN)), 8 * row), token)


@njit(nogil=True, cache=True)
def _with_noise(score, uniform):
    return score + float32(-math.log(-math.log(uniform)))


@njit(nogil=True, cache=True)
def _draw_part(logits, groups, first, count, highest, temperature, lowest, key, scratch):
    """The best of a part's tempered logits with noise on them, and its token.

    Only those from the lowest up count. Few of them get their noise: to pass a distance d,
    -log(-log(u)) needs u > 1 - exp(-d).
    """
    shift, divisors = splat_f32(highest), splat_f32(temperature)
    best, token = _LOWEST, int64(first)
    for start in range(0, count, 16):
        group = read_f32(at(groups, 4 * (start // GROUP_SIZE)))
        if float32((group - highest) / temperature) < lowest:
            continue
        scores = div(sub(load_logits(at(logits, 4 * start), count - start), shift), divisors)
        store_f32(scratch, scores)
        store_f32(at(scratch, 64), mul(exp(sub(scores, splat_f32(best))), splat_f32(_SLACK)))
        for place in range(min(16, count - start)):
            score = read_f32(at(scratch, 4 * place))
            if score < lowest:
                continue
            uniform = _uniform(key, first + start + place)
            if uniform < 1.0 - float64(read_f32(at(scratch, 64 + 4 * place))):
                continue
            value = _with_noise(score, uniform)
            if value > best:
                best, token = value, int64(first + start + place)
    return best, token


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def draw_parts(operation, step, scratch, begin, end):
    """Draws a token of each part of the rows with a temperature.

    Extent: NUM_DRAWS times NUM_PARTS. Needs 128 bytes of scratch memory.
    """
    op, step_ = uint64(operation), uint64(step)
    size, parts = read_i64(at(op, 8 * VOCAB_SIZE)), read_i64(at(op, 8 * NUM_PARTS))
    temperatures = read_u64(at(step_, 8 * words.TEMPERATURES))
    keys = read_u64(at(step_, 8 * words.NOISE_KEYS))
    leaves_out = read_i64(at(step_, 8 * words.NUM_CUTS)) > 0
    for index in range(begin, end):
        row, part = index // parts, index % parts
        temperature = read_f32(at(temperatures, 4 * row))
        # A row without a best token keeps its mark.
        chosen = read_i64(at(read_u64(at(step_, 8 * words.CHOSEN)), 8 * row))
        if temperature == float32(0.0) or chosen == NOT_FINITE:
            continue
        first = PART_SIZE * part
        lowest = _NONE
        if leaves_out:
            lowest = read_f32(at(read_u64(at(op, 8 * LOWEST_SCORES)), 4 * row))
        best, token = _draw_part(
            at(read_u64(at(op, 8 * LOGITS)), 4 * (size * row + first)),
            at(read_u64(at(op, 8 * GROUP_SCORES)), 4 * PART_GROUPS * index),
            first,
            min(PART_SIZE, size - first),
            read_f32(at(read_u64(at(op, 8 * BEST_SCORES)), 4 * row)),
            max(temperature, LOWEST_TEMPERATURE),
            lowest,
            read_u64(at(keys, 8 * row)),
            uint64(scratch),
        )
        write_f32(at(read_u64(at(op, 8 * PART_SCORES)), 4 * index), best)
        write_i64(at(read_u64(at(op, 8 * PART_TOKENS)), 8 * index), token)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def take_drawn(operation, step, scratch, begin, end):
    """Chooses what was drawn, in the rows with a temperature. Extent: NUM_DRAWS."""
    op, step_ = uint64(operation), uint64(step)
    parts = read_i64(at(op, 8 * NUM_PARTS))
    temperatures = read_u64(at(step_, 8 * words.TEMPERATURES))
    for row in range(begin, end):
        best = _best_part(op, row, parts)
        if best >= 0 and read_f32(at(temperatures, 4 * row)) != float32(0.0):
            token = read_i64(at(read_u64(at(op, 8 * PART_TOKENS)), 8 * best))
            write_i64(at(read_u64(at(step_, 8 * words.CHOSEN)), 8 * row), token)

"""Top-k, top-p and min-p as one lowest score per row, found without sorting the vocabulary.

A score is what a logit lies below its row's highest, divided by the temperature. The highest scores
of groups of tokens, which are known already, say from where on a token can be left at all; what
reaches there are few candidates, among which the lowest that is left is searched by halving. The
plain-torch twin is `octavo.engine.truncation`.

Source: Hoare 1961, "Algorithm 65: Find", Communications of the ACM 4 (7).
"""

import math

from numba import cfunc, float32, float64, int64, njit, uint64

from octavo.engine.kernels.cpu import sampling
from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.simd import (
    add,
    at,
    div,
    exp,
    read_f32,
    read_i64,
    read_u64,
    splat_f32,
    sub,
    sum_f32,
    write_f32,
    zero_f32,
)
from octavo.engine.kernels.cpu.step_loop import KERNEL_SIGNATURE

_ALL = float32(-math.inf)
"""The lowest score where nothing is left out."""
_ROOM = 0.01
"""On a bound of scores that hangs on a sum in float32."""


def scratch_bytes(vocab_size: int) -> int:
    """Memory that a thread needs: where everything is a candidate, it has a score."""
    return 4 * vocab_size


@njit(nogil=True, cache=True)
def _cuts_by_number(top_k, vocab_size):
    return top_k > 0 and top_k < vocab_size


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def weigh_parts(operation, step, scratch, begin, end):
    """Adds up the mass of each part of the rows whose top-p is of the whole vocabulary.

    Extent: NUM_CUTS times NUM_PARTS.
    """
    op, step_ = uint64(operation), uint64(step)
    size = read_i64(at(op, 8 * sampling.VOCAB_SIZE))
    parts = read_i64(at(op, 8 * sampling.NUM_PARTS))
    for index in range(begin, end):
        row, part = index // parts, index % parts
        temperature = read_f32(at(read_u64(at(step_, 8 * words.TEMPERATURES)), 4 * row))
        top_k = read_i64(at(read_u64(at(step_, 8 * words.TOP_KS)), 8 * row))
        top_p = read_f32(at(read_u64(at(step_, 8 * words.TOP_PS)), 4 * row))
        if temperature == 0.0 or top_p >= 1.0 or _cuts_by_number(top_k, size):
            continue
        first = sampling.PART_SIZE * part
        count = min(sampling.PART_SIZE, size - first)
        logits = at(read_u64(at(op, 8 * sampling.LOGITS)), 4 * (size * row + first))
        highest = read_f32(at(read_u64(at(op, 8 * sampling.BEST_SCORES)), 4 * row))
        shift, mass = splat_f32(highest), zero_f32()
        divisors = splat_f32(max(temperature, sampling.LOWEST_TEMPERATURE))
        for place in range(0, count, 16):
            values = sampling.load_logits(at(logits, 4 * place), count - place)
            mass = add(mass, exp(div(sub(values, shift), divisors)))
        write_f32(at(read_u64(at(op, 8 * sampling.PART_MASSES)), 4 * index), sum_f32(mass))


@njit(nogil=True, cache=True)
def _swap(values, place, other):
    value = read_f32(at(values, 4 * place))
    write_f32(at(values, 4 * place), read_f32(at(values, 4 * other)))
    write_f32(at(values, 4 * other), value)


@njit(nogil=True, cache=True)
def _middle(values, begin, end):
    """The second largest of the first, the middle and the last value."""
    first = read_f32(at(values, 4 * begin))
    middle = read_f32(at(values, 4 * ((begin + end) // 2)))
    last = read_f32(at(values, 4 * (end - 1)))
    return max(min(first, middle), min(max(first, middle), last))


@njit(nogil=True, cache=True)
def _select(values, count, needed, by_mass):
    """The highest value such that it and those above it are enough; -inf if all together are not.

    Args:
        values: address of scores, which are put into another order.
        count: how many.
        needed: what is enough, float64: so many values, or so much of the sum of exp(value).
        by_mass: which of the two.
    """
    begin, end = int64(0), int64(count)
    while begin < end:
        pivot = _middle(values, begin, end)
        above, level = float64(0.0), float64(0.0)
        # From begin: those above the pivot, from high: those at it, from low: those below.
        high, place, low = begin, begin, end
        while place < low:
            value = read_f32(at(values, 4 * place))
            if value < pivot:
                low -= 1
                _swap(values, place, low)
                continue
            weight = math.exp(float64(value)) if by_mass else float64(1.0)
            if value > pivot:
                above += weight
                _swap(values, place, high)
                high += 1
            else:
                level += weight
            place += 1
        if above >= needed and high > begin:
            end = high
        elif above + level >= needed:
            return pivot
        else:
            needed -= above + level
            begin = low
    return _ALL


@njit(nogil=True, cache=True)
def _gather(logits, count, highest, temperature, bottom, target):
    """Writes the scores from the bottom up of so many logits; returns how many there are."""
    found = int64(0)
    for place in range(count):
        score = float32((read_f32(at(logits, 4 * place)) - highest) / temperature)
        if score >= bottom and score > _ALL:
            write_f32(at(target, 4 * found), score)
            found += 1
    return found


@njit(nogil=True, cache=True)
def _keep(values, count, bottom):
    """Moves the values from the bottom up to the front; returns how many, and their mass."""
    found, mass = int64(0), float64(0.0)
    for place in range(count):
        value = read_f32(at(values, 4 * place))
        if value >= bottom:
            _swap(values, place, found)
            found += 1
            mass += math.exp(float64(value))
    return found, mass


@njit(nogil=True, cache=True)
def _lowest_score(logits, groups, size, highest, temperature, top_k, top_p, min_p, mass, values):
    """The least score that top-k, then top-p, then min-p leave; ties at an edge stay together.

    Args:
        logits: address of [size], float32.
        groups: address of the highest logit of each group.
        size: of the vocabulary.
        highest: the highest logit.
        temperature: above 0.
        top_k: 0: all tokens.
        top_p: 1: all tokens.
        min_p: as a logarithm.
        mass: the sum of exp(score), where there is no top-k.
        values: address of memory for [size], float32.
    """
    has_top_k = _cuts_by_number(top_k, size)
    if not has_top_k and top_p >= 1.0:
        return min_p
    num_groups = (size + sampling.GROUP_SIZE - 1) // sampling.GROUP_SIZE
    bottom = _ALL
    if has_top_k:
        # So many groups each have a token from here up.
        count = _gather(groups, num_groups, highest, temperature, bottom, values)
        bottom = _select(values, count, float64(top_k), False)
    else:
        # All tokens below this together hold less than is left out.
        left_out = (1.0 - float64(top_p)) * mass / size
        bottom = max(float32(math.log(left_out) - _ROOM), min_p)
        count = _gather(groups, num_groups, highest, temperature, bottom, values)
        bottom = max(bottom, _select(values, count, top_p * mass, True))
    count = int64(0)
    for group in range(num_groups):
        score = float32((read_f32(at(groups, 4 * group)) - highest) / temperature)
        if score >= bottom:
            first = sampling.GROUP_SIZE * group
            count += _gather(
                at(logits, 4 * first),
                min(sampling.GROUP_SIZE, size - first),
                highest,
                temperature,
                bottom,
                at(values, 4 * count),
            )
    if has_top_k:
        bottom = max(bottom, _select(values, count, float64(top_k), False))
        if top_p < 1.0:
            count, mass = _keep(values, count, bottom)
    if top_p < 1.0:
        bottom = max(bottom, _select(values, count, top_p * mass, True))
    return max(bottom, min_p)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def find_lowest_scores(operation, step, scratch, begin, end):
    """Finds what is left of each row. Extent: NUM_CUTS. Needs `scratch_bytes` of scratch memory."""
    op, step_ = uint64(operation), uint64(step)
    size = read_i64(at(op, 8 * sampling.VOCAB_SIZE))
    parts = read_i64(at(op, 8 * sampling.NUM_PARTS))
    row_groups = parts * sampling.PART_GROUPS
    for row in range(begin, end):
        temperature = read_f32(at(read_u64(at(step_, 8 * words.TEMPERATURES)), 4 * row))
        chosen = read_i64(at(read_u64(at(step_, 8 * words.CHOSEN)), 8 * row))
        lowest = _ALL
        if temperature != 0.0 and chosen != sampling.NOT_FINITE:
            mass = float64(0.0)
            for part in range(parts * row, parts * (row + 1)):
                mass += read_f32(at(read_u64(at(op, 8 * sampling.PART_MASSES)), 4 * part))
            lowest = _lowest_score(
                at(read_u64(at(op, 8 * sampling.LOGITS)), 4 * size * row),
                at(read_u64(at(op, 8 * sampling.GROUP_SCORES)), 4 * row_groups * row),
                size,
                read_f32(at(read_u64(at(op, 8 * sampling.BEST_SCORES)), 4 * row)),
                max(temperature, sampling.LOWEST_TEMPERATURE),
                read_i64(at(read_u64(at(step_, 8 * words.TOP_KS)), 8 * row)),
                read_f32(at(read_u64(at(step_, 8 * words.TOP_PS)), 4 * row)),
                read_f32(at(read_u64(at(step_, 8 * words.MIN_PS)), 4 * row)),
                mass,
                uint64(scratch),
            )
        write_f32(at(read_u64(at(op, 8 * sampling.LOWEST_SCORES)), 4 * row), lowest)

"""Operations of a feed-forward part of many experts: who goes where, and back again.

Each token's picks become rows of their own, sorted by expert, so that an expert multiplies all its
rows at once.
"""

import math

from numba import cfunc, float32, int64, uint64

from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.norm import add_scaled
from octavo.engine.kernels.cpu.simd import (
    at,
    call_kernel,
    load_f32,
    mul,
    read_f32,
    read_i64,
    read_u64,
    splat_f32,
    store_f32,
    write_f32,
    write_i64,
)
from octavo.engine.kernels.cpu.step_loop import FIRST_ARGUMENT, KERNEL_SIGNATURE

# Words that all these operations have.
NUM_EXPERTS = FIRST_ARGUMENT
NUM_PICKS = FIRST_ARGUMENT + 1
"""Experts of each token."""
PICKED = FIRST_ARGUMENT + 2
"""Address of [num_tokens, NUM_PICKS], int64: experts."""
SHARES = FIRST_ARGUMENT + 3
"""Address of [num_tokens, NUM_PICKS], float32: what each pick counts."""
STARTS = FIRST_ARGUMENT + 4
"""Address of [NUM_EXPERTS + 1], int64: where each expert's rows begin."""
PLACES = FIRST_ARGUMENT + 5
"""Address of [num_tokens, NUM_PICKS], int64: the row of each pick."""
_FIRST = FIRST_ARGUMENT + 6

# Words of `pick_experts`.
ROUTED = _FIRST
"""Address of [num_tokens, NUM_EXPERTS], float32: the router's logits, which are used up."""
RENORMALIZES = _FIRST + 1
"""Whether a token's shares are made to sum to one."""


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def pick_experts(operation, step, scratch, begin, end):
    """Takes each token's likeliest experts. Extent: NUM_TOKENS."""
    op = uint64(operation)
    num_experts, num_picks = read_i64(at(op, 8 * NUM_EXPERTS)), read_i64(at(op, 8 * NUM_PICKS))
    renormalizes = read_i64(at(op, 8 * RENORMALIZES)) != 0
    for token in range(begin, end):
        logits = at(read_u64(at(op, 8 * ROUTED)), 4 * num_experts * token)
        picked = at(read_u64(at(op, 8 * PICKED)), 8 * num_picks * token)
        shares = at(read_u64(at(op, 8 * SHARES)), 4 * num_picks * token)
        highest = float32(-math.inf)
        for expert in range(num_experts):
            highest = max(highest, read_f32(at(logits, 4 * expert)))
        total = float32(0.0)
        for expert in range(num_experts):
            weight = float32(math.exp(read_f32(at(logits, 4 * expert)) - highest))
            write_f32(at(logits, 4 * expert), weight)
            total += weight
        picked_total = float32(0.0)
        for pick in range(num_picks):
            best, most = int64(0), float32(-1.0)
            for expert in range(num_experts):
                weight = read_f32(at(logits, 4 * expert))
                if weight > most:
                    best, most = int64(expert), weight
            write_f32(at(logits, 4 * best), float32(-2.0))
            write_i64(at(picked, 8 * pick), best)
            write_f32(at(shares, 4 * pick), most)
            picked_total += most
        divisor = picked_total if renormalizes else total
        for pick in range(num_picks):
            place = at(shares, 4 * pick)
            write_f32(place, read_f32(place) / divisor)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def sort_picks(operation, step, scratch, begin, end):
    """Gives each pick a row among its expert's. Extent: ONE."""
    op = uint64(operation)
    num_experts, num_picks = read_i64(at(op, 8 * NUM_EXPERTS)), read_i64(at(op, 8 * NUM_PICKS))
    picked, starts = read_u64(at(op, 8 * PICKED)), read_u64(at(op, 8 * STARTS))
    places = read_u64(at(op, 8 * PLACES))
    total = read_i64(at(uint64(step), 8 * words.NUM_TOKENS)) * num_picks
    for expert in range(num_experts + 1):
        write_i64(at(starts, 8 * expert), int64(0))
    for pick in range(total):
        place = at(starts, 8 * (read_i64(at(picked, 8 * pick)) + 1))
        write_i64(place, read_i64(place) + 1)
    for expert in range(num_experts):
        place = at(starts, 8 * (expert + 1))
        write_i64(place, read_i64(place) + read_i64(at(starts, 8 * expert)))
    # Each start moves to its expert's end, and so to where the next one's was.
    for pick in range(total):
        place = at(starts, 8 * read_i64(at(picked, 8 * pick)))
        write_i64(at(places, 8 * pick), read_i64(place))
        write_i64(place, read_i64(place) + 1)
    for expert in range(num_experts, 0, -1):
        write_i64(at(starts, 8 * expert), read_i64(at(starts, 8 * (expert - 1))))
    write_i64(starts, int64(0))


# Words of `gather_rows`.
SOURCE = _FIRST
"""Address of the tokens' rows."""
SOURCE_BYTES = _FIRST + 1
"""Of a row, a multiple of 64."""
SORTED = _FIRST + 2
"""Address of the picks' rows."""


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def gather_rows(operation, step, scratch, begin, end):
    """Copies each pick's row to its place. Extent: NUM_TOKENS times NUM_PICKS."""
    op = uint64(operation)
    num_picks = read_i64(at(op, 8 * NUM_PICKS))
    num_bytes = read_i64(at(op, 8 * SOURCE_BYTES))
    for pick in range(begin, end):
        place = read_i64(at(read_u64(at(op, 8 * PLACES)), 8 * pick))
        source = at(read_u64(at(op, 8 * SOURCE)), num_bytes * (pick // num_picks))
        target = at(read_u64(at(op, 8 * SORTED)), num_bytes * place)
        for index in range(0, num_bytes, 64):
            store_f32(at(target, index), load_f32(at(source, index)))


# Words of `multiply_experts`.
FUNCTION = _FIRST
"""Address of the kernel of the tiles' form (`linear`)."""
EXPERT_TILES = _FIRST + 1
"""Address of [NUM_EXPERTS], int64: addresses of the experts' tiles."""
TILE_BYTES = _FIRST + 2
NUM_TILES = _FIRST + 3
NUM_CUTS = _FIRST + 4
"""Into how many portions an expert's tiles are cut."""
IN_FEATURES = _FIRST + 5
OUT_FEATURES = _FIRST + 6
INPUTS = _FIRST + 7
INPUT_BYTES = _FIRST + 8
PRODUCTS = _FIRST + 9
GROUP_SIZE = _FIRST + 10


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def multiply_experts(operation, step, scratch, begin, end):
    """Multiplies the rows of experts by some of their tiles.

    Extent: ONE times NUM_EXPERTS times NUM_CUTS.
    """
    op = uint64(operation)
    cuts, num_tiles = read_i64(at(op, 8 * NUM_CUTS)), read_i64(at(op, 8 * NUM_TILES))
    starts = read_u64(at(op, 8 * STARTS))
    input_bytes = read_i64(at(op, 8 * INPUT_BYTES))
    out_features = read_i64(at(op, 8 * OUT_FEATURES))
    for index in range(begin, end):
        expert, cut = index // cuts, index % cuts
        start = read_i64(at(starts, 8 * expert))
        num_rows = read_i64(at(starts, 8 * (expert + 1))) - start
        first, last = cut * num_tiles // cuts, (cut + 1) * num_tiles // cuts
        if num_rows == 0 or first == last:
            continue
        call_kernel(
            read_u64(at(op, 8 * FUNCTION)),
            (
                read_i64(at(read_u64(at(op, 8 * EXPERT_TILES)), 8 * expert)),
                read_i64(at(op, 8 * TILE_BYTES)),
                first,
                last,
                read_i64(at(op, 8 * IN_FEATURES)),
                out_features,
                num_rows,
                read_i64(at(op, 8 * INPUTS)) + start * input_bytes,
                input_bytes,
                read_i64(at(op, 8 * PRODUCTS)) + start * 4 * out_features,
                4 * out_features,
                read_i64(at(op, 8 * GROUP_SIZE)),
            ),
        )


# Words of `combine_experts`.
EXPERT_OUTPUTS = _FIRST
"""Address of [num_tokens * NUM_PICKS, COMBINED_SIZE], float32, in the order of the experts."""
COMBINED_SIZE = _FIRST + 1
COMBINED = _FIRST + 2
"""Address of [num_tokens, COMBINED_SIZE], float32."""
SHARED = _FIRST + 3
"""Address of the shared expert's output, as COMBINED; 0: there is none."""
SHARED_GATE = _FIRST + 4
"""Address of [num_tokens], float32: the logit of what the shared expert counts."""


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def combine_experts(operation, step, scratch, begin, end):
    """Adds up what a token's experts say. Extent: NUM_TOKENS."""
    op = uint64(operation)
    num_picks, size = read_i64(at(op, 8 * NUM_PICKS)), read_i64(at(op, 8 * COMBINED_SIZE))
    outputs, shared = read_u64(at(op, 8 * EXPERT_OUTPUTS)), read_u64(at(op, 8 * SHARED))
    for token in range(begin, end):
        target = at(read_u64(at(op, 8 * COMBINED)), 4 * size * token)
        for pick in range(num_picks):
            index = num_picks * token + pick
            place = read_i64(at(read_u64(at(op, 8 * PLACES)), 8 * index))
            share = read_f32(at(read_u64(at(op, 8 * SHARES)), 4 * index))
            source = at(outputs, 4 * size * place)
            if pick > 0:
                add_scaled(target, source, size, share)
                continue
            factor = splat_f32(share)
            for channel in range(0, size, 16):
                value = mul(load_f32(at(source, 4 * channel)), factor)
                store_f32(at(target, 4 * channel), value)
        if shared != 0:
            logit = read_f32(at(read_u64(at(op, 8 * SHARED_GATE)), 4 * token))
            share = float32(1.0) / (float32(1.0) + float32(math.exp(-logit)))
            add_scaled(target, at(shared, 4 * size * token), size, share)

"""Operations on rows of activations: residual sums and norms, gates, and their 8-bit form."""

import math

from numba import cfunc, float32, njit, uint64

from octavo.engine.kernels.cpu import step_words as words
from octavo.engine.kernels.cpu.limits import GELU_TANH
from octavo.engine.kernels.cpu.norm import add_scaled, add_to, normalise
from octavo.engine.kernels.cpu.quantize_activations import quantize_group, quantize_row
from octavo.engine.kernels.cpu.simd import (
    add,
    at,
    call_kernel,
    div,
    exp,
    fma,
    load_f32,
    mul,
    read_f32,
    read_i64,
    read_u64,
    splat_f32,
    store_f32,
    sub,
    write_f32,
)
from octavo.engine.kernels.cpu.step_loop import FIRST_ARGUMENT, KERNEL_SIGNATURE
from octavo.engine.kernels.cpu.tiles_forms import GROUP, GROUP_BYTES

# Words of `add_and_normalise`.
RESIDUAL = FIRST_ARGUMENT
"""Address of [num_tokens, size], float32."""
SIZE = FIRST_ARGUMENT + 1
ADDED = FIRST_ARGUMENT + 2
"""Address of [num_tokens, size], float32, which is added to the residual stream; 0: nothing is."""
ADDED_BIAS = FIRST_ARGUMENT + 3
"""Address of [size], float32, added to what is added; 0: nothing is."""
ADDED_NORM = FIRST_ARGUMENT + 4
"""Address of [size]: weights of the norm of what is added; 0: there is none."""
ADDED_SCALE = FIRST_ARGUMENT + 5
NORM = FIRST_ARGUMENT + 6
"""Address of [size]: weights of the norm of the sum; 0: it is taken as it is."""
EPS = FIRST_ARGUMENT + 7
OUTPUT = FIRST_ARGUMENT + 8
"""Address of [num_tokens, size], float32: the normalised sum; 0: nobody wants it."""
QUANTIZED = FIRST_ARGUMENT + 9
"""Address of the same as 8-bit integers, as `quantize_activations` has them; 0: nobody wants it."""
QUANTIZED_BYTES = FIRST_ARGUMENT + 10


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def add_and_normalise(operation, step, scratch, begin, end):
    """Adds a part's output to the residual stream and prepares the next part's input.

    Extent: NUM_TOKENS. Needs a row of scratch memory.
    """
    op, row = uint64(operation), uint64(scratch)
    size = read_i64(at(op, 8 * SIZE))
    added = read_u64(at(op, 8 * ADDED))
    bias = read_u64(at(op, 8 * ADDED_BIAS))
    added_norm = read_u64(at(op, 8 * ADDED_NORM))
    norm = read_u64(at(op, 8 * NORM))
    output = read_u64(at(op, 8 * OUTPUT))
    quantized = read_u64(at(op, 8 * QUANTIZED))
    eps = read_f32(at(op, 8 * EPS))
    for token in range(begin, end):
        residual = at(read_u64(at(op, 8 * RESIDUAL)), 4 * size * token)
        if added != 0:
            source = at(added, 4 * size * token)
            if bias != 0:
                add_to(source, bias, size)
            if added_norm != 0:
                normalise(source, added_norm, source, size, eps)
            add_scaled(residual, source, size, read_f32(at(op, 8 * ADDED_SCALE)))
        result = row if output == 0 else at(output, 4 * size * token)
        if norm != 0:
            normalise(residual, norm, result, size, eps)
        else:
            for index in range(0, size, 16):
                store_f32(at(result, 4 * index), load_f32(at(residual, 4 * index)))
        if quantized != 0:
            place = at(quantized, read_i64(at(op, 8 * QUANTIZED_BYTES)) * token)
            quantize_row(result, size, place)


# Words of `quantize_rows`.
INPUT = FIRST_ARGUMENT
"""Address of [num_rows, ...], float32."""
INPUT_BYTES = FIRST_ARGUMENT + 1
COLUMNS = FIRST_ARGUMENT + 2
TARGET = FIRST_ARGUMENT + 3
TARGET_BYTES = FIRST_ARGUMENT + 4


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def quantize_rows(operation, step, scratch, begin, end):
    """Writes rows as 8-bit integers. Extent: the rows."""
    op = uint64(operation)
    columns = read_i64(at(op, 8 * COLUMNS))
    for row in range(begin, end):
        source = at(read_u64(at(op, 8 * INPUT)), read_i64(at(op, 8 * INPUT_BYTES)) * row)
        target = at(read_u64(at(op, 8 * TARGET)), read_i64(at(op, 8 * TARGET_BYTES)) * row)
        quantize_row(source, columns, target)


# Words of `take_rows`.
TAKEN_FROM = FIRST_ARGUMENT
"""Address of [num_tokens, TAKEN_SIZE], float32."""
TAKEN_SIZE = FIRST_ARGUMENT + 1
TAKEN_ROWS = FIRST_ARGUMENT + 2
"""Address of [NUM_TAKEN, TAKEN_SIZE], float32."""


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def take_rows(operation, step, scratch, begin, end):
    """Puts the rows together that logits are wanted of. Extent: NUM_TAKEN."""
    op = uint64(operation)
    size = read_i64(at(op, 8 * TAKEN_SIZE))
    numbers = read_u64(at(uint64(step), 8 * words.TAKEN))
    for row in range(begin, end):
        number = read_i64(at(numbers, 8 * row))
        source = at(read_u64(at(op, 8 * TAKEN_FROM)), 4 * size * number)
        target = at(read_u64(at(op, 8 * TAKEN_ROWS)), 4 * size * row)
        for index in range(0, size, 16):
            store_f32(at(target, 4 * index), load_f32(at(source, 4 * index)))


# Words of `normalise_spans`.
SPAN = FIRST_ARGUMENT
"""Address of the first token's span, float32."""
SPAN_BYTES = FIRST_ARGUMENT + 1
"""From a token's span to the next one's."""
SPAN_SIZE = FIRST_ARGUMENT + 2
SPAN_NORM = FIRST_ARGUMENT + 3
"""Address of [SPAN_SIZE], float32."""
SPAN_EPS = FIRST_ARGUMENT + 4


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def normalise_spans(operation, step, scratch, begin, end):
    """Normalises a part of each token's row in place. Extent: NUM_TOKENS."""
    op = uint64(operation)
    eps = read_f32(at(op, 8 * SPAN_EPS))
    for token in range(begin, end):
        span = at(read_u64(at(op, 8 * SPAN)), read_i64(at(op, 8 * SPAN_BYTES)) * token)
        normalise(span, read_u64(at(op, 8 * SPAN_NORM)), span, read_i64(at(op, 8 * SPAN_SIZE)), eps)


# Words of `gate`.
GATES = FIRST_ARGUMENT
"""Address of [num_rows, 2 * GATE_SIZE], float32: gates, then what they let through."""
GATE_SIZE = FIRST_ARGUMENT + 1
ACTIVATION = FIRST_ARGUMENT + 2
"""One of the numbers in `limits.ACTIVATIONS`."""
GATE_BIAS = FIRST_ARGUMENT + 3
"""Address of [2 * GATE_SIZE], float32; 0: there is none."""
GATED = FIRST_ARGUMENT + 4
"""Address of [num_rows, GATE_SIZE], float32; 0: nobody wants it."""
GATED_QUANTIZED = FIRST_ARGUMENT + 5
"""Address of the same as 8-bit integers; 0: nobody wants it."""


@njit(nogil=True, cache=True)
def _activate(value, activation):
    """x / (1 + exp(-z)): z is x, or 2 sqrt(2 / π) (x + 0.044715 x³), which makes it gelu's tanh."""
    one = splat_f32(float32(1.0))
    exponent = mul(value, splat_f32(float32(-1.0)))
    if activation == GELU_TANH:
        cubic = fma(mul(value, value), splat_f32(float32(0.044715)), one)
        factor = splat_f32(float32(-2.0 * math.sqrt(2.0 / math.pi)))
        exponent = mul(mul(value, cubic), factor)
    return div(value, add(one, exp(exponent)))


@njit(nogil=True, cache=True)
def _gated(gates, bias, size, column, activation):
    gate, passed = load_f32(at(gates, 4 * column)), load_f32(at(gates, 4 * (size + column)))
    if bias != 0:
        gate = add(gate, load_f32(at(bias, 4 * column)))
        passed = add(passed, load_f32(at(bias, 4 * (size + column))))
    return mul(_activate(gate, activation), passed)


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def gate(operation, step, scratch, begin, end):
    """Multiplies activated gates with what they let through.

    Extent: the rows times GATE_SIZE / 32.
    """
    op = uint64(operation)
    size = read_i64(at(op, 8 * GATE_SIZE))
    activation = read_i64(at(op, 8 * ACTIVATION))
    bias = read_u64(at(op, 8 * GATE_BIAS))
    gated = read_u64(at(op, 8 * GATED))
    quantized = read_u64(at(op, 8 * GATED_QUANTIZED))
    groups = size // GROUP
    for index in range(begin, end):
        row, column = index // groups, index % groups * GROUP
        gates = at(read_u64(at(op, 8 * GATES)), 8 * size * row)
        first = _gated(gates, bias, size, column, activation)
        last = _gated(gates, bias, size, column + 16, activation)
        if gated != 0:
            place = at(gated, 4 * (size * row + column))
            store_f32(place, first)
            store_f32(at(place, 64), last)
        if quantized != 0:
            quantize_group(first, last, at(quantized, GROUP_BYTES * index))


# Words of `multiply`.
FUNCTION = FIRST_ARGUMENT
"""Address of the kernel of the tiles' form (`linear`)."""
TILES = FIRST_ARGUMENT + 1
TILE_BYTES = FIRST_ARGUMENT + 2
IN_FEATURES = FIRST_ARGUMENT + 3
OUT_FEATURES = FIRST_ARGUMENT + 4
ACTIVATIONS_IN = FIRST_ARGUMENT + 5
ACTIVATIONS_IN_BYTES = FIRST_ARGUMENT + 6
PRODUCTS = FIRST_ARGUMENT + 7
PRODUCTS_BYTES = FIRST_ARGUMENT + 8
GROUP_SIZE = FIRST_ARGUMENT + 9
ROWS_WORD = FIRST_ARGUMENT + 10
"""Which word of the step says how many rows there are."""


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def multiply(operation, step, scratch, begin, end):
    """Multiplies all rows by some tiles of a matrix.

    Extent: ONE times the tiles.
    """
    op = uint64(operation)
    call_kernel(
        read_u64(at(op, 8 * FUNCTION)),
        (
            read_i64(at(op, 8 * TILES)),
            read_i64(at(op, 8 * TILE_BYTES)),
            begin,
            end,
            read_i64(at(op, 8 * IN_FEATURES)),
            read_i64(at(op, 8 * OUT_FEATURES)),
            read_i64(at(uint64(step), 8 * read_i64(at(op, 8 * ROWS_WORD)))),
            read_i64(at(op, 8 * ACTIVATIONS_IN)),
            read_i64(at(op, 8 * ACTIVATIONS_IN_BYTES)),
            read_i64(at(op, 8 * PRODUCTS)),
            read_i64(at(op, 8 * PRODUCTS_BYTES)),
            read_i64(at(op, 8 * GROUP_SIZE)),
        ),
    )


# Words of `finish_logits`.
LOGITS = FIRST_ARGUMENT
"""Address of [num_rows, vocab_size], float32."""
VOCAB_SIZE = FIRST_ARGUMENT + 1
LOGITS_SCALE = FIRST_ARGUMENT + 2
LOGITS_SOFTCAP = FIRST_ARGUMENT + 3
"""0: none."""


@cfunc(KERNEL_SIGNATURE, nogil=True, cache=True)
def finish_logits(operation, step, scratch, begin, end):
    """Scales logits and squeezes them between a limit and its negative. Extent: NUM_ROWS."""
    op = uint64(operation)
    size = read_i64(at(op, 8 * VOCAB_SIZE))
    scale = read_f32(at(op, 8 * LOGITS_SCALE))
    softcap = read_f32(at(op, 8 * LOGITS_SOFTCAP))
    one, two, factor = splat_f32(float32(1)), splat_f32(float32(2)), splat_f32(scale)
    for row in range(begin, end):
        logits = at(read_u64(at(op, 8 * LOGITS)), 4 * size * row)
        whole = size // 16 * 16
        for index in range(0, whole, 16):
            place = at(logits, 4 * index)
            value = mul(load_f32(place), factor)
            if softcap != 0:
                # tanh(x) = 1 - 2 / (exp(2 x) + 1)
                power = exp(mul(value, splat_f32(float32(2.0) / softcap)))
                value = mul(sub(one, div(two, add(power, one))), splat_f32(softcap))
            store_f32(place, value)
        for index in range(whole, size):
            value = read_f32(at(logits, 4 * index)) * scale
            if softcap != 0:
                value = float32(softcap * math.tanh(value / softcap))
            write_f32(at(logits, 4 * index), value)

"""Products of 8-bit floats with a scale for each group of features, on their matrix units.

Inputs are rounded to float8_e4m3fn with a scale for each row and group, as checkpoints are meant
whose weights have scales in blocks. Tiles of such weights hold two features of a half word beside
each other (`tiles`); a sum does not care for the order of its terms, so inputs are written in that
order, and the matrix stays where it lies.

Sums start anew with each group: matrix units of Hopper add 8-bit floats up with few bits.
"""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.tiles import LANES, TiledWeights

_GROUP_SIZE = 128
_LARGEST = 448.0
"""Of float8_e4m3fn."""
_SMALLEST = 1e-12
"""Taken for the largest of a group of zeros, which no scale makes anything else of."""
_INPUTS, _ROWS = 128, 128
"""Rows of the inputs and of the matrix that a program takes."""
_NEIGHBOURS = 8
"""Programs in succession that share rows of the matrix, so that these stay in the cache."""


@triton.jit
def _quantize_groups(
    inputs, codes, scales, num_groups, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
    LANES: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    exists = groups < num_groups
    places = tl.arange(0, GROUP)
    # Byte 2 e + i of a tile is feature i * 32 + e.
    within = places % (2 * LANES)
    features = places - within + within % 2 * LANES + within // 2
    first = (row * num_groups + groups)[:, None] * GROUP
    values = tl.load(inputs + first + features[None, :], mask=exists[:, None], other=0.0)
    values = values.to(tl.float32)
    highest = tl.max(tl.abs(values), 1)
    # Maxima pass over what is not a number; it must not come out as one.
    is_number = tl.min((values == values).to(tl.int32), 1)
    scale = tl.maximum(highest, SMALLEST) / LARGEST
    scale = tl.where(is_number == 1, scale, float("nan"))
    tl.store(scales + row * num_groups + groups, scale, mask=exists)
    values = tl.clamp(values / scale[:, None], -LARGEST, LARGEST)
    place = codes + first + places[None, :]
    tl.store(place, values.to(codes.dtype.element_ty), mask=exists[:, None])


def quantize_groups(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds groups of 128 features to 8-bit floats, in the order in which tiles hold features.

    Args:
        inputs: [num_inputs, in_features], contiguous; in_features divisible by 128.

    Returns:
        [num_inputs, in_features], float8_e4m3fn, and [num_inputs, num_groups], float32: their
        product is the inputs. A group that holds something that is no number has such a scale.
    """
    num_inputs, num_columns = inputs.shape
    num_groups = num_columns // _GROUP_SIZE
    codes = torch.empty_like(inputs, dtype=torch.float8_e4m3fn)
    scales = inputs.new_empty(num_inputs, num_groups, dtype=torch.float32)
    groups_each = 8
    _quantize_groups[(num_inputs, triton.cdiv(num_groups, groups_each))](
        inputs,
        codes,
        scales,
        num_groups,
        LARGEST=_LARGEST,
        SMALLEST=_SMALLEST,
        LANES=LANES,
        GROUP=_GROUP_SIZE,
        GROUPS=groups_each,
    )
    return codes, scales


@triton.jit
def _multiply_groups(
    codes, input_scales, matrix, row_scales, output, num_inputs, num_rows, num_groups,
    GROUP: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr, NEIGHBOURS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    blocks = tl.cdiv(num_rows, ROWS)
    first_block = program // (NEIGHBOURS * blocks) * NEIGHBOURS
    beside = tl.minimum(tl.cdiv(num_inputs, INPUTS) - first_block, NEIGHBOURS)
    within = program % (NEIGHBOURS * blocks)
    picked = (first_block + within % beside) * INPUTS + tl.arange(0, INPUTS)
    rows = within // beside * ROWS + tl.arange(0, ROWS)
    safe_picked = tl.minimum(picked, num_inputs - 1).to(tl.int64)
    safe_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
    features = tl.arange(0, GROUP)
    num_columns = num_groups * GROUP
    left = codes + safe_picked[:, None] * num_columns + features[None, :]
    right = matrix + safe_rows[None, :] * num_columns + features[:, None]
    sums = tl.zeros([INPUTS, ROWS], tl.float32)
    for group in tl.range(0, num_groups, num_stages=STAGES):
        total = tl.dot(tl.load(left + group * GROUP), tl.load(right + group * GROUP))
        input_scale = tl.load(input_scales + safe_picked * num_groups + group)
        row_scale = tl.load(row_scales + safe_rows * num_groups + group)
        sums += total * input_scale[:, None] * row_scale[None, :]
    place = output + picked[:, None].to(tl.int64) * num_rows + rows[None, :]
    exists = (picked < num_inputs)[:, None] & (rows < num_rows)[None, :]
    tl.store(place, sums.to(output.dtype.element_ty), mask=exists)


def takes_float8_groups(weights: TiledWeights) -> bool:
    """Whether inputs of a matrix are meant to be 8-bit floats, and it has a scale for each 128."""
    return weights.form.has_float8_inputs and weights.form.group_size == _GROUP_SIZE


def float8_groups_linear(inputs: torch.Tensor, weights: TiledWeights) -> torch.Tensor:
    """Multiplies rows, rounded to 8-bit floats, by a matrix of such.

    Args:
        inputs: [num_inputs, in_features], bfloat16 or float16, contiguous.
        weights: `takes_float8_groups` of them.

    Returns:
        [num_inputs, out_features], type of inputs.
    """
    assert takes_float8_groups(weights)
    codes, scales = quantize_groups(inputs)
    num_inputs, num_rows = len(inputs), weights.out_features
    output = inputs.new_empty(num_inputs, num_rows)
    grid = (triton.cdiv(num_inputs, _INPUTS) * triton.cdiv(num_rows, _ROWS),)
    _multiply_groups[grid](
        codes,
        scales,
        weights.words.view(torch.float8_e4m3fn),
        weights.scales,
        output,
        num_inputs,
        num_rows,
        scales.shape[1],
        GROUP=_GROUP_SIZE,
        INPUTS=_INPUTS,
        ROWS=_ROWS,
        NEIGHBOURS=_NEIGHBOURS,
        STAGES=3,
        num_warps=8,
    )
    return output

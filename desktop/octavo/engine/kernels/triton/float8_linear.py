"""Products of 8-bit floats, of cards whose matrix units take them.

Each row of inputs is rounded to float8_e4m3fn with a scale of its own, as checkpoints are meant
whose configuration says that inputs are quantised. Tiles of such weights hold two features of a
half word beside each other (`tiles`); a sum does not care for the order of its terms, so inputs are
written in that order, and the matrix stays where it lies.
"""

import functools

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.tiles import LANES, TiledWeights

_LARGEST = 448.0
"""Of float8_e4m3fn."""
_SMALLEST = 1e-12
"""Taken for the largest of a row of zeros, which no scale makes anything else of."""
_BLOCK = 1024
_DIVISOR = 16
"""Of both sizes of a matrix: what torch asks for."""
_MIN_CAPABILITY = (8, 9)


@triton.jit
def _quantize_inputs(
    inputs, codes, scales, num_columns, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
    LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    highest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        exists = start + columns < num_columns
        values = tl.load(inputs + row * num_columns + start + columns, mask=exists, other=0.0)
        values = tl.abs(values.to(tl.float32))
        highest = tl.maximum(highest, values, propagate_nan=tl.PropagateNan.ALL)
    scale = tl.maximum(tl.max(highest, 0), SMALLEST) / LARGEST
    # Maxima of a tensor pass over what is not a number; it must not come out as one.
    is_number = tl.min((highest == highest).to(tl.int32), 0)
    scale = tl.where(is_number == 1, scale, float("nan"))
    tl.store(scales + row, scale)
    # Byte 2 e + i of a tile is feature i * 32 + e.
    within = columns % (2 * LANES)
    features = columns - within + within % 2 * LANES + within // 2
    for start in range(0, num_columns, BLOCK):
        exists = start + columns < num_columns
        values = tl.load(inputs + row * num_columns + start + features, mask=exists, other=0.0)
        values = tl.clamp(values.to(tl.float32) / scale, -LARGEST, LARGEST)
        place = codes + row * num_columns + start + columns
        tl.store(place, values.to(codes.dtype.element_ty), mask=exists)


def quantize_inputs(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds rows to 8-bit floats, in the order in which tiles hold features.

    Args:
        inputs: [num_inputs, in_features], contiguous; in_features divisible by 64.

    Returns:
        [num_inputs, in_features], float8_e4m3fn, and [num_inputs, 1], float32: their product is
        the inputs. A row that holds something that is no number has such a scale.
    """
    num_inputs, num_columns = inputs.shape
    codes = torch.empty_like(inputs, dtype=torch.float8_e4m3fn)
    scales = inputs.new_empty(num_inputs, 1, dtype=torch.float32)
    _quantize_inputs[(num_inputs,)](
        inputs,
        codes,
        scales,
        num_columns,
        LARGEST=_LARGEST,
        SMALLEST=_SMALLEST,
        LANES=LANES,
        BLOCK=_BLOCK,
    )
    return codes, scales


@functools.cache
def has_float8_units(device: torch.device) -> bool:
    """Whether the card's matrix units take 8-bit floats."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


@functools.cache
def has_float8_products(device: torch.device) -> bool:
    """Whether torch multiplies 8-bit floats with a scale for each row there: it is tried out.

    Raises:
        torch.OutOfMemoryError: there is no room even to try.
    """
    if not has_float8_units(device):
        return False
    codes = torch.zeros(_DIVISOR, 2 * _DIVISOR, dtype=torch.float8_e4m3fn, device=device)
    scales = torch.ones(_DIVISOR, 1, device=device)
    try:
        _multiply(codes, scales, codes, scales)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True


def float8_linear(
    inputs: torch.Tensor, weights: TiledWeights, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiplies rows, rounded to 8-bit floats, by a matrix of such.

    Args:
        inputs: [num_inputs, in_features], bfloat16, contiguous.
        weights: `takes_float8` of them.
        bias: [out_features], bfloat16.

    Returns:
        [num_inputs, out_features], bfloat16.
    """
    codes, scales = quantize_inputs(inputs)
    matrix = weights.words.view(torch.float8_e4m3fn)
    product = _multiply(codes, scales, matrix, weights.scales)
    return product if bias is None else product.add_(bias)


def takes_float8(weights: TiledWeights) -> bool:
    """Whether inputs of a matrix are meant to be 8-bit floats, and it lies so that they can be."""
    has_row_scales = weights.form.group_size == weights.in_features
    sizes_fit = weights.out_features % _DIVISOR == 0
    return weights.form.has_float8_inputs and has_row_scales and sizes_fit


def _multiply(
    codes: torch.Tensor, scales: torch.Tensor, matrix: torch.Tensor, row_scales: torch.Tensor
) -> torch.Tensor:
    product: torch.Tensor = torch._scaled_mm(
        codes, matrix.T, scale_a=scales, scale_b=row_scales.T, out_dtype=torch.bfloat16
    )
    return product

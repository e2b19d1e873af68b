"""RMS normalisation, fused with the addition to the residual stream that comes before it.

The plain-torch twin is `layers.layernorm.RMSNorm`, with `torch.add` before it.
"""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.launch import follow, launch_options


@triton.jit
def normalise(values, weight, num_channels, eps, offset, IN_FLOAT32: tl.constexpr, dtype):
    """Values and weight in float32, rounded where the definition rounds; one vector."""
    normalised = values * tl.rsqrt(tl.sum(values * values, 0) / num_channels + eps)
    if IN_FLOAT32:
        return (normalised * (weight + offset)).to(dtype)
    return (normalised.to(dtype).to(tl.float32) * weight).to(dtype)


@triton.jit
def _add_rms_norm(
    hidden,
    delta,
    delta_weight,
    weight,
    output,
    hidden_stride,
    delta_stride,
    output_stride,
    num_channels,
    eps,
    offset,
    residual_scale,
    ADD: tl.constexpr,
    NORM_DELTA: tl.constexpr,
    NORM_OUTPUT: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    exists = channels < num_channels
    dtype = hidden.dtype.element_ty
    if NORM_DELTA:
        delta_gain = tl.load(delta_weight + channels, mask=exists, other=0.0).to(tl.float32)
    if NORM_OUTPUT:
        gain = tl.load(weight + channels, mask=exists, other=0.0).to(tl.float32)
    follow(OVERLAP)
    place = hidden + row * hidden_stride + channels
    values = tl.load(place, mask=exists, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(delta + row * delta_stride + channels, mask=exists, other=0.0)
        added = added.to(tl.float32)
        if NORM_DELTA:
            added = normalise(added, delta_gain, num_channels, eps, offset, IN_FLOAT32, dtype)
            added = added.to(tl.float32)
        values = (values + residual_scale * added).to(dtype)
        tl.store(place, values, mask=exists)
        values = values.to(tl.float32)
    if NORM_OUTPUT:
        normalised = normalise(values, gain, num_channels, eps, offset, IN_FLOAT32, dtype)
        tl.store(output + row * output_stride + channels, normalised, mask=exists)


def add_rms_norm(
    hidden: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    eps: float,
    delta: torch.Tensor | None = None,
    delta_weight: torch.Tensor | None = None,
    residual_scale: float = 1.0,
    offset: float = 0.0,
    in_float32: bool = False,
    output: torch.Tensor | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Adds a part's output to the residual stream and normalises the sum.

    Args:
        hidden: [num_rows, hidden_size]; with a delta it is changed in place.
        weight: [hidden_size]; None: the sum is not normalised.
        eps: keeps the root from zero.
        delta: [num_rows, hidden_size], what to add; None: nothing.
        delta_weight: [hidden_size], normalises the delta before it is added; None: it is not.
        residual_scale: factor on the delta.
        offset: added to the weights.
        in_float32: whether the weight multiplies before the cast back.
        output: [num_rows, hidden_size], may be `hidden`; None: a new one.
        overlap: whether the launch may overlap with the kernel before it.

    Returns:
        The normalised sum, or `hidden` if there is no weight.
    """
    num_rows, num_channels = hidden.shape
    if weight is None:
        output = hidden
    elif output is None:
        output = torch.empty_like(hidden)
    _add_rms_norm[(num_rows,)](
        hidden,
        hidden if delta is None else delta,
        hidden if delta_weight is None else delta_weight,
        hidden if weight is None else weight,
        output,
        hidden.stride(0),
        0 if delta is None else delta.stride(0),
        output.stride(0),
        num_channels,
        eps,
        offset,
        residual_scale,
        ADD=delta is not None,
        NORM_DELTA=delta_weight is not None,
        NORM_OUTPUT=weight is not None,
        IN_FLOAT32=in_float32,
        BLOCK=triton.next_power_of_2(num_channels),
        OVERLAP=overlap,
        num_warps=8 if num_channels > 1024 else 4,
        **launch_options(overlap),
    )
    return output

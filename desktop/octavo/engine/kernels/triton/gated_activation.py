"""activation(gate) * up. The plain-torch twin is in `layers.mlp`."""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.launch import follow, launch_options

_BLOCK = 1024


@triton.jit
def activate(gate, IS_GELU: tl.constexpr):
    """SiLU, or GELU in its tanh form; float32."""
    if IS_GELU:
        # tanh(x) = 2 sigmoid(2x) - 1
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        return gate / (1.0 + tl.exp(-inner))
    return gate / (1.0 + tl.exp(-gate))


@triton.jit
def apply_gate(gate, up, ACTIVATION: tl.constexpr, dtype: tl.constexpr):
    """activation(gate) * up in float32, rounded where operations on tensors of the type would."""
    gate = gate.to(dtype).to(tl.float32)
    up = up.to(dtype).to(tl.float32)
    if ACTIVATION == "clamped_swiglu":
        gate = tl.minimum(gate, 7.0, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -7.0, 7.0, propagate_nan=tl.PropagateNan.ALL)
        return gate / (1.0 + tl.exp(-1.702 * gate)) * (up + 1.0)
    return activate(gate, ACTIVATION == "gelu_tanh").to(dtype).to(tl.float32) * up


@triton.jit
def _gated_activation(
    gate_up,
    output,
    num_channels,
    IS_GELU: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channels < num_channels
    follow(OVERLAP)
    place = gate_up + row * 2 * num_channels + channels
    gate = tl.load(place, mask=exists, other=0.0)
    up = tl.load(place + num_channels, mask=exists, other=0.0).to(tl.float32)
    activated = activate(gate.to(tl.float32), IS_GELU).to(gate.dtype).to(tl.float32)
    place = output + row * num_channels + channels
    tl.store(place, (activated * up).to(output.dtype.element_ty), mask=exists)


def gated_activation(
    gate_up: torch.Tensor, *, activation: str, overlap: bool = False
) -> torch.Tensor:
    """[num_rows, 2 * intermediate_size], gates then ups, to [num_rows, intermediate_size]."""
    num_rows, width = gate_up.shape
    num_channels = width // 2
    output = gate_up.new_empty(num_rows, num_channels)
    # Rows on the second axis, which ends at 65,535.
    assert num_rows < 2**16
    _gated_activation[(triton.cdiv(num_channels, _BLOCK), num_rows)](
        gate_up,
        output,
        num_channels,
        IS_GELU=activation == "gelu_tanh",
        BLOCK=_BLOCK,
        OVERLAP=overlap,
        num_warps=4,
        **launch_options(overlap),
    )
    return output

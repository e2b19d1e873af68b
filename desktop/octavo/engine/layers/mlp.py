"""The gated feed-forward part of a decoder layer."""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.layers.linear import FusedLinear, Linear

_SWIGLU_SLOPE = 1.702
_SWIGLU_LIMIT = 7.0


def apply_gate(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up, of `silu`, `gelu_tanh`, or the `clamped_swiglu` of gpt-oss.

    Source: OpenAI 2025, arXiv:2508.10925, section 2.2 (gpt-oss).
    """
    if activation == "clamped_swiglu":
        gate = gate.clamp(max=_SWIGLU_LIMIT)
        up = up.clamp(-_SWIGLU_LIMIT, _SWIGLU_LIMIT)
        return gate * torch.sigmoid(gate * _SWIGLU_SLOPE) * (up + 1)
    if activation == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh") * up
    return functional.silu(gate) * up


class GatedMLP(nn.Module):
    """Gated linear unit: activation(gate(x)) * up(x), projected back.

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str = "silu",
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
        super().__init__()
        self._activation = activation
        self._gate_up = FusedLinear(
            hidden_size,
            (intermediate_size, intermediate_size),
            bias=bias,
            dtype=dtype,
            device=device,
            keeps_packed=keeps_packed,
        )
        self.gate_proj, self.up_proj = self._gate_up.parts
        self.down_proj = Linear(
            intermediate_size,
            hidden_size,
            bias=bias,
            dtype=dtype,
            device=device,
            keeps_packed=keeps_packed,
        )

    @property
    def gate_up(self) -> FusedLinear:
        """Gates, then ups."""
        return self._gate_up

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size], type kept."""
        gate, up = self._gate_up(hidden).chunk(2, dim=-1)
        projected: torch.Tensor = self.down_proj(apply_gate(gate, up, self._activation))
        return projected

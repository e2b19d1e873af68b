"""The gated feed-forward part of a decoder layer."""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.layers.linear import FusedLinear, Linear


def activate(gate: torch.Tensor, activation: str) -> torch.Tensor:
    """Applies `silu` or `gelu_tanh`."""
    if activation == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh")
    return functional.silu(gate)


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
    ) -> None:
        super().__init__()
        self._activation = activation
        self._gate_up = FusedLinear(
            hidden_size,
            (intermediate_size, intermediate_size),
            bias=bias,
            dtype=dtype,
            device=device,
        )
        self.gate_proj, self.up_proj = self._gate_up.parts
        self.down_proj = Linear(
            intermediate_size, hidden_size, bias=bias, dtype=dtype, device=device
        )

    @property
    def gate_up(self) -> FusedLinear:
        """Gates, then ups."""
        return self._gate_up

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size], type kept."""
        gate, up = self._gate_up(hidden).chunk(2, dim=-1)
        projected: torch.Tensor = self.down_proj(activate(gate, self._activation) * up)
        return projected

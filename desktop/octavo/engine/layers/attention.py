"""Self-attention of one decoder layer, down to the backend's door."""

import torch
from torch import nn

from octavo.engine.attention.base import AttentionStep
from octavo.engine.layers.linear import FusedLinear, Linear
from octavo.engine.layers.rotary_embedding import rotate


class Attention(nn.Module):
    """Projects to queries, keys and values, rotates them, attends, projects back."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        output_bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._head_counts = [num_heads, num_kv_heads, num_kv_heads]
        self._head_dim = head_dim
        self._scale = head_dim**-0.5
        self._qkv = FusedLinear(
            hidden_size,
            (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim),
            bias=bias,
            dtype=dtype,
            device=device,
        )
        self.q_proj, self.k_proj, self.v_proj = self._qkv.parts
        self.o_proj = Linear(
            num_heads * head_dim, hidden_size, bias=output_bias, dtype=dtype, device=device
        )

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        step: AttentionStep,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size], type kept; writes the step's keys and values."""
        num_heads, num_kv_heads, _ = self._head_counts
        heads = self._qkv(hidden).view(len(hidden), -1, self._head_dim)
        rotated = rotate(heads[:, : num_heads + num_kv_heads], *rotation)
        attended = step.attend(
            rotated[:, :num_heads],
            rotated[:, num_heads:],
            heads[:, num_heads + num_kv_heads :],
            key_cache,
            value_cache,
            self._scale,
        )
        projected: torch.Tensor = self.o_proj(attended.flatten(1))
        return projected

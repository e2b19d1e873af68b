"""Self-attention of one decoder layer, down to the backend's door."""

import torch
from torch import nn

from octavo.engine.attention.base import AttentionRule, AttentionStep, LayerCache
from octavo.engine.layers.layernorm import RMSNorm
from octavo.engine.layers.linear import FusedLinear, Linear, parameter
from octavo.engine.layers.rotary_embedding import rotate
from octavo.engine.model_config import ModelConfig


class Attention(nn.Module):
    """Projects to queries, keys and values, rotates them, attends, projects back."""

    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    sinks: nn.Parameter | None

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
        super().__init__()
        num_heads, num_kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        self._rule = AttentionRule(
            head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
            config.window(layer),
            config.attention_softcap,
        )
        self._is_rotated = layer not in config.unrotated_layers
        self._qkv = FusedLinear(
            config.hidden_size,
            (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim),
            bias=config.attention_bias,
            dtype=dtype,
            device=device,
            keeps_packed=keeps_packed,
        )
        self.q_proj, self.k_proj, self.v_proj = self._qkv.parts
        self.o_proj = Linear(
            num_heads * head_dim,
            config.hidden_size,
            bias=config.attention_output_bias,
            dtype=dtype,
            device=device,
            keeps_packed=keeps_packed,
        )
        self.q_norm = self.k_norm = None
        self._norms_heads = config.qk_norm == "head"
        if config.qk_norm != "none":
            self.q_norm, self.k_norm = (
                RMSNorm(
                    head_dim if self._norms_heads else heads * head_dim,
                    config.rms_norm_eps,
                    offset=config.norm_offset,
                    in_float32=config.norm_in_float32,
                    dtype=dtype,
                    device=device,
                )
                for heads in (num_heads, num_kv_heads)
            )
        self.sinks = parameter(num_heads, dtype=dtype, device=device) if config.has_sinks else None

    @property
    def qkv(self) -> FusedLinear:
        """Queries, keys, then values."""
        return self._qkv

    @property
    def rule(self) -> AttentionRule:
        """How queries weigh keys."""
        return self._rule

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        step: AttentionStep,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size], type kept; writes the step's keys and values."""
        num_heads, num_turned = self._num_heads, self._num_heads + self._num_kv_heads
        heads = self._qkv(hidden).view(len(hidden), -1, self._head_dim)
        turned = heads[:, :num_turned]
        if self.q_norm is not None and self.k_norm is not None:
            query, key = turned[:, :num_heads], turned[:, num_heads:]
            turned = torch.cat([self._norm(self.q_norm, query), self._norm(self.k_norm, key)], 1)
        if self._is_rotated:
            turned = rotate(turned, *rotation)
        attended = step.attend(
            turned[:, :num_heads],
            turned[:, num_heads:],
            heads[:, num_turned:],
            cache,
            self._rule,
            self.sinks,
        )
        projected: torch.Tensor = self.o_proj(attended.flatten(1))
        return projected

    def _norm(self, norm: RMSNorm, heads: torch.Tensor) -> torch.Tensor:
        """Each head by itself, or all as one long vector."""
        normalised: torch.Tensor = norm(heads if self._norms_heads else heads.flatten(1))
        return normalised.view(heads.shape)

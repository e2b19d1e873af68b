"""What attention reads of one layer: its part of the KV cache, and its rule."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's part of the KV cache."""

    keys: torch.Tensor
    """[num_blocks, block_size, num_kv_heads, head_dim], of the model's type or another."""
    values: torch.Tensor
    """As `keys`."""
    key_scales: torch.Tensor | None = None
    """[num_blocks, block_size, num_kv_heads], float16: what the keys are multiplied by; None:
    nothing. Types that need them have them."""
    value_scales: torch.Tensor | None = None
    """As `key_scales`."""


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How the queries of a layer weigh the keys; the same in every step."""

    scale: float
    """Factor on the scores, usually head_dim ** -0.5."""
    window: int | None = None
    """Keys a query sees: the last so many up to its own; None: all of them."""
    softcap: float | None = None
    """Scores are squeezed between this and its negative before the mask (Gemma 2)."""

"""Attention over the paged KV cache. The factory is here; backends are imported when chosen."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from octavo.engine.attention.base import AttentionBackend


def choose_attention_backend(
    *, num_heads: int, num_kv_heads: int, dtype: "torch.dtype"
) -> "tuple[AttentionBackend, str]":
    """Returns the backend for this model and, as a sentence, why it was chosen."""
    from octavo.engine.attention.torch_attention import TorchAttention

    backend = TorchAttention(num_heads, num_kv_heads, dtype)
    return backend, "Plain torch attention: exact, and the only backend so far."

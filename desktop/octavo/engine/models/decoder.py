"""The decoder-only transformer; `ModelConfig` shapes it, parameters have Hugging Face's names."""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.attention.base import AttentionStep
from octavo.engine.kv_cache import KVCache
from octavo.engine.layers.attention import Attention
from octavo.engine.layers.embedding import Embedding
from octavo.engine.layers.layernorm import RMSNorm
from octavo.engine.layers.linear import Linear
from octavo.engine.layers.mlp import GatedMLP
from octavo.engine.layers.rotary_embedding import RotaryEmbedding
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.errors import InsufficientMemoryError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device
        )
        self.self_attn = Attention(
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            output_bias=config.attention_output_bias,
            dtype=dtype,
            device=device,
        )
        self.post_attention_layernorm = RMSNorm(
            config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device
        )
        self.mlp = GatedMLP(
            config.hidden_size, config.intermediate_size, dtype=dtype, device=device
        )

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        step: AttentionStep,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size], type kept."""
        hidden = hidden + self.self_attn(
            self.input_layernorm(hidden), rotation, key_cache, value_cache, step
        )
        residual: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return residual


class DecoderStack(nn.Module):
    """Embedding, layers and the last norm: what checkpoints call `model`."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.embed_tokens = Embedding(
            config.vocab_size, config.hidden_size, dtype=dtype, device=device
        )
        self.rotary_emb = RotaryEmbedding(config.rope, device=device)
        self.layers = nn.ModuleList(
            DecoderLayer(config, dtype=dtype, device=device) for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=device)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        kv_cache: KVCache,
        step: AttentionStep,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size], normalised."""
        hidden = self.embed_tokens(token_ids)
        rotation = self.rotary_emb(positions)
        for layer, key_cache, value_cache in zip(
            self.layers, kv_cache.keys, kv_cache.values, strict=True
        ):
            hidden = layer(hidden, rotation, key_cache, value_cache, step)
        normalised: torch.Tensor = self.norm(hidden)
        return normalised


class Decoder(nn.Module):
    """A causal language model over a paged KV cache."""

    lm_head: Linear | None

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.model = DecoderStack(config, dtype=dtype, device=device)
        # Tied models project with the embedding; then there is no such parameter to load.
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, dtype=dtype, device=device)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        kv_cache: KVCache,
        step: AttentionStep,
    ) -> torch.Tensor:
        """Runs all layers over one step's tokens and writes their keys and values.

        Args:
            token_ids: [num_tokens], int64.
            positions: [num_tokens], int64.
            kv_cache: of this model's shape.
            step: the backend's preparation for these tokens.

        Returns:
            [num_tokens, hidden_size]: hidden states after the last norm.
        """
        hidden: torch.Tensor = self.model(token_ids, positions, kv_cache, step)
        return hidden

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, vocab_size], float32."""
        if self.lm_head is not None:
            logits: torch.Tensor = self.lm_head(hidden)
        else:
            logits = functional.linear(hidden, self.model.embed_tokens.weight)
        return logits.float()


def build_model(config: ModelConfig, plan: MemoryPlan) -> Decoder:
    """Allocates a decoder as planned; its weights hold garbage until they are loaded.

    Raises:
        InsufficientMemoryError: the device has less memory than the plan found.
    """
    try:
        return Decoder(
            config, dtype=DTYPES[plan.dtype], device=torch.device(plan.device.torch_name)
        )
    except RuntimeError as error:  # torch has one class for this on the GPU, none on the CPU.
        raise InsufficientMemoryError(
            f"The weights of {config.name} could not be allocated on {plan.device.name}.",
            hint="Close other programs and load the model again.",
            needed_bytes=plan.total_bytes,
            free_bytes=plan.free_bytes,
        ) from error

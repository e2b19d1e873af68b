"""The decoder-only transformer; `ModelConfig` shapes it, parameters have Hugging Face's names."""

import torch
from torch import nn

from octavo.engine.attention.base import AttentionStep, LayerCache
from octavo.engine.device_errors import is_lost
from octavo.engine.kv_cache import KVCache
from octavo.engine.layers.attention import Attention
from octavo.engine.layers.embedding import Embedding
from octavo.engine.layers.layernorm import RMSNorm
from octavo.engine.layers.linear import Linear
from octavo.engine.layers.mlp import GatedMLP
from octavo.engine.layers.moe import MoE
from octavo.engine.layers.rotary_embedding import RotaryEmbedding
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.errors import InsufficientMemoryError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each with its norms and added to the residual stream."""

    mlp: GatedMLP | MoE

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

        def norm() -> RMSNorm:
            return _norm(config, dtype, device)

        self._residual_scale = config.residual_scale
        placement = config.norm_placement
        self.input_layernorm = norm() if placement != "after" else None
        self.self_attn = Attention(
            config, layer, dtype=dtype, device=device, keeps_packed=keeps_packed
        )
        # Checkpoints call the norm before the feed-forward by this name where it is the only one.
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm() if placement == "around" else None
        self.post_feedforward_layernorm = norm() if placement != "before" else None
        self._norms_after = placement != "before"
        if config.moe is not None and layer not in config.moe.dense_layers:
            self.mlp = MoE(config, dtype=dtype, device=device, keeps_packed=keeps_packed)
        else:
            self.mlp = GatedMLP(
                config.hidden_size,
                config.intermediate_size,
                activation=config.activation,
                bias=config.mlp_bias,
                dtype=dtype,
                device=device,
                keeps_packed=keeps_packed,
            )

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        step: AttentionStep,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size], type kept."""
        inputs = hidden if self.input_layernorm is None else self.input_layernorm(hidden)
        attended = self.self_attn(inputs, rotation, cache, step)
        if self._norms_after:
            attended = self.post_attention_layernorm(attended)
        hidden = torch.add(hidden, attended, alpha=self._residual_scale)
        inputs = hidden
        if not self._norms_after:
            inputs = self.post_attention_layernorm(hidden)
        elif self.pre_feedforward_layernorm is not None:
            inputs = self.pre_feedforward_layernorm(hidden)
        fed = self.mlp(inputs)
        if self.post_feedforward_layernorm is not None:
            fed = self.post_feedforward_layernorm(fed)
        return torch.add(hidden, fed, alpha=self._residual_scale)


def _norm(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> RMSNorm:
    return RMSNorm(
        config.hidden_size,
        config.rms_norm_eps,
        offset=config.norm_offset,
        in_float32=config.norm_in_float32,
        dtype=dtype,
        device=device,
    )


class DecoderStack(nn.Module):
    """Embedding, layers and the last norm: what checkpoints call `model`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            scale=config.embedding_scale,
            dtype=dtype,
            device=device,
            keeps_packed=keeps_packed,
        )
        self.rotary_emb = RotaryEmbedding(config.rope, max_model_len=max_model_len, device=device)
        self.local_rotary_emb = None
        if config.local_rope is not None:
            self.local_rotary_emb = RotaryEmbedding(
                config.local_rope, max_model_len=max_model_len, device=device
            )
        self._has_window = [config.window(layer) is not None for layer in range(config.num_layers)]
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, dtype=dtype, device=device, keeps_packed=keeps_packed)
            for layer in range(config.num_layers)
        )
        self.norm = _norm(config, dtype, device)

    @property
    def rotations(self) -> tuple[RotaryEmbedding, ...]:
        """Of the layers that see the whole context, and of those with a window if it differs."""
        if self.local_rotary_emb is None:
            return (self.rotary_emb,)
        return self.rotary_emb, self.local_rotary_emb

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        kv_cache: KVCache,
        step: AttentionStep,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size], normalised."""
        hidden = self.embed_tokens(token_ids)
        rotation = local_rotation = self.rotary_emb(positions)
        if self.local_rotary_emb is not None:
            local_rotation = self.local_rotary_emb(positions)
        for layer, has_window, cache in zip(
            self.layers, self._has_window, kv_cache.layers, strict=True
        ):
            turned = local_rotation if has_window else rotation
            hidden = layer(hidden, turned, cache, step)
        normalised: torch.Tensor = self.norm(hidden)
        return normalised


class Decoder(nn.Module):
    """A causal language model over a paged KV cache."""

    lm_head: Linear | None

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
        super().__init__()
        self._softcap = config.final_softcap
        self._logits_scale = config.logits_scale
        self.model = DecoderStack(
            config,
            max_model_len=max_model_len,
            dtype=dtype,
            device=device,
            keeps_packed=keeps_packed,
        )
        # Tied models project with the embedding; then there is no such parameter to load.
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.hidden_size,
                config.vocab_size,
                dtype=dtype,
                device=device,
                keeps_packed=keeps_packed,
            )

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
            logits = self.model.embed_tokens.project(hidden)
        return self.finish_logits(logits)

    def finish_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Scales and caps what the projection onto the vocabulary gave; float32."""
        logits = logits.float()
        if self._logits_scale != 1.0:
            logits *= self._logits_scale
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits


def build_model(config: ModelConfig, plan: MemoryPlan) -> Decoder:
    """Allocates a decoder as planned; its weights hold garbage until they are loaded.

    Matrices that are kept packed get their memory when they are loaded.

    Raises:
        InsufficientMemoryError: the device has less memory than the plan found.
    """
    try:
        return Decoder(
            config,
            max_model_len=plan.max_model_len,
            dtype=DTYPES[plan.dtype],
            device=torch.device(plan.device.torch_name),
            keeps_packed=plan.keeps_packed,
        )
    except RuntimeError as error:  # torch has one class for this on the GPU, none on the CPU.
        if is_lost(error):
            raise
        raise InsufficientMemoryError(
            f"The weights of {config.name} could not be allocated on {plan.device.name}.",
            hint="Close other programs and load the model again.",
            needed_bytes=plan.total_bytes,
            free_bytes=plan.free_bytes,
        ) from error

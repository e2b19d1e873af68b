"""Small random decoders, their twins in transformers, and a hand-driven batch."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from octavo.engine.attention import choose_attention_backend
from octavo.engine.attention.base import AttentionMetadata
from octavo.engine.batch import PersistentBatch
from octavo.engine.device import Device
from octavo.engine.kv_cache import KVCache
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig, RopeConfig
from octavo.engine.models.decoder import DTYPES, Decoder, build_model
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence
from octavo.engine.sequence import Sequence as TokenSequence

VOCAB_SIZE = 211


def tiny_config(**changes: Any) -> ModelConfig:
    """A llama of two layers; the changes are fields of `ModelConfig`."""
    values: dict[str, Any] = {
        "architecture": "llama",
        "name": "tiny",
        "num_layers": 2,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "num_parameters": 60_000,
        "checkpoint_bytes": 240_000,
        "quantization": "F32",
        **changes,
    }
    values.setdefault("rope", RopeConfig(rotary_dim=values["head_dim"]))
    return ModelConfig(**values)


def tiny_plan(*, num_kv_blocks: int = 64, block_size: int = 4, **changes: Any) -> MemoryPlan:
    values: dict[str, Any] = {
        "device": Device("cpu", 0, "test CPU", 8 << 30, 8 << 30),
        "dtype": "float32",
        "items": (),
        "num_kv_blocks": num_kv_blocks,
        "block_size": block_size,
        "max_model_len": 256,
        **changes,
    }
    return MemoryPlan(**values)


def random_model(config: ModelConfig, plan: MemoryPlan, *, seed: int = 0) -> Decoder:
    """Weights spread widely enough that a wrong position or mask changes the logits a lot."""
    model = build_model(config, plan)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("freq_factors"):
            continue
        # On the CPU, so that the same seed gives the same weights on every device.
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_(noise * 1.5 * parameter.shape[1] ** -0.5)
    return model


def transformers_twin(model: Decoder, config: ModelConfig, **options: Any) -> LlamaForCausalLM:
    """The same weights in transformers' implementation."""
    twin: LlamaForCausalLM = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            **options,
        )
    )
    twin.requires_grad_(False)
    weights = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("freq_factors")
    }
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    return twin


def transformers_logits(twin: LlamaForCausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    """[num_tokens, vocab_size] of one whole sequence, without any cache."""
    with torch.inference_mode():
        logits: torch.Tensor = twin(torch.tensor([list(token_ids)])).logits[0]
    return logits


def make_sequence(
    sequence_id: int, token_ids: Sequence[int], *, seed: int = 0, **sampling: Any
) -> TokenSequence:
    return TokenSequence(
        sequence_id,
        f"request-{sequence_id}",
        0,
        tuple(token_ids),
        SamplingParams(**sampling),
        seed=seed,
    )


def random_tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(0, VOCAB_SIZE, (count,), generator=generator).tolist()
    return tokens


class PagedForward:
    """Runs a decoder over its cache the way the runner does, and returns every logit."""

    def __init__(self, model: Decoder, config: ModelConfig, plan: MemoryPlan) -> None:
        self._model = model
        self._config = config
        self._plan = plan
        self.kv_cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=plan.num_kv_blocks,
            block_size=plan.block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=DTYPES[plan.dtype],
            device=torch.device("cpu"),
        )
        # Where nobody may read: anything that does shows in the logits.
        for cache in (*self.kv_cache.keys, *self.kv_cache.values):
            cache[1:] = torch.nan
        self._batch = PersistentBatch(16, plan.max_model_len, plan.block_size)
        self._free_blocks = list(range(1, plan.num_kv_blocks))

    def grow(self, sequence: TokenSequence, num_tokens: int) -> None:
        """Gives a sequence blocks for its first `num_tokens`, out of order on purpose."""
        while len(sequence.block_table) * self._plan.block_size < num_tokens:
            sequence.block_table.append(self._free_blocks.pop(len(self._free_blocks) // 2))

    def step(self, work: Sequence[tuple[TokenSequence, int, int]]) -> dict[int, torch.Tensor]:
        """Computes (sequence, start, num_tokens) together: sequence_id to its logits."""
        for sequence, start, num_tokens in work:
            self.grow(sequence, start + num_tokens)
        batch = ScheduledBatch(tuple(ScheduledSequence(*item) for item in work), ())
        inputs = self._batch.prepare(batch)
        backend, _ = choose_attention_backend(
            num_heads=self._config.num_heads,
            num_kv_heads=self._config.num_kv_heads,
            dtype=DTYPES[self._plan.dtype],
        )
        metadata = AttentionMetadata(
            slot_mapping=torch.from_numpy(inputs.slot_mapping),
            block_tables=torch.from_numpy(inputs.block_tables),
            context_lens=torch.from_numpy(inputs.context_lens),
            cu_seqlens_q=torch.from_numpy(inputs.cu_seqlens_q),
            num_decode=inputs.num_decode,
            block_size=self._plan.block_size,
            query_lens=tuple(item.num_tokens for item in inputs.sequences),
            host_context_lens=tuple(inputs.context_lens.tolist()),
        )
        with torch.inference_mode():
            hidden = self._model(
                torch.from_numpy(inputs.token_ids),
                torch.from_numpy(inputs.positions),
                self.kv_cache,
                backend.prepare(metadata),
            )
            logits = self._model.compute_logits(hidden)
        ends = inputs.cu_seqlens_q.tolist()
        return {
            item.sequence.sequence_id: logits[ends[index] : ends[index + 1]]
            for index, item in enumerate(inputs.sequences)
        }

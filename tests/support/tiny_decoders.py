"""Small random decoders, their twins in transformers, and a hand-driven batch."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from octavo.engine.attention import choose_attention_backend
from octavo.engine.attention.base import AttentionMetadata, WindowTables
from octavo.engine.batch import PersistentBatch
from octavo.engine.device import Device
from octavo.engine.kv_cache import KVCache
from octavo.engine.kv_groups import first_visible_block, kv_groups
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
    """Runs a decoder over its cache the way the runner does, and returns every logit.

    Blocks that left a window are given up and filled with NaN: whoever reads them shows it.
    """

    def __init__(self, model: Decoder, config: ModelConfig, plan: MemoryPlan) -> None:
        self._model = model
        self._config = config
        self._plan = plan
        self._groups = kv_groups(config, plan.max_model_len)
        self.kv_cache = KVCache(
            self._groups,
            num_blocks=[plan.num_kv_blocks] * len(self._groups),
            block_size=plan.block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=plan.kv_dtype,
            device=torch.device("cpu"),
        )
        windows = [group.window for group in self._groups]
        self._batch = PersistentBatch(16, plan.max_model_len, plan.block_size, windows=windows)
        self._free_blocks = [list(range(1, plan.num_kv_blocks)) for _ in self._groups]
        for number, blocks in enumerate(self._free_blocks):
            for block in blocks:
                self._spoil(number, block)

    def _spoil(self, number: int, block: int) -> None:
        """Where nobody may read: anything that does shows in the logits."""
        for layer in self._groups[number].layers:
            cache = self.kv_cache.layers[layer]
            for tensor in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
                if tensor is None:
                    continue
                if tensor.dtype is torch.float8_e4m3fn:
                    tensor.view(torch.uint8)[block] = 0x7F
                elif tensor.is_floating_point():
                    tensor[block] = torch.nan

    def _update_blocks(self, sequence: TokenSequence, start: int, num_tokens: int) -> None:
        """Takes blocks, out of order on purpose, and gives up those that left a window."""
        while len(sequence.block_tables) < len(self._groups):
            sequence.block_tables.append([])
        block_size = self._plan.block_size
        for number, group in enumerate(self._groups):
            table, free = sequence.block_tables[number], self._free_blocks[number]
            for index in range(first_visible_block(start - 1, group.window, block_size)):
                if table[index] != 0:
                    self._spoil(number, table[index])
                    free.append(table[index])
                    table[index] = 0
            while len(table) * block_size < start + num_tokens:
                table.append(free.pop(len(free) // 2))

    @property
    def num_used_blocks(self) -> list[int]:
        """Of each group."""
        return [self._plan.num_kv_blocks - 1 - len(free) for free in self._free_blocks]

    def step(self, work: Sequence[tuple[TokenSequence, int, int]]) -> dict[int, torch.Tensor]:
        """Computes (sequence, start, num_tokens) together: sequence_id to its logits."""
        for sequence, start, num_tokens in work:
            self._update_blocks(sequence, start, num_tokens)
        batch = ScheduledBatch(tuple(ScheduledSequence(*item) for item in work), ())
        inputs = self._batch.prepare(batch)
        backend, _ = choose_attention_backend(
            num_heads=self._config.num_heads,
            num_kv_heads=self._config.num_kv_heads,
            dtype=DTYPES[self._plan.dtype],
        )
        (slot_mapping, block_tables), *others = (
            (torch.from_numpy(group.slot_mapping), torch.from_numpy(group.block_tables))
            for group in inputs.groups
        )
        metadata = AttentionMetadata(
            slot_mapping=slot_mapping,
            block_tables=block_tables,
            context_lens=torch.from_numpy(inputs.context_lens),
            cu_seqlens_q=torch.from_numpy(inputs.cu_seqlens_q),
            num_decode=inputs.num_decode,
            block_size=self._plan.block_size,
            query_lens=tuple(item.num_tokens for item in inputs.sequences),
            host_context_lens=tuple(inputs.context_lens.tolist()),
            window_tables={
                group.window: WindowTables(*tables)
                for group, tables in zip(self._groups[1:], others, strict=True)
                if group.window is not None
            },
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

"""`ModelRunner`: takes a scheduled batch through the model and the sampler."""

from collections.abc import Sequence

import torch

from octavo.engine.attention import choose_attention_backend
from octavo.engine.attention.base import AttentionMetadata, WindowTables
from octavo.engine.batch import IntArray, PersistentBatch, StepInputs
from octavo.engine.config import EngineConfig
from octavo.engine.kv_cache import KVCache
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import PROMPT_LOGPROB_ROWS, MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import DTYPES, Decoder
from octavo.engine.request import TokenLogprob
from octavo.engine.sampler import Sampler, gather_logprobs
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, StepOutput
from octavo.engine.sequence import Sequence as TokenSequence


class ModelRunner:
    """Owns what a model needs to run: its KV cache, attention backend, batch rows and sampler."""

    def __init__(
        self,
        model: Decoder,
        model_config: ModelConfig,
        plan: MemoryPlan,
        config: EngineConfig,
        *,
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Allocates the KV cache.

        Args:
            model: loaded, as `build_model` made it for the same plan.
            model_config: the model's numbers.
            plan: says device, data type and the size of the cache.
            config: says how many sequences run at a time.
            stop_token_ids: the model's own, which `min_tokens` holds back.

        Raises:
            InsufficientMemoryError: the cache could not be allocated.
        """
        self._model = model
        self._device = torch.device(plan.device.torch_name)
        groups = kv_groups(model_config, plan.max_model_len)
        self._windows = tuple(group.window for group in groups)
        self._kv_cache = KVCache(
            groups,
            num_blocks=plan.num_group_blocks,
            block_size=plan.block_size,
            num_kv_heads=model_config.num_kv_heads,
            head_dim=model_config.head_dim,
            dtype=plan.kv_dtype,
            device=self._device,
        )
        self._block_size = plan.block_size
        self._backend, self.attention_backend_reason = choose_attention_backend(
            num_heads=model_config.num_heads,
            num_kv_heads=model_config.num_kv_heads,
            dtype=DTYPES[plan.dtype],
        )
        self._batch = PersistentBatch(
            config.max_num_seqs, plan.max_model_len, plan.block_size, windows=self._windows
        )
        self._sampler = Sampler(model_config.vocab_size, stop_token_ids)

    @property
    def attention_backend_name(self) -> str:
        return self._backend.name

    @property
    def kv_cache_bytes(self) -> int:
        return self._kv_cache.num_bytes

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepOutput:
        """Computes one step and samples where a sequence's tokens are all in the cache.

        Raises:
            EngineError: the model returned logits that are not finite.
        """
        for sequence in (*batch.preempted, *batch.finished):
            self.release(sequence)
        self._kv_cache.copy_blocks(batch.block_copies)
        if not batch.sequences:
            return StepOutput(tokens={})
        inputs = self._batch.prepare(batch)
        hidden = self._model(
            self._to_device(inputs.token_ids),
            self._to_device(inputs.positions),
            self._kv_cache,
            self._backend.prepare(self._attention_metadata(inputs)),
        )
        prompt_logprobs = self._prompt_logprobs(inputs, hidden)
        sampling = [item.sequence for item in inputs.sequences if item.needs_sample]
        if not sampling:
            return StepOutput(tokens={}, prompt_logprobs=prompt_logprobs)
        logits = self._model.compute_logits(hidden[self._to_device(inputs.logits_indices)])
        sampled = self._sampler.sample(logits, sampling)
        return StepOutput(
            tokens={
                sequence.sequence_id: token_id
                for sequence, token_id in zip(sampling, sampled.token_ids, strict=True)
            },
            logprobs={
                sampling[row].sequence_id: logprob for row, logprob in sampled.logprobs.items()
            },
            prompt_logprobs=prompt_logprobs,
        )

    def release(self, sequence: TokenSequence) -> None:
        """Frees the row of a sequence that finished or was preempted; harmless if it has none."""
        self._batch.remove(sequence)

    def _attention_metadata(self, inputs: StepInputs) -> AttentionMetadata:
        (slot_mapping, block_tables), *others = (
            (self._to_device(group.slot_mapping), self._to_device(group.block_tables))
            for group in inputs.groups
        )
        windows = (window for window in self._windows[1:] if window is not None)
        return AttentionMetadata(
            slot_mapping=slot_mapping,
            block_tables=block_tables,
            context_lens=self._to_device(inputs.context_lens),
            cu_seqlens_q=self._to_device(inputs.cu_seqlens_q),
            num_decode=inputs.num_decode,
            block_size=self._block_size,
            query_lens=tuple(item.num_tokens for item in inputs.sequences),
            host_context_lens=tuple(item.start + item.num_tokens for item in inputs.sequences),
            window_tables={
                window: WindowTables(*tables)
                for window, tables in zip(windows, others, strict=True)
            },
        )

    def _prompt_logprobs(
        self, inputs: StepInputs, hidden: torch.Tensor
    ) -> dict[int, list[TokenLogprob]]:
        """For each sequence that asks: one entry per prompt position whose successor is prompt."""
        found: dict[int, list[TokenLogprob]] = {}
        for item, begin in zip(inputs.sequences, inputs.cu_seqlens_q, strict=False):
            num_top = item.sequence.sampling_params.prompt_logprobs
            last = item.sequence.num_prompt_tokens - 1
            num_positions = min(item.num_tokens, last - item.start)
            if num_top is None or num_positions <= 0:
                continue
            entries: list[TokenLogprob] = []
            for first in range(0, num_positions, PROMPT_LOGPROB_ROWS):
                count = min(PROMPT_LOGPROB_ROWS, num_positions - first)
                rows = hidden[int(begin) + first : int(begin) + first + count]
                entries += self._next_token_logprobs(rows, item, item.start + first, num_top)
            found[item.sequence.sequence_id] = entries
        return found

    def _next_token_logprobs(
        self, hidden: torch.Tensor, item: ScheduledSequence, position: int, num_top: int
    ) -> Sequence[TokenLogprob]:
        """Logprobs of the tokens after `position` and the following rows of `hidden`."""
        logprobs = self._model.compute_logits(hidden).log_softmax(-1)
        next_ids = item.sequence.token_ids[position + 1 : position + 1 + len(hidden)]
        return gather_logprobs(logprobs, next_ids, [num_top] * len(hidden))

    def _to_device(self, array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

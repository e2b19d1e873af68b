"""`ModelRunner`: takes a scheduled batch through the model and the sampler."""

from collections.abc import Sequence

import torch

from octavo.engine.batch import PersistentBatch, StepInputs
from octavo.engine.config import EngineConfig
from octavo.engine.executor import Executor
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import PROMPT_LOGPROB_ROWS, MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.request import TokenLogprob
from octavo.engine.sampler import Sampler, gather_logprobs
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, StepOutput
from octavo.engine.sequence import Sequence as TokenSequence


class ModelRunner:
    """Owns what a model needs to run beside its executor: batch rows and sampler."""

    def __init__(
        self,
        executor: Executor,
        model_config: ModelConfig,
        plan: MemoryPlan,
        config: EngineConfig,
        *,
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Args:
        executor: runs the model; made for the same plan.
        model_config: the model's numbers.
        plan: says how blocks are cut and how long sequences get.
        config: says how many sequences run at a time.
        stop_token_ids: the model's own, which `min_tokens` holds back.
        """
        self._executor = executor
        self._batch = PersistentBatch(
            config.max_num_seqs,
            plan.max_model_len,
            plan.block_size,
            windows=[group.window for group in kv_groups(model_config, plan.max_model_len)],
        )
        self._sampler = Sampler(model_config.vocab_size, stop_token_ids)

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepOutput:
        """Computes one step and samples where a sequence's tokens are all in the cache.

        Raises:
            EngineError: the model returned logits that are not finite.
        """
        for sequence in (*batch.preempted, *batch.finished):
            self.release(sequence)
        self._executor.copy_blocks(batch.block_copies)
        if not batch.sequences:
            return StepOutput(tokens={})
        inputs = self._batch.prepare(batch)
        hidden = self._executor.forward(inputs)
        prompt_logprobs = self._prompt_logprobs(inputs, hidden)
        sampling = [item.sequence for item in inputs.sequences if item.needs_sample]
        if not sampling:
            return StepOutput(tokens={}, prompt_logprobs=prompt_logprobs)
        rows = torch.from_numpy(inputs.logits_indices).to(hidden.device)
        logits = self._executor.compute_logits(hidden[rows])
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
        logprobs = self._executor.compute_logits(hidden).log_softmax(-1)
        next_ids = item.sequence.token_ids[position + 1 : position + 1 + len(hidden)]
        return gather_logprobs(logprobs, next_ids, [num_top] * len(hidden))

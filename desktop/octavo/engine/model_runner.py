"""`ModelRunner`: takes a scheduled batch through the model and the sampler."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from octavo.engine.batch import PersistentBatch, StepInputs
from octavo.engine.config import EngineConfig
from octavo.engine.device_errors import device_errors, free_device_memory
from octavo.engine.executor import (
    DeviceExecutor,
    Draws,
    Executor,
    LaunchingExecutor,
    SampledLater,
)
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.request import TokenLogprob
from octavo.engine.sampler import (
    Sampler,
    draw_temperature,
    gather_logprobs,
    noise_key,
    not_finite_error,
)
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, StepOutput
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.engine.step_memory import PROMPT_LOGPROB_ROWS
from octavo.engine.token_masks import TokenMasks


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
        self._launching = executor if isinstance(executor, LaunchingExecutor) else None
        self._device_executor = executor if isinstance(executor, DeviceExecutor) else None
        # Where the step launched last chose each sequence's token.
        self._chosen: dict[int, int] = {}
        # Of a step that failed; its blocks are in use, whatever became of it.
        self._due_copies: tuple[tuple[int, int, int], ...] = ()
        self._batch = PersistentBatch(
            config.max_num_seqs,
            plan.max_model_len,
            plan.block_size,
            windows=[group.window for group in kv_groups(model_config, plan.max_model_len)],
        )
        self._sampler = Sampler(model_config.vocab_size, stop_token_ids)
        self._masks = TokenMasks(model_config.vocab_size, stop_token_ids)

    @device_errors()
    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepOutput:
        """Computes one step and samples where a sequence's tokens are all in the cache.

        Raises:
            EngineError: the model returned logits that are not finite.
            DeviceMemoryError, DeviceLostError: as `device_errors` says.
        """
        for sequence in (*batch.preempted, *batch.finished):
            self.release(sequence)
        self._copy_blocks(batch)
        if not batch.sequences:
            return StepOutput(tokens={})
        if self._device_executor is not None and _is_decode(batch):
            hidden = self._device_executor.decode(self._batch.prepare_decode(batch))
            return self._sample(hidden, [item.sequence for item in batch.sequences])
        inputs = self._batch.prepare(batch)
        hidden = self._executor.forward(inputs)
        prompt_logprobs = self._prompt_logprobs(inputs, hidden)
        sampling = [item.sequence for item in inputs.sequences if item.needs_sample]
        if not sampling:
            return StepOutput(tokens={}, prompt_logprobs=prompt_logprobs)
        rows = torch.from_numpy(inputs.logits_indices).to(hidden.device)
        return self._sample(hidden[rows], sampling, prompt_logprobs)

    @device_errors()
    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> "LaunchedSampling | None":
        """Begins a step whose tokens the executor chooses by itself; None: it cannot."""
        executor = self._launching
        if executor is None or not all(self.suits(item.sequence) for item in batch.sequences):
            return None
        if not any(item.needs_sample for item in batch.sequences):
            return None
        for sequence in (*batch.preempted, *batch.finished):
            self.release(sequence)
        self._copy_blocks(batch)
        return self._launch(executor, batch)

    def suits(self, sequence: TokenSequence) -> bool:
        """Whether a sequence's tokens can be chosen without the host."""
        return sequence.suits_device

    @device_errors()
    @torch.inference_mode()
    def launch_following(self, batch: ScheduledBatch) -> "LaunchedSampling":
        """Begins the step after the one launched last, whose tokens nobody knows yet."""
        assert self._launching is not None
        self._copy_blocks(batch)
        return self._launch(self._launching, batch)

    def _copy_blocks(self, batch: ScheduledBatch) -> None:
        self._due_copies += tuple(batch.block_copies)
        self._executor.copy_blocks(self._due_copies)
        self._due_copies = ()

    def _launch(self, executor: LaunchingExecutor, batch: ScheduledBatch) -> "LaunchedSampling":
        if self._device_executor is not None and _is_decode(batch):
            step = self._batch.prepare_decode(batch, self._chosen)
            hidden = self._device_executor.decode(step)
            return self._choose(executor, hidden, batch.sequences)
        inputs = self._batch.prepare(batch, self._chosen)
        sampling = [item for item in inputs.sequences if item.needs_sample]
        return self._choose(executor, executor.forward_sampled(inputs), sampling)

    def _choose(
        self,
        executor: LaunchingExecutor,
        hidden: torch.Tensor,
        sampling: Sequence[ScheduledSequence],
    ) -> "LaunchedSampling":
        # A step of nothing but the beginnings of prompts chooses none.
        chosen = executor.choose(hidden, self._draws(sampling)) if sampling else None
        sequence_ids = [item.sequence.sequence_id for item in sampling]
        self._chosen = {sequence_id: index for index, sequence_id in enumerate(sequence_ids)}
        return LaunchedSampling(sequence_ids, chosen)

    def _draws(self, sampling: Sequence[ScheduledSequence]) -> Draws:
        params = [item.sequence.sampling_params for item in sampling]
        positions = [item.start + item.num_tokens for item in sampling]
        keys = [
            0 if one.is_greedy else noise_key(item.sequence.seed, position)
            for item, one, position in zip(sampling, params, positions, strict=True)
        ]
        truncates = any(one.truncates and not one.is_greedy for one in params)
        new_masks: dict[int, npt.NDArray[np.int32]] = {}
        masks = [
            self._masks.number(item.sequence, position - item.sequence.num_prompt_tokens, new_masks)
            for item, position in zip(sampling, positions, strict=True)
        ]
        return Draws(
            temperatures=[draw_temperature(one) for one in params],
            keys=keys,
            top_ks=[max(one.top_k, 0) for one in params] if truncates else (),
            top_ps=[one.top_p for one in params] if truncates else (),
            min_ps=[one.min_p for one in params] if truncates else (),
            masks=masks if any(masks) else (),
            new_masks=new_masks,
        )

    def _sample(
        self,
        hidden: torch.Tensor,
        sampling: Sequence[TokenSequence],
        prompt_logprobs: dict[int, list[TokenLogprob]] | None = None,
    ) -> StepOutput:
        """Chooses a token for each row of hidden states, with the host's part in it."""
        logits = self._executor.compute_logits(hidden)
        sampled = self._sampler.sample(logits, sampling)
        return StepOutput(
            tokens={
                sequence.sequence_id: token_id
                for sequence, token_id in zip(sampling, sampled.token_ids, strict=True)
            },
            logprobs={
                sampling[row].sequence_id: logprob for row, logprob in sampled.logprobs.items()
            },
            prompt_logprobs=prompt_logprobs or {},
        )

    def release(self, sequence: TokenSequence) -> None:
        """Frees the row of a sequence that finished or was preempted; harmless if it has none."""
        self._batch.remove(sequence)

    def recover(self, sequences: Iterable[TokenSequence]) -> None:
        """After a step that failed: its rows are written anew, and free memory is given back."""
        for sequence in sequences:
            self._batch.remove(sequence)
        self._chosen = {}
        free_device_memory()

    def close(self) -> None:
        """Gives back the memory of weights, cache and graphs; no step may follow."""
        del self._executor, self._launching, self._device_executor
        free_device_memory(with_workspaces=True)

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


class LaunchedSampling:
    """A step whose tokens are being chosen."""

    def __init__(self, sequence_ids: list[int], chosen: SampledLater | None) -> None:
        self._sequence_ids = sequence_ids
        self._chosen = chosen

    def result(self) -> StepOutput:
        """Waits for the tokens.

        Raises:
            EngineError: the model returned logits that are not finite.
            DeviceLostError: the device failed meanwhile.
        """
        if self._chosen is None:
            return StepOutput(tokens={})
        with device_errors():
            token_ids = self._chosen.token_ids()
        if min(token_ids) < 0:
            raise not_finite_error()
        return StepOutput(tokens=dict(zip(self._sequence_ids, token_ids, strict=True)))


def _is_decode(batch: ScheduledBatch) -> bool:
    """Whether every sequence computes the one token that its next is sampled from."""
    return all(item.num_tokens == 1 and item.needs_sample for item in batch.sequences)

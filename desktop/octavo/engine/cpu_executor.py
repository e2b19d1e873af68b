"""`CPUExecutor`: the forward pass as programs of compiled kernels, on threads of our own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from octavo.engine.batch import StepInputs
from octavo.engine.config import EngineConfig
from octavo.engine.cpu_program import DecoderProgram
from octavo.engine.executor import Draws
from octavo.engine.kernels.cpu import attention, sampling, truncation
from octavo.engine.kernels.cpu.limits import BLOCK_SIZE
from octavo.engine.kernels.cpu.program import paged_buffer
from octavo.engine.kernels.cpu.simd import TIER
from octavo.engine.kernels.cpu.step_arrays import StepArrays
from octavo.engine.kernels.cpu.worker_threads import WorkerThreads
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder
from octavo.engine.step_memory import PROMPT_LOGPROB_ROWS

_NO_ROWS = np.zeros(0, dtype=np.int64)


class CPUExecutor:
    """Runs a decoder's programs; keys and values lie in float16 as the kernels read them.

    A `LaunchingExecutor`: the other threads begin with a step at once, and the caller's joins them
    when it wants to know the tokens. So what Python does meanwhile costs no core its work.
    """

    name = "CPU kernels"

    def __init__(
        self,
        decoder: Decoder,
        config: ModelConfig,
        plan: MemoryPlan,
        engine_config: EngineConfig,
        *,
        num_threads: int,
    ) -> None:
        """Allocates the KV cache and packs the weights.

        Args:
            decoder: loaded; its matrices are taken over.
            config: the model's numbers.
            plan: says how large the cache is.
            engine_config: says how much one step may hold.
            num_threads: that compute, the caller's among them.
        """
        assert plan.block_size == BLOCK_SIZE
        groups = kv_groups(config, plan.max_model_len)
        self._pages = []
        for group, num_blocks in zip(groups, plan.num_group_blocks, strict=True):
            shape = (len(group.layers), 2, num_blocks, config.num_kv_heads)
            size = BLOCK_SIZE * config.head_dim
            num_bytes = 2 * len(group.layers) * 2 * num_blocks * config.num_kv_heads * size
            self._pages.append(paged_buffer(num_bytes).view(torch.float16).view(*shape, size))
        max_rows = max(
            PROMPT_LOGPROB_ROWS,
            min(engine_config.max_num_seqs, plan.max_num_batched_tokens),
        )
        self._program = DecoderProgram(
            decoder,
            config,
            groups,
            self._pages,
            max_tokens=plan.max_num_batched_tokens,
            max_rows=max_rows,
            num_threads=num_threads,
        )
        rounding = "; prompts attend in 16 bits" if self._program.rounds_prompts else ""
        self.reason = f"The processor has {TIER}; {num_threads} threads compute{rounding}."
        scratch_bytes = max(
            attention.SCRATCH_BYTES,
            sampling.SCRATCH_BYTES,
            truncation.scratch_bytes(config.vocab_size),
            4 * config.hidden_size,
        )
        self._threads = WorkerThreads(num_threads, scratch_bytes)
        # One for the step that runs, one for the step that is begun meanwhile.
        self._step, self._other_step = (
            StepArrays(
                len(groups),
                config.num_heads // config.num_kv_heads,
                max_rows,
                max_split_tiles=self._program.max_split_tiles,
            )
            for _ in range(2)
        )
        self._masks: dict[int, npt.NDArray[np.int32]] = {}

    @property
    def kv_cache_bytes(self) -> int:
        return sum(pages.nbytes for pages in self._pages)

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        if copies:
            # What runs may still write to them.
            self._threads.finish_all()
        for group, source, destination in copies:
            assert destination != 0
            self._pages[group][:, :, destination] = self._pages[group][:, :, source]

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        self._start(inputs, taken=_NO_ROWS)
        self._threads.finish_all()
        return self._program.hidden[: len(inputs.token_ids)]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        num_rows = len(hidden)
        self._threads.finish_all()
        self._program.rows[:num_rows] = hidden
        self._step.want_rows(num_rows)
        self._program.logits_of_rows.run(self._threads, self._step.address)
        return self._program.logits[:num_rows]

    def forward_sampled(self, inputs: StepInputs) -> torch.Tensor:
        self._start(inputs, taken=inputs.logits_indices)
        return self._program.rows[: len(inputs.logits_indices)]

    def choose(self, hidden: torch.Tensor, draws: Draws) -> "ChosenTokens":
        step = self._step
        # Those of steps before are other arrays: what runs still reads them.
        self._masks.update(draws.new_masks)
        step.want_tokens(
            draws.temperatures,
            draws.keys,
            list(zip(draws.top_ks, draws.top_ps, draws.min_ps, strict=True)),
            [self._masks[number] if number else None for number in draws.masks],
        )
        step.last_program = self._program.logits_of_rows.start(self._threads, step.address, step)
        return ChosenTokens(self._threads, step, len(hidden))

    def _start(self, inputs: StepInputs, *, taken: npt.NDArray[Any]) -> None:
        """Lets the threads begin with the layers of a step."""
        before, step = self._step, self._other_step
        self._threads.finish(step.last_program)
        step.fill(
            inputs.token_ids,
            inputs.positions,
            inputs.cu_seqlens_q,
            # The last token of a prompt is computed as the others are.
            sum(not item.is_prompt for item in inputs.sequences[: inputs.num_decode]),
            [(group.slot_mapping, group.block_tables) for group in inputs.groups],
            taken=taken,
            chosen_before=before.chosen,
        )
        step.last_program = self._program.layers.start(self._threads, step.address, step)
        self._step, self._other_step = step, before


class ChosenTokens:
    """The tokens that a step chooses."""

    def __init__(self, threads: WorkerThreads, step: StepArrays, num_rows: int) -> None:
        self._threads = threads
        self._step = step
        self._num_rows = num_rows
        self._program = step.last_program

    def token_ids(self) -> list[int]:
        """Works on them with the other threads until they are there."""
        self._threads.finish(self._program)
        token_ids: list[int] = self._step.chosen[: self._num_rows].tolist()
        return token_ids

"""`CPUExecutor`: the forward pass as programs of compiled kernels, on threads of our own."""

from collections.abc import Sequence

import torch

from octavo.engine.batch import StepInputs
from octavo.engine.config import EngineConfig
from octavo.engine.cpu_program import DecoderProgram
from octavo.engine.kernels.cpu import attention
from octavo.engine.kernels.cpu.limits import BLOCK_SIZE
from octavo.engine.kernels.cpu.program import byte_buffer
from octavo.engine.kernels.cpu.simd import TIER
from octavo.engine.kernels.cpu.step_arrays import StepArrays
from octavo.engine.kernels.cpu.worker_threads import WorkerThreads
from octavo.engine.kv_groups import kv_groups
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder
from octavo.engine.step_memory import PROMPT_LOGPROB_ROWS


class CPUExecutor:
    """Runs a decoder's programs; keys and values lie in float16 as the kernels read them."""

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
        self.reason = f"The processor has {TIER}; {num_threads} threads compute."
        self._embed = decoder.model.embed_tokens
        groups = kv_groups(config, plan.max_model_len)
        self._pages = []
        for group, num_blocks in zip(groups, plan.num_group_blocks, strict=True):
            shape = (len(group.layers), 2, num_blocks, config.num_kv_heads)
            size = BLOCK_SIZE * config.head_dim
            num_bytes = 2 * len(group.layers) * 2 * num_blocks * config.num_kv_heads * size
            self._pages.append(byte_buffer(num_bytes).view(torch.float16).view(*shape, size))
        self._program = DecoderProgram(
            decoder,
            config,
            groups,
            self._pages,
            max_tokens=plan.max_num_batched_tokens,
            max_rows=max(
                PROMPT_LOGPROB_ROWS,
                min(engine_config.max_num_seqs, plan.max_num_batched_tokens),
            ),
            num_threads=num_threads,
        )
        row_bytes = 4 * config.hidden_size
        self._threads = WorkerThreads(num_threads, max(attention.SCRATCH_BYTES, row_bytes))
        self._step = StepArrays(len(groups), config.num_heads // config.num_kv_heads)

    @property
    def kv_cache_bytes(self) -> int:
        return sum(pages.nbytes for pages in self._pages)

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        for group, source, destination in copies:
            assert destination != 0
            self._pages[group][:, :, destination] = self._pages[group][:, :, source]

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        num_tokens = len(inputs.token_ids)
        self._step.fill(
            inputs.token_ids,
            inputs.positions,
            inputs.cu_seqlens_q,
            inputs.num_decode,
            [(group.slot_mapping, group.block_tables) for group in inputs.groups],
        )
        self._program.residual[:num_tokens] = self._embed(torch.from_numpy(inputs.token_ids))
        self._program.layers.run(self._threads, self._step.address)
        return self._program.hidden[:num_tokens]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        num_rows = len(hidden)
        self._program.rows[:num_rows] = hidden
        self._step.want_rows(num_rows)
        self._program.logits_of_rows.run(self._threads, self._step.address)
        return self._program.logits[:num_rows]

"""`CudaExecutor`: a decoder on an NVIDIA card, by Triton kernels and CUDA graphs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from octavo.engine.attention.base import AttentionMetadata, WindowTables
from octavo.engine.attention.triton_attention import TritonAttention
from octavo.engine.batch import DecodeStep, PersistentBatch, StepInputs
from octavo.engine.decode_graphs import ChosenTokens, DecodeGraphs
from octavo.engine.executor import Draws
from octavo.engine.kernels.triton.attention_tiling import load_tilings
from octavo.engine.kernels.triton.compile_ahead import compiling_only
from octavo.engine.kernels.triton.decode_attention import DecodeShape, padded_head_dim
from octavo.engine.kernels.triton.decode_inputs import rotate_positions
from octavo.engine.kernels.triton.heads import HeadRotation
from octavo.engine.kernels.triton.launch import overlaps_launches
from octavo.engine.kv_cache import KVCache
from octavo.engine.kv_groups import kv_groups, num_blocks_for
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import DTYPES, Decoder
from octavo.engine.models.fused_decoder import FusedDecoder
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.engine.staging import stage

_MANY_TOKENS = 128
"""Of a step: beyond where kernels begin to take several tokens at a time."""


class CudaExecutor:
    """Fused kernels for every step; steps of one token per sequence are graphs."""

    name = "Triton kernels"

    def __init__(
        self,
        model: Decoder,
        config: ModelConfig,
        plan: MemoryPlan,
        *,
        max_num_seqs: int,
        reason: str = "",
        tuning_table: Path | None = None,
        await_weights: Callable[[], object] = lambda: None,
    ) -> None:
        """Allocates the KV cache, compiles the kernels and captures the decode steps.

        Args:
            model: loaded, as `build_model` made it for the same plan.
            config: the model's numbers.
            plan: says device, data type and the size of the cache.
            max_num_seqs: the most sequences of a step.
            reason: why this executor was chosen.
            tuning_table: of this machine's own card; None: there is none.
            await_weights: returns when the model's weights have been read. Until then kernels are
                compiled, which asks only where the weights are.

        Raises:
            InsufficientMemoryError: the cache could not be allocated.
        """
        self.reason = reason
        self._model = model
        self._config = config
        self._device = torch.device(plan.device.torch_name)
        self._max_num_seqs = max_num_seqs
        self._dtype = DTYPES[plan.dtype]
        groups = kv_groups(config, plan.max_model_len)
        self._windows = tuple(group.window for group in groups)
        self._kv_cache = KVCache(
            groups,
            num_blocks=plan.num_group_blocks,
            block_size=plan.block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=plan.kv_dtype,
            device=self._device,
        )
        shape = DecodeShape(config.num_heads, config.num_kv_heads, config.head_dim, plan.block_size)
        overlap = overlaps_launches(self._device)
        self._attention = TritonAttention(
            shape,
            self._dtype,
            self._device,
            max_model_len=plan.max_model_len,
            overlap=overlap,
            tilings=load_tilings(plan.device.name, padded_head_dim(config.head_dim), tuning_table),
        )
        with torch.inference_mode():
            self._fused = FusedDecoder(model, config, overlap=overlap)
            self._graphs = DecodeGraphs(
                self._fused,
                config,
                self._kv_cache,
                self._attention,
                windows=self._windows,
                max_num_seqs=max_num_seqs,
                max_blocks=num_blocks_for(plan.max_model_len, plan.block_size),
                captures=self._device.type == "cuda" and self._fused.can_be_captured,
            )
        if self._device.type == "cuda" and self._fused.can_be_captured:
            with compiling_only(self._device), self._fused.one_layer_of_each_kind():
                self._warm_up(plan)
            self._warm_up(plan)
        await_weights()
        self._graphs.capture()

    @property
    def kv_cache_bytes(self) -> int:
        return self._kv_cache.num_bytes

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        self._kv_cache.copy_blocks(copies)

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        return self._forward(inputs, sampled_only=False)

    def forward_sampled(self, inputs: StepInputs) -> torch.Tensor:
        return self._forward(inputs, sampled_only=True)

    def _forward(self, inputs: StepInputs, *, sampled_only: bool) -> torch.Tensor:
        groups = [array for one in inputs.groups for array in (one.slot_mapping, one.block_tables)]
        token_ids, positions, cu_seqlens_q, context_lens, rows, *tables = stage(
            [
                inputs.token_ids,
                inputs.positions,
                inputs.cu_seqlens_q,
                inputs.context_lens,
                inputs.logits_indices,
                *groups,
            ],
            self._device,
        )
        (slot_mapping, block_tables), *others = zip(tables[::2], tables[1::2], strict=True)
        windows = (window for window in self._windows[1:] if window is not None)
        metadata = AttentionMetadata(
            slot_mapping=slot_mapping,
            block_tables=block_tables,
            context_lens=context_lens,
            cu_seqlens_q=cu_seqlens_q,
            num_decode=inputs.num_decode,
            block_size=self._attention.shape.block_size,
            query_lens=tuple(item.num_tokens for item in inputs.sequences),
            host_context_lens=tuple(item.start + item.num_tokens for item in inputs.sequences),
            window_tables={
                window: WindowTables(*pair) for window, pair in zip(windows, others, strict=True)
            },
        )
        if inputs.token_ids[: inputs.num_decode].min(initial=0) < 0:
            token_ids = self._graphs.resolve(token_ids)
        hidden = self._fused.embed(token_ids)
        return self._fused.run(
            hidden,
            self._rotations(positions),
            self._kv_cache.layers,
            self._attention.prepare(metadata),
            rows=rows if sampled_only and len(rows) < len(token_ids) else None,
        )

    def decode(self, step: DecodeStep) -> torch.Tensor:
        return self._graphs.run(step.packed, step.stale_rows, step.stale_tables)

    def choose(self, hidden: torch.Tensor, draws: Draws) -> ChosenTokens:
        return self._graphs.choose(hidden, draws)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.finish_logits(self._fused.project(hidden))

    @torch.inference_mode()
    def _warm_up(self, plan: MemoryPlan) -> None:
        """Computes padding in all ways, so that nothing is compiled in the middle of an answer."""
        self._graphs.warm_up()
        self._fused.warm_up_products(plan.max_num_batched_tokens)
        fresh, decode = (0, plan.block_size - 1), (plan.block_size - 1, 1)
        going_on = plan.block_size // 2, plan.block_size // 2
        # Prompts alone and together, then beside decodes: few tokens and many, contexts in parts or
        # whole.
        self._warm_up_prompts(plan, [fresh])
        self._warm_up_prompts(plan, [fresh, going_on])
        self._warm_up_prompts(plan, [decode] + [fresh] * (_MANY_TOKENS // plan.block_size))
        with self._fused.one_layer_of_each_kind():
            for num_decodes in self._attention.distinct_decodes(self._max_num_seqs - 1):
                self._warm_up_prompts(plan, [decode] * num_decodes + [fresh])
        self._warm_up_restricted_draws()

    def _warm_up_prompts(self, plan: MemoryPlan, items: Sequence[tuple[int, int]]) -> None:
        """Computes a step, on blocks that nobody has yet; or not, if there are too few.

        Args:
            plan: of the engine.
            items: tokens that are cached, and those to compute, of sequences of one block each.
        """
        items = [item for item in items if item[1]][: self._max_num_seqs]
        if min(plan.num_group_blocks) <= len(items):
            return
        batch = PersistentBatch(
            len(items), plan.max_model_len, plan.block_size, windows=self._windows
        )
        scheduled = []
        for index, (start, num_tokens) in enumerate(items):
            token_ids = (0,) * (start + num_tokens)
            sequence = TokenSequence(index, "", 0, token_ids, SamplingParams(), seed=0)
            sequence.block_tables = [[1 + index] for _ in self._windows]
            scheduled.append(ScheduledSequence(sequence, start, num_tokens))
        hidden = self.forward_sampled(batch.prepare(ScheduledBatch(tuple(scheduled))))
        nothing = [0] * len(items)
        self.choose(hidden, Draws([0.0] * len(items), nothing)).token_ids()

    def _warm_up_restricted_draws(self) -> None:
        """Chooses a token with top-k and its like, with a mask, and with both.

        At temperature 0 nothing is searched for: what the weights are not yet, logits are not.
        """
        size = 1, self._config.hidden_size
        hidden = torch.zeros(size, dtype=self._dtype, device=self._device)
        truncated = Draws([0.0], [0], top_ks=[0], top_ps=[1.0], min_ps=[0.0])
        for draws in (truncated, Draws([0.0], [0], masks=[0]), replace(truncated, masks=[0])):
            self.choose(hidden, draws).token_ids()

    def _rotations(self, positions: torch.Tensor) -> list[HeadRotation]:
        rotations = []
        for rule in self._fused.rotation_rules:
            shape = len(positions), len(rule.frequencies)
            rotation = HeadRotation(
                torch.empty(shape, dtype=torch.float32, device=self._device),
                torch.empty(shape, dtype=torch.float32, device=self._device),
            )
            rotate_positions(positions, rule, rotation, overlap=self._attention.overlap)
            rotations.append(rotation)
        return rotations

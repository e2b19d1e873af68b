"""`DecodeGraphs`: decode steps as CUDA graphs, one for each size of batch.

A step is two graphs: from the tokens to the last hidden states, and from these to the next tokens.
Where tokens are left out of the draw, the second's kernels are launched one by one, with those that
find out which; where the host has a part in sampling, it is left out.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any

import numpy as np
import torch

from octavo.engine.attention.base import AttentionMetadata, WindowTables
from octavo.engine.attention.triton_attention import TritonAttention, TritonAttentionStep
from octavo.engine.executor import Draws
from octavo.engine.kernels.triton.decode_inputs import DecodeInputs, begin_step
from octavo.engine.kernels.triton.heads import HeadRotation
from octavo.engine.kernels.triton.row_logits import MASK_BITS, LogitRows, TokenMasks
from octavo.engine.kernels.triton.sampling import choose_tokens
from octavo.engine.kernels.triton.truncation import Truncation
from octavo.engine.kv_cache import KVCache
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.fused_decoder import FusedDecoder
from octavo.engine.staging import stage
from octavo.engine.step_memory import decode_graph_sizes

logger = logging.getLogger(__name__)

_RING_SIZE = 4
"""Host buffers in turn: a step's copy may wait while the next step is prepared."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What the steps of one size run; as graphs, or kernel by kernel."""

    run_layers: Callable[[], None]
    run_head: Callable[[], None]
    captured: "_Step | None" = None
    """What graphs were made of. They write to its tensors, and do not keep them."""


class ChosenTokens:
    """Tokens on their way to the host."""

    def __init__(self, host: torch.Tensor, arrived: torch.cuda.Event | None) -> None:
        self._host = host
        self._arrived = arrived

    def token_ids(self) -> list[int]:
        """Waits for them; below 0 where a row's logits are not finite."""
        if self._arrived is not None:
            self._arrived.synchronize()
        token_ids: list[int] = self._host.tolist()
        return token_ids


class DecodeGraphs:
    """Buffers of decode steps, and the graphs that read and write them."""

    def __init__(
        self,
        fused: FusedDecoder,
        config: ModelConfig,
        kv_cache: KVCache,
        attention: TritonAttention,
        *,
        windows: Sequence[int | None],
        max_num_seqs: int,
        max_blocks: int,
        captures: bool,
    ) -> None:
        """Allocates the buffers; `warm_up` and `capture` make the graphs.

        Args:
            fused: the model's layers.
            config: its numbers.
            kv_cache: of this model's shape.
            attention: the backend.
            windows: of each KV group.
            max_num_seqs: the most rows of a step.
            max_blocks: of a sequence.
            captures: whether steps can be captured; otherwise their kernels are launched each time.
        """
        self._fused = fused
        self._config = config
        self._kv_cache = kv_cache
        self._attention = attention
        self._windows = tuple(windows)
        self._device = device = attention.device
        num_groups = len(self._windows)
        rotary_halves = [len(rule.frequencies) for rule in fused.rotation_rules]

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # In the order of the rows of a step; a smaller step uses the beginning of each.
        self._packed = zeros((3 + num_groups) * max_num_seqs, dtype=torch.int32)
        self._token_ids = zeros(max_num_seqs, dtype=torch.int64)
        self._table_rows = zeros(max_num_seqs, dtype=torch.int32)
        self._context_lens = zeros(max_num_seqs, dtype=torch.int32)
        self._slots = zeros(num_groups * max_num_seqs, dtype=torch.int64)
        self._hidden = zeros(max_num_seqs, config.hidden_size, dtype=attention.dtype)
        self._normed = zeros(max_num_seqs, config.hidden_size, dtype=attention.dtype)
        self._cosines = [zeros(max_num_seqs, half, dtype=torch.float32) for half in rotary_halves]
        self._sines = [zeros(max_num_seqs, half, dtype=torch.float32) for half in rotary_halves]
        self._temperatures = zeros(max_num_seqs, dtype=torch.float32)
        self._keys = zeros(max_num_seqs, dtype=torch.int64)
        self._sampled = zeros(max_num_seqs, dtype=torch.int32)
        # By the rows of `PersistentBatch`.
        self._tables = zeros(num_groups, max_num_seqs, max_blocks, dtype=torch.int32)
        self._is_greedy = True
        # Of `Draws`, a row each. The first lets every token come.
        num_words = -(-config.vocab_size // MASK_BITS)
        shape = 1 + max_num_seqs, num_words
        self._mask_words = torch.full(shape, -1, dtype=torch.int32, device=device)
        is_cuda = device.type == "cuda"
        self._host_packed = [
            torch.zeros(len(self._packed), dtype=torch.int32, pin_memory=is_cuda)
            for _ in range(_RING_SIZE)
        ]
        self._host_sampled = [
            torch.zeros(max_num_seqs, dtype=torch.int32, pin_memory=is_cuda)
            for _ in range(_RING_SIZE)
        ]
        self._turn = self._sampled_turn = 0
        self._sizes = decode_graph_sizes(max_num_seqs)
        # The largest first: the smaller ones find room in its memory.
        self._steps = {size: self._make_step(size) for size in reversed(self._sizes)}
        # One for all captures: torch's matrix library keeps a workspace for each stream.
        self._capture_stream = torch.cuda.Stream(device) if captures else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Runs every step once, so that kernels are compiled and libraries have their memory.

        The weights may still be on their way: it is padding that is computed.
        """
        stream = self._capture_stream
        if stream is None:
            return
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for size, step in self._steps.items():
                self._pad(size)
                step.run_layers()
                step.run_head()
        torch.cuda.current_stream(self._device).wait_stream(stream)

    @torch.inference_mode()
    def capture(self) -> None:
        """Makes graphs of all steps, after `warm_up`; nobody else may use the device meanwhile."""
        if self._capture_stream is None:
            return
        started_at = time.perf_counter()
        pool = torch.cuda.graph_pool_handle()
        for size, step in self._steps.items():
            self._pad(size)
            self._steps[size] = _Step(
                self._capture(step.run_layers, pool),
                self._capture(step.run_head, pool),
                captured=step,
            )
        torch.cuda.synchronize(self._device)
        logger.info(
            "Captured decode steps of %d sizes in %.2f s",
            len(self._sizes),
            time.perf_counter() - started_at,
        )

    def _pad(self, size: int) -> None:
        """Makes every row padding: nothing is written to the cache."""
        self._packed.zero_()
        self._packed[2 * size : 3 * size] = -1

    @torch.inference_mode()
    def run(
        self, packed: np.ndarray, stale_rows: np.ndarray, stale_tables: np.ndarray
    ) -> torch.Tensor:
        """Runs the layers over one step.

        Args:
            packed: as in `DecodeStep`, like the other two.
            stale_rows: .
            stale_tables: .

        Returns:
            [num_seqs, hidden_size]: hidden states after the last norm; valid until the next call.
        """
        num_rows, num_seqs = packed.shape
        size = self._size_for(num_seqs)
        if len(stale_rows):
            self._upload_tables(stale_rows, stale_tables)
        host = self._host_packed[self._turn][: num_rows * size]
        self._turn = (self._turn + 1) % _RING_SIZE
        columns = host.view(num_rows, size).numpy()
        columns[:, :num_seqs] = packed
        columns[:, num_seqs:] = 0
        columns[2, num_seqs:] = -1
        self._packed[: len(host)].copy_(host, non_blocking=True)
        self._steps[size].run_layers()
        return self._normed[:num_seqs]

    def resolve(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Puts the tokens that were chosen last in the place of those below 0; see `StepInputs`."""
        chosen = self._sampled[(-1 - token_ids).clamp_(min=0)].clamp_(min=0)
        return torch.where(token_ids < 0, chosen.long(), token_ids)

    @torch.inference_mode()
    def choose(self, hidden: torch.Tensor, draws: Draws) -> ChosenTokens:
        """As `DeviceExecutor.choose`."""
        num_rows = len(hidden)
        self._set_sampling(draws.temperatures, draws.keys)
        if draws.top_ks or draws.masks:
            self._choose(hidden, num_rows, draws)
        elif hidden.data_ptr() == self._normed.data_ptr():
            self._steps[self._size_for(num_rows)].run_head()
        else:
            self._choose(hidden, num_rows)
        # The step before may not have been read yet.
        self._sampled_turn = (self._sampled_turn + 1) % _RING_SIZE
        host = self._host_sampled[self._sampled_turn][:num_rows]
        host.copy_(self._sampled[:num_rows], non_blocking=True)
        if self._device.type != "cuda":
            return ChosenTokens(host, None)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return ChosenTokens(host, arrived)

    def _size_for(self, num_seqs: int) -> int:
        return next(size for size in self._sizes if size >= num_seqs)

    def _upload_tables(self, rows: np.ndarray, tables: np.ndarray) -> None:
        device_rows, device_tables = stage([rows, tables], self._device)
        self._tables[:, :, : tables.shape[2]].index_copy_(1, device_rows, device_tables)

    def _set_sampling(self, temperatures: Sequence[float], keys: Sequence[int]) -> None:
        is_greedy = not any(temperatures)
        if is_greedy and self._is_greedy:
            return
        self._is_greedy = is_greedy
        if is_greedy:
            self._temperatures.zero_()
            return
        signed = np.array(keys, dtype=np.uint64).view(np.int64)
        staged = stage([np.array(temperatures, dtype=np.float32), signed], self._device)
        self._temperatures[: len(temperatures)].copy_(staged[0])
        self._keys[: len(keys)].copy_(staged[1])

    def _choose(self, hidden: torch.Tensor, num_rows: int, draws: Draws | None = None) -> None:
        truncation = masks = None
        if draws is not None:
            truncation, masks = self._restrictions(draws)
        rows = LogitRows(
            self._fused.project(hidden),
            self._config.logits_scale,
            self._config.final_softcap or 0.0,
            masks,
        )
        choose_tokens(
            rows,
            self._temperatures[:num_rows],
            self._keys[:num_rows],
            self._sampled[:num_rows],
            truncation=truncation,
            overlap=self._attention.overlap,
        )

    def _restrictions(self, draws: Draws) -> tuple[Truncation | None, TokenMasks | None]:
        """What of the vocabulary each row leaves out, on the device."""
        top_ks, top_ps, min_ps, mask_rows = stage(
            [
                np.array(draws.top_ks, dtype=np.int32),
                np.array(draws.top_ps, dtype=np.float32),
                np.array([log(one) if one else -inf for one in draws.min_ps], dtype=np.float32),
                np.array(draws.masks, dtype=np.int32),
            ],
            self._device,
        )
        truncation = Truncation(top_ks, top_ps, min_ps) if draws.top_ks else None
        if not draws.masks:
            return truncation, None
        if draws.new_masks:
            numbers = np.array(list(draws.new_masks), dtype=np.int64)
            places, words = stage([numbers, np.stack(list(draws.new_masks.values()))], self._device)
            self._mask_words.index_copy_(0, places, words)
        return truncation, TokenMasks(self._mask_words, mask_rows)

    def _make_step(self, size: int) -> _Step:
        num_groups = len(self._windows)
        inputs = DecodeInputs(
            packed=self._packed[: (3 + num_groups) * size].view(3 + num_groups, size),
            sampled=self._sampled,
            table_rows=self._table_rows[:size],
            context_lens=self._context_lens[:size],
            slots=self._slots[: num_groups * size].view(num_groups, size),
            rotations=tuple(
                HeadRotation(cosines[:size], sines[:size])
                for cosines, sines in zip(self._cosines, self._sines, strict=True)
            ),
            hidden=self._hidden[:size],
            token_ids=self._token_ids[:size],
        )
        step = self._attention_step(inputs, size)
        embedding = self._fused.embedding

        def run_layers() -> None:
            begin_step(
                inputs,
                embedding.dense,
                self._tables,
                self._fused.rotation_rules,
                block_size=self._attention.shape.block_size,
                embedding_scale=embedding.scale,
                overlap=self._attention.overlap,
            )
            if embedding.dense is None:
                embedding.look_up(inputs.token_ids, inputs.hidden)
            self._fused.run(
                inputs.hidden,
                inputs.rotations,
                self._kv_cache.layers,
                step,
                output=self._normed[:size],
            )

        def run_head() -> None:
            self._choose(self._normed[:size], size)

        return _Step(run_layers, run_head)

    def _attention_step(self, inputs: DecodeInputs, size: int) -> TritonAttentionStep:
        others = (window for window in self._windows[1:] if window is not None)
        metadata = AttentionMetadata(
            slot_mapping=inputs.slots[0],
            block_tables=self._tables[0],
            context_lens=inputs.context_lens,
            cu_seqlens_q=inputs.context_lens,  # A decode reads the other lengths alone.
            num_decode=size,
            block_size=self._attention.shape.block_size,
            query_lens=(1,) * size,
            host_context_lens=(),
            window_tables={
                window: WindowTables(inputs.slots[group], self._tables[group])
                for group, window in enumerate(others, start=1)
            },
        )
        return self._attention.prepare_decode(
            metadata, inputs.table_rows, self._attention.make_scratch(size)
        )

    def _capture(self, run: Callable[[], None], pool: Any) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._capture_stream):
            run()
        return graph.replay

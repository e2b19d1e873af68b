"""Paged attention by our own Triton kernels, and by torch's flash attention for fresh prompts.

Decodes read the blocks of the cache where they lie. So do prompts that go on from cached tokens; a
prompt that begins at its first token has all its keys in the step itself, and torch's kernels,
which know nothing of blocks, are faster there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from octavo.engine.attention.base import (
    AttentionMetadata,
    AttentionRule,
    LayerCache,
    WindowTables,
)
from octavo.engine.attention.kv_types import store_heads
from octavo.engine.kernels.triton.attention_tiling import AttentionTilings
from octavo.engine.kernels.triton.decode_attention import (
    DecodeShape,
    SplitScratch,
    decode_attention,
    num_splits,
)
from octavo.engine.kernels.triton.heads import (
    SAME,
    HeadNorms,
    HeadRotation,
    storage_kind,
    write_heads,
)
from octavo.engine.kernels.triton.prefill_attention import (
    plan_tiles,
    prefill_attention,
    tokens_per_tile,
)
from octavo.engine.staging import stage

_CUDNN_STEP_TOKENS = 4096
"""A prompt whose length is a multiple of this, as the first part of one that is longer than a step,
gets a call of its own: cuDNN's kernel is 1.7 times as fast as the one for packs of prompts, but
prepares itself for half a second for each new length."""
_TORCH_HEAD_STEP = 8
"""Heads of other sizes torch's kernels do not take."""
_CPU_PROCESSORS = 8
"""For Triton's interpreter, which has no multiprocessors to count."""


@dataclass(frozen=True, slots=True)
class _FreshRun:
    """Neighbouring sequences whose whole context is computed in this step."""

    rows: slice
    lens: tuple[int, ...]
    cu_seqlens: torch.Tensor
    """[num_seqs + 1], int32."""


@dataclass(frozen=True, slots=True)
class _Prefill:
    """The prompts of one step."""

    fresh: tuple[_FreshRun, ...]
    tiles: torch.Tensor
    """[2, num_tiles], int32: of the sequences that are not fresh."""
    all_tiles: torch.Tensor
    """As `tiles`, of all: for layers that torch's kernels cannot do."""
    table_rows: slice
    cu_seqlens_q: torch.Tensor
    context_lens: torch.Tensor


class TritonAttention:
    """The backend for NVIDIA cards from compute capability 8.0 on."""

    name = "triton"

    def __init__(
        self,
        shape: DecodeShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_model_len: int,
        overlap: bool = False,
        tilings: AttentionTilings | None = None,
    ) -> None:
        """Args:
        shape: the model's.
        dtype: of queries.
        device: where all lies.
        max_model_len: the longest context.
        overlap: whether kernels may overlap with those before them.
        tilings: of the card, for the decodes; None: the default.
        """
        self._tilings = tilings or AttentionTilings()
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.overlap = overlap
        self._max_model_len = max_model_len
        self._num_processors = _CPU_PROCESSORS
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self._num_processors = properties.multi_processor_count

    def prepare(self, metadata: AttentionMetadata) -> "TritonAttentionStep":
        rows = torch.arange(metadata.num_decode, dtype=torch.int32, device=self.device)
        return TritonAttentionStep(
            self, metadata, rows, self.make_scratch(metadata.num_decode), self._prefill(metadata)
        )

    def prepare_decode(
        self, metadata: AttentionMetadata, table_rows: torch.Tensor, scratch: SplitScratch
    ) -> "TritonAttentionStep":
        """As `prepare`, for one token per sequence and from buffers alone: it can be captured.

        Args:
            metadata: its block tables may hold more rows than the step has sequences.
            table_rows: [num_seqs], int32: each sequence's row in the block tables.
            scratch: made for so many sequences.
        """
        return TritonAttentionStep(self, metadata, table_rows, scratch, None)

    def make_scratch(self, num_seqs: int) -> SplitScratch:
        """Room for the parts of a decode step."""
        tiling = self._tilings.find(num_seqs)
        splits = num_splits(
            num_seqs,
            self.shape.num_kv_heads,
            self._max_model_len,
            tiling.programs * self._num_processors,
        )
        return SplitScratch(num_seqs, self.shape, splits, self.device, tiling)

    def _prefill(self, metadata: AttentionMetadata) -> _Prefill | None:
        num_decode = metadata.num_decode
        lens = metadata.query_lens[num_decode:]
        if not lens:
            return None
        is_fresh = [
            length == context
            for length, context in zip(lens, metadata.host_context_lens[num_decode:], strict=True)
        ]
        tokens_each = tokens_per_tile(self.shape, self.dtype)
        all_tiles = plan_tiles(lens, tokens_each)
        cached = np.array([not fresh for fresh in is_fresh])[all_tiles[0]]
        runs = _fresh_runs(lens, is_fresh)
        ends = [np.cumsum([0, *lens[first:last]], dtype=np.int32) for first, last in runs]
        all_tiles_, tiles, *run_ends = stage(
            [all_tiles, np.ascontiguousarray(all_tiles[:, cached]), *ends], self.device
        )
        starts = np.cumsum([num_decode, *lens]).tolist()
        return _Prefill(
            fresh=tuple(
                _FreshRun(slice(starts[first], starts[last]), tuple(lens[first:last]), cu_seqlens)
                for (first, last), cu_seqlens in zip(runs, run_ends, strict=True)
            ),
            tiles=tiles,
            all_tiles=all_tiles_,
            table_rows=slice(num_decode, num_decode + len(lens)),
            cu_seqlens_q=metadata.cu_seqlens_q[num_decode:],
            context_lens=metadata.context_lens[num_decode:],
        )


def _fresh_runs(lens: tuple[int, ...], is_fresh: list[bool]) -> list[tuple[int, int]]:
    """Stretches of fresh sequences, (first, last + 1); those for cuDNN stand alone."""
    runs: list[tuple[int, int]] = []
    for index, fresh in enumerate(is_fresh):
        if not fresh:
            continue
        joins = (
            runs
            and runs[-1][1] == index
            and lens[index] % _CUDNN_STEP_TOKENS
            and lens[index - 1] % _CUDNN_STEP_TOKENS
        )
        if joins:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


class TritonAttentionStep:
    """One step's tokens, for all layers."""

    def __init__(
        self,
        backend: TritonAttention,
        metadata: AttentionMetadata,
        table_rows: torch.Tensor,
        scratch: SplitScratch,
        prefill: _Prefill | None,
    ) -> None:
        self._backend = backend
        self._metadata = metadata
        self._table_rows = table_rows
        self._scratch = scratch
        self._prefill = prefill

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        tables = self._tables(rule.window)
        store_heads(cache.keys, cache.key_scales, tables.slot_mapping, key)
        store_heads(cache.values, cache.value_scales, tables.slot_mapping, value)
        return self._attend_written(query, key, value, cache, rule, sinks)

    def attend_projected(
        self,
        projected: torch.Tensor,
        cache: LayerCache,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        *,
        rotation: HeadRotation | None,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """As `attend`, from what the projections gave; norms, rotation and write are fused.

        Args:
            projected: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]; is overwritten.
            cache: as in `attend`, like the next two.
            rule: .
            sinks: .
            rotation: of the step's tokens; None: nothing turns.
            norms: of queries and keys; None: there are none.
        """
        shape, overlap = self._backend.shape, self._backend.overlap
        tables = self._tables(rule.window)
        if self._prefill is None and storage_kind(cache, projected.dtype) == SAME:
            attended = decode_attention(
                projected,
                cache,
                tables.block_tables,
                self._table_rows,
                self._metadata.context_lens,
                rule,
                shape,
                self._scratch,
                sinks=sinks,
                rotation=rotation,
                norms=norms,
                is_projected=True,
                overlap=overlap,
            )
            return attended.view(len(projected), shape.num_heads, shape.head_dim)
        write_heads(
            projected,
            cache,
            tables.slot_mapping,
            num_heads=shape.num_heads,
            rotation=rotation,
            norms=norms,
            overlap=overlap,
        )
        query, key, value = projected.split_with_sizes(
            [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], 1
        )
        return self._attend_written(query, key, value, cache, rule, sinks)

    def _tables(self, window: int | None) -> WindowTables:
        metadata = self._metadata
        if window is not None and window in metadata.window_tables:
            return metadata.window_tables[window]
        return WindowTables(metadata.slot_mapping, metadata.block_tables)

    def _attend_written(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        rule: AttentionRule,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attends once this step's keys and values are in the cache."""
        prefill = self._prefill
        num_decode = self._metadata.num_decode
        by_torch = (
            prefill is not None
            and rule.softcap is None
            and sinks is None
            and storage_kind(cache, query.dtype) == SAME
            and query.dtype is not torch.float32
            and query.is_cuda
            and query.shape[-1] % _TORCH_HEAD_STEP == 0
        )
        if prefill is not None and by_torch and num_decode == 0 and len(prefill.fresh) == 1:
            run = prefill.fresh[0]
            if run.rows.stop - run.rows.start == len(query):
                return self._attend_fresh(query, key, value, run, rule)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        tables = self._tables(rule.window).block_tables
        if num_decode:
            decode_attention(
                query[:num_decode],
                cache,
                tables,
                self._table_rows,
                self._metadata.context_lens,
                rule,
                self._backend.shape,
                self._scratch,
                sinks=sinks,
                output=output[:num_decode],
                overlap=self._backend.overlap,
            )
        if prefill is None:
            return output
        if by_torch:
            for run in prefill.fresh:
                rows = run.rows
                output[rows] = self._attend_fresh(query[rows], key[rows], value[rows], run, rule)
        tiles = prefill.tiles if by_torch else prefill.all_tiles
        if tiles.shape[1]:
            prefill_attention(
                query,
                cache,
                tiles,
                tables[prefill.table_rows],
                prefill.cu_seqlens_q,
                prefill.context_lens,
                rule,
                self._backend.shape,
                output,
                sinks=sinks,
            )
        return output

    def _attend_fresh(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        run: _FreshRun,
        rule: AttentionRule,
    ) -> torch.Tensor:
        """Causal attention of whole sequences to themselves, by torch's kernels."""
        longest = max(run.lens)
        sees_all = rule.window is None or longest <= rule.window
        if len(run.lens) == 1 and longest % _CUDNN_STEP_TOKENS == 0 and sees_all:
            attended = functional.scaled_dot_product_attention(
                query.transpose(0, 1).unsqueeze(0),
                key.transpose(0, 1).unsqueeze(0),
                value.transpose(0, 1).unsqueeze(0),
                is_causal=True,
                scale=rule.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            return attended.squeeze(0).transpose(0, 1)
        left = -1 if rule.window is None else rule.window - 1
        # The operation beneath `varlen_attn`, whose module takes seconds to be imported.
        packed: torch.Tensor = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            run.cu_seqlens,
            run.cu_seqlens,
            longest,
            longest,
            0.0,
            is_causal=rule.window is None,
            return_debug_mask=False,
            scale=rule.scale,
            window_size_left=left,
            window_size_right=0,
        )[0]
        return packed

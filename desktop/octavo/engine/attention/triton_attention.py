"""Paged attention by our own Triton kernels, and by cuDNN for long fresh prompts.

Decodes and prompts read the blocks of the cache where they lie. A prompt that begins at its first
token has all its keys in the step itself, and cuDNN, which knows nothing of blocks, is faster there
where it is worth its preparation.
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
from octavo.engine.kernels.triton.attention_tiling import AttentionTiling, AttentionTilings
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
"""A fresh prompt whose length is a multiple of this, as the first part of one that is longer than a
step: cuDNN's kernel is 1.4 times as fast as ours, but prepares itself for half a second for each
new length."""
_CUDNN_HEAD_STEP = 8
"""Heads of other sizes it does not take."""
_CPU_PROCESSORS = 8
"""For Triton's interpreter, which has no multiprocessors to count."""


@dataclass(frozen=True, slots=True)
class _Prefill:
    """The prompts of one step."""

    long: tuple[slice, ...]
    """The tokens of each prompt that is cuDNN's."""
    tiles: torch.Tensor
    """[2, num_tiles], int32: of the others."""
    all_tiles: torch.Tensor
    """As `tiles`, of all: for layers that cuDNN cannot do."""
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
        tiling, splits = self._launch(num_seqs)
        return SplitScratch(num_seqs, self.shape, splits, self.device, tiling)

    def distinct_decodes(self, most: int) -> list[int]:
        """Numbers of sequences, up to so many, that between them launch every kernel of decodes."""
        launches: dict[tuple[AttentionTiling, int], int] = {}
        for num_seqs in range(1, most + 1):
            launches.setdefault(self._launch(num_seqs), num_seqs)
        return list(launches.values())

    def _launch(self, num_seqs: int) -> tuple[AttentionTiling, int]:
        """The tiling of a decode step, and into how many stretches it cuts contexts."""
        tiling = self._tilings.find(num_seqs)
        num_programs = tiling.programs * self._num_processors
        num_heads = self.shape.num_kv_heads
        return tiling, num_splits(num_seqs, num_heads, self._max_model_len, num_programs)

    def _prefill(self, metadata: AttentionMetadata) -> _Prefill | None:
        num_decode = metadata.num_decode
        lens = metadata.query_lens[num_decode:]
        if not lens:
            return None
        contexts = metadata.host_context_lens[num_decode:]
        is_long = [
            length == context and length % _CUDNN_STEP_TOKENS == 0
            for length, context in zip(lens, contexts, strict=True)
        ]
        all_tiles = plan_tiles(lens, tokens_per_tile(self.shape, self.dtype, self.device))
        others = ~np.array(is_long)[all_tiles[0]]
        all_tiles_, tiles = stage(
            [all_tiles, np.ascontiguousarray(all_tiles[:, others])], self.device
        )
        starts = np.cumsum([num_decode, *lens]).tolist()
        return _Prefill(
            long=tuple(slice(*starts[i : i + 2]) for i, one in enumerate(is_long) if one),
            tiles=tiles,
            all_tiles=all_tiles_,
            table_rows=slice(num_decode, num_decode + len(lens)),
            cu_seqlens_q=metadata.cu_seqlens_q[num_decode:],
            context_lens=metadata.context_lens[num_decode:],
        )


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
        long = self._by_cudnn(query, cache, rule, sinks)
        if long and long[0] == slice(0, len(query)):
            return _attend_alone(query, key, value, rule)
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
        for rows in long:
            output[rows] = _attend_alone(query[rows], key[rows], value[rows], rule)
        tiles = prefill.tiles if long else prefill.all_tiles
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

    def _by_cudnn(
        self,
        query: torch.Tensor,
        cache: LayerCache,
        rule: AttentionRule,
        sinks: torch.Tensor | None,
    ) -> tuple[slice, ...]:
        """The prompts that it computes in a layer: all that are long, or none."""
        long = () if self._prefill is None else self._prefill.long
        longest = max((one.stop - one.start for one in long), default=0)
        can = (
            query.is_cuda
            and query.dtype is not torch.float32
            and query.shape[-1] % _CUDNN_HEAD_STEP == 0
            and storage_kind(cache, query.dtype) == SAME
            and rule.softcap is None
            and (rule.window is None or longest <= rule.window)
            and sinks is None
        )
        return long if can else ()


def _attend_alone(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: AttentionRule
) -> torch.Tensor:
    """Causal attention of a whole sequence to itself, by torch's kernels."""
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        key.transpose(0, 1).unsqueeze(0),
        value.transpose(0, 1).unsqueeze(0),
        is_causal=True,
        scale=rule.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.squeeze(0).transpose(0, 1)

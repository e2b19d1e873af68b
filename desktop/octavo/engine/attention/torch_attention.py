"""Paged attention in plain torch: gathers the cached tokens, then `scaled_dot_product_attention`.

Exact and readable; the truth that faster backends are compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from octavo.engine.attention.base import (
    AttentionMetadata,
    AttentionRule,
    LayerCache,
    WindowTables,
)
from octavo.engine.attention.kv_types import store_heads
from octavo.engine.step_memory import MAX_ATTENTION_SCORES, MAX_GATHERED_TOKENS


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Sequences with one query token each, attended in one padded call."""

    rows: slice | torch.Tensor
    """Which tokens of the step (and sequences: the two agree in the decode part)."""
    num_seqs: int
    slots: torch.Tensor
    """[num_seqs * most keys], int64; padding points at slot 0, in the null block."""
    mask: torch.Tensor | None
    """[num_seqs, 1, 1, most keys], added to the scores; None if there is no padding."""


@dataclass(frozen=True, slots=True)
class _PrefillChunk:
    """Consecutive query tokens of one sequence and the context they see."""

    rows: slice
    slots: torch.Tensor | None
    """[num_keys], int64; None if the context is exactly this chunk, so that nothing is cached."""
    mask: torch.Tensor | None
    """[num_queries, num_keys], added to the scores; None if all that is needed is causality."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Who attends to what in one step, for all layers with the same window."""

    slot_mapping: torch.Tensor
    groups: list[_DecodeGroup]
    chunks: list[_PrefillChunk]


class TorchAttention:
    """The backend of plain torch, for every device torch has."""

    name = "torch"

    def __init__(self, num_heads: int, num_kv_heads: int, dtype: torch.dtype) -> None:
        assert num_heads % num_kv_heads == 0
        self._num_heads = num_heads
        self._is_grouped = num_heads != num_kv_heads
        self._dtype = dtype

    def prepare(self, metadata: AttentionMetadata) -> "TorchAttentionStep":
        return TorchAttentionStep(
            metadata, self._dtype, num_heads=self._num_heads, is_grouped=self._is_grouped
        )


class TorchAttentionStep:
    """Indices and masks of one step, shared by all layers with the same window.

    What stands for "no token" is read from the null block, which holds zeros. Reading stale
    slots and masking only their scores would not do: a probability of 0 times a NaN is a NaN.
    """

    def __init__(
        self, metadata: AttentionMetadata, dtype: torch.dtype, *, num_heads: int, is_grouped: bool
    ) -> None:
        self._metadata = metadata
        self._dtype = dtype
        self._num_heads = num_heads
        self._is_grouped = is_grouped
        self._layouts: dict[int | None, _Layout] = {}

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        layout = self._layout(rule.window)
        keys = store_heads(cache.keys, cache.key_scales, layout.slot_mapping, key)
        values = store_heads(cache.values, cache.value_scales, layout.slot_mapping, value)
        output = torch.empty_like(query)
        for group in layout.groups:
            shape = (group.num_seqs, -1, *key.shape[1:])
            output[group.rows] = self._weigh(
                query[group.rows].unsqueeze(2),
                keys.read(group.slots).view(shape).transpose(1, 2),
                values.read(group.slots).view(shape).transpose(1, 2),
                group.mask,
                rule,
                sinks,
            ).squeeze(2)
        for chunk in layout.chunks:
            if chunk.slots is None:
                chunk_keys, chunk_values = keys.read_new(chunk.rows), values.read_new(chunk.rows)
            else:
                chunk_keys, chunk_values = keys.read(chunk.slots), values.read(chunk.slots)
            attended = self._weigh(
                query[chunk.rows].transpose(0, 1).unsqueeze(0),
                chunk_keys.transpose(0, 1).unsqueeze(0),
                chunk_values.transpose(0, 1).unsqueeze(0),
                chunk.mask,
                rule,
                sinks,
                is_causal=chunk.mask is None,
            )
            output[chunk.rows] = attended.squeeze(0).transpose(0, 1)
        return output

    def _layout(self, window: int | None) -> _Layout:
        layout = self._layouts.get(window)
        if layout is None:
            metadata = self._metadata
            tables = _tables(metadata, window)
            layout = self._layouts[window] = _Layout(
                tables.slot_mapping,
                _decode_groups(metadata, tables.block_tables, self._dtype, window),
                _prefill_chunks(
                    metadata, tables.block_tables, self._dtype, self._num_heads, window
                ),
            )
        return layout

    def _weigh(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        rule: AttentionRule,
        sinks: torch.Tensor | None,
        *,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Attention over what is given: [batch, heads, tokens, head_dim] each, and the mask."""
        if rule.softcap is None and sinks is None:
            return functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=is_causal,
                scale=rule.scale,
                enable_gqa=self._is_grouped,
            )
        if is_causal:
            mask = _causal_mask(query.shape[2], key.shape[2], query.device, self._dtype)
        return _weigh_by_hand(query, key, value, mask, rule, sinks)


def _weigh_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    rule: AttentionRule,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """What `scaled_dot_product_attention` does not know: capped scores and sinks.

    Source: Gemma Team 2024, arXiv:2408.00118, section 2 (logit soft-capping); Xiao et al. 2023,
    arXiv:2309.17453 (sinks, learned in gpt-oss).
    """
    num_seqs, num_heads, num_queries, head_dim = query.shape
    num_kv_heads = key.shape[1]
    # The heads that share keys become rows of one product.
    grouped = query.reshape(num_seqs, num_kv_heads, -1, head_dim)
    scores = (grouped @ key.transpose(2, 3)).view(num_seqs, num_heads, num_queries, -1).float()
    scores *= rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is not None:
        scores += mask
    if sinks is None:
        probabilities = scores.softmax(-1)
    else:
        sink_scores = sinks.float().view(1, -1, 1, 1).expand(num_seqs, -1, num_queries, 1)
        probabilities = torch.cat([scores, sink_scores], -1).softmax(-1)[..., :-1]
    shared = probabilities.to(value.dtype).reshape(num_seqs, num_kv_heads, -1, key.shape[2])
    return (shared @ value).view(query.shape)


def _tables(metadata: AttentionMetadata, window: int | None) -> AttentionMetadata | WindowTables:
    """What knows the blocks of the layers with this window."""
    if window is None:
        return metadata
    return metadata.window_tables.get(window, metadata)


def _decode_groups(
    metadata: AttentionMetadata,
    block_tables: torch.Tensor,
    dtype: torch.dtype,
    window: int | None,
) -> list[_DecodeGroup]:
    """All decodes in one group, or, if that gathers too much, sequences of like length together."""
    lengths = [_visible(n, window) for n in metadata.host_context_lens[: metadata.num_decode]]
    if not lengths:
        return []
    if len(lengths) * max(lengths) <= MAX_GATHERED_TOKENS or len(lengths) == 1:
        members: Sequence[int] = range(len(lengths))
        rows = slice(0, len(lengths))
        return [_decode_group(metadata, block_tables, dtype, members, rows, window)]
    groups = []
    remaining = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while remaining:
        size = max(1, MAX_GATHERED_TOKENS // lengths[remaining[0]])
        members, remaining = remaining[:size], remaining[size:]
        indices = torch.tensor(members, device=metadata.slot_mapping.device)
        groups.append(_decode_group(metadata, block_tables, dtype, members, indices, window))
    return groups


def _decode_group(
    metadata: AttentionMetadata,
    block_tables: torch.Tensor,
    dtype: torch.dtype,
    members: Sequence[int],
    rows: slice | torch.Tensor,
    window: int | None,
) -> _DecodeGroup:
    lengths = [_visible(metadata.host_context_lens[index], window) for index in members]
    most = max(lengths)
    context_lens = metadata.context_lens[rows].long().unsqueeze(1)
    positions = torch.arange(most, device=context_lens.device)
    if window is None:
        is_padding = positions >= context_lens
    else:
        is_padding = positions >= context_lens.clamp(max=window)
        # Each sequence's keys begin where its window does.
        positions = positions + (context_lens - window).clamp(min=0)
    slots = _slots(block_tables[rows], metadata.block_size, positions)
    mask = None
    if min(lengths) < most:
        slots = slots.masked_fill(is_padding, 0)
        mask = _additive(is_padding, dtype)[:, None, None, :]
    return _DecodeGroup(rows, len(lengths), slots.flatten(), mask)


def _prefill_chunks(
    metadata: AttentionMetadata,
    block_tables: torch.Tensor,
    dtype: torch.dtype,
    num_heads: int,
    window: int | None,
) -> list[_PrefillChunk]:
    chunks = []
    begin = metadata.num_decode
    device = metadata.slot_mapping.device
    for index in range(metadata.num_decode, len(metadata.query_lens)):
        num_queries = metadata.query_lens[index]
        context_len = metadata.host_context_lens[index]
        is_alone = num_queries == context_len and num_heads * context_len**2 <= MAX_ATTENTION_SCORES
        if is_alone:
            mask = None
            if window is not None and context_len > window:
                mask = _causal_mask(num_queries, context_len, device, dtype, window)
            chunks.append(_PrefillChunk(slice(begin, begin + num_queries), None, mask))
        else:
            table = block_tables[index : index + 1]
            # A long context is met by few queries at a time, so that the scores stay bounded.
            step = max(1, MAX_ATTENTION_SCORES // (num_heads * context_len))
            for first in range(0, num_queries, step):
                last = min(first + step, num_queries)
                end = context_len - num_queries + last
                num_keys = _visible(end, None if window is None else window + last - first - 1)
                positions = torch.arange(end - num_keys, end, device=device).unsqueeze(0)
                slots = _slots(table, metadata.block_size, positions).flatten()
                mask = _causal_mask(last - first, num_keys, device, dtype, window)
                chunks.append(_PrefillChunk(slice(begin + first, begin + last), slots, mask))
        begin += num_queries
    return chunks


def _visible(context_len: int, window: int | None) -> int:
    return context_len if window is None else min(context_len, window)


def _slots(block_tables: torch.Tensor, block_size: int, positions: torch.Tensor) -> torch.Tensor:
    """Where the tokens at some positions lie: [num_seqs, num_positions], int64.

    Args:
        positions: [num_seqs, num_positions], or [num_positions] for all; past the end of a block
            table they count as its last entry's.
    """
    positions = positions.expand(len(block_tables), -1)
    indices = (positions // block_size).clamp(max=block_tables.shape[1] - 1)
    return block_tables.long().gather(1, indices) * block_size + positions % block_size


def _causal_mask(
    num_queries: int,
    num_keys: int,
    device: torch.device,
    dtype: torch.dtype,
    window: int | None = None,
) -> torch.Tensor:
    """For queries that are the last of the keys."""
    queries = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
    keys = torch.arange(num_keys, device=device)
    is_hidden = keys > queries
    if window is not None:
        is_hidden |= keys <= queries - window
    return _additive(is_hidden, dtype)


def _additive(is_hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device)
    return mask.masked_fill_(is_hidden, float("-inf"))

"""Paged attention in plain torch: gathers the cached tokens, then `scaled_dot_product_attention`.

Exact and readable; the truth that faster backends are compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from octavo.engine.attention.base import AttentionMetadata
from octavo.engine.memory import MAX_ATTENTION_SCORES, MAX_GATHERED_TOKENS


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Sequences with one query token each, attended in one padded call."""

    rows: slice | torch.Tensor
    """Which tokens of the step (and sequences: the two agree in the decode part)."""
    num_seqs: int
    slots: torch.Tensor
    """[num_seqs * longest context], int64; padding points at slot 0, in the null block."""
    mask: torch.Tensor | None
    """[num_seqs, 1, 1, longest context], added to the scores; None if there is no padding."""


@dataclass(frozen=True, slots=True)
class _PrefillChunk:
    """Consecutive query tokens of one sequence and the context they see."""

    rows: slice
    slots: torch.Tensor | None
    """[context], int64; None if the context is exactly this chunk, so that nothing is cached."""
    mask: torch.Tensor | None
    """[num_queries, context], added to the scores; None if the chunk is its own context."""


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
            metadata.slot_mapping,
            _decode_groups(metadata, self._dtype),
            _prefill_chunks(metadata, self._dtype, self._num_heads),
            is_grouped=self._is_grouped,
        )


class TorchAttentionStep:
    """Indices and masks of one step, shared by all layers.

    What stands for "no token" is read from the null block, which holds zeros. Reading stale
    slots and masking only their scores would not do: a probability of 0 times a NaN is a NaN.
    """

    def __init__(
        self,
        slot_mapping: torch.Tensor,
        groups: list[_DecodeGroup],
        chunks: list[_PrefillChunk],
        *,
        is_grouped: bool,
    ) -> None:
        self._slot_mapping = slot_mapping
        self._groups = groups
        self._chunks = chunks
        self._is_grouped = is_grouped

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        num_kv_heads, head_dim = key.shape[1:]
        keys = key_cache.view(-1, num_kv_heads, head_dim)
        values = value_cache.view(-1, num_kv_heads, head_dim)
        keys.index_copy_(0, self._slot_mapping, key)
        values.index_copy_(0, self._slot_mapping, value)
        output = torch.empty_like(query)
        for group in self._groups:
            shape = (group.num_seqs, -1, num_kv_heads, head_dim)
            output[group.rows] = functional.scaled_dot_product_attention(
                query[group.rows].unsqueeze(2),
                keys.index_select(0, group.slots).view(shape).transpose(1, 2),
                values.index_select(0, group.slots).view(shape).transpose(1, 2),
                attn_mask=group.mask,
                scale=scale,
                enable_gqa=self._is_grouped,
            ).squeeze(2)
        for chunk in self._chunks:
            if chunk.slots is None:
                chunk_keys, chunk_values = key[chunk.rows], value[chunk.rows]
            else:
                chunk_keys = keys.index_select(0, chunk.slots)
                chunk_values = values.index_select(0, chunk.slots)
            attended = functional.scaled_dot_product_attention(
                query[chunk.rows].transpose(0, 1).unsqueeze(0),
                chunk_keys.transpose(0, 1).unsqueeze(0),
                chunk_values.transpose(0, 1).unsqueeze(0),
                attn_mask=chunk.mask,
                is_causal=chunk.mask is None,
                scale=scale,
                enable_gqa=self._is_grouped,
            )
            output[chunk.rows] = attended.squeeze(0).transpose(0, 1)
        return output


def _decode_groups(metadata: AttentionMetadata, dtype: torch.dtype) -> list[_DecodeGroup]:
    """All decodes in one group, or, if that gathers too much, sequences of like length together."""
    lengths = metadata.host_context_lens[: metadata.num_decode]
    if not lengths:
        return []
    if len(lengths) * max(lengths) <= MAX_GATHERED_TOKENS or len(lengths) == 1:
        return [_decode_group(metadata, dtype, range(len(lengths)), slice(0, len(lengths)))]
    groups = []
    remaining = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while remaining:
        size = max(1, MAX_GATHERED_TOKENS // lengths[remaining[0]])
        members, remaining = remaining[:size], remaining[size:]
        rows = torch.tensor(members, device=metadata.slot_mapping.device)
        groups.append(_decode_group(metadata, dtype, members, rows))
    return groups


def _decode_group(
    metadata: AttentionMetadata,
    dtype: torch.dtype,
    members: Sequence[int],
    rows: slice | torch.Tensor,
) -> _DecodeGroup:
    lengths = [metadata.host_context_lens[index] for index in members]
    longest = max(lengths)
    slots = _context_slots(metadata.block_tables[rows], metadata.block_size, longest)
    mask = None
    if min(lengths) < longest:
        positions = torch.arange(longest, device=slots.device)
        is_padding = positions >= metadata.context_lens[rows].unsqueeze(1)
        slots = slots.masked_fill(is_padding, 0)
        mask = _additive(is_padding, dtype)[:, None, None, :]
    return _DecodeGroup(rows, len(lengths), slots.flatten(), mask)


def _prefill_chunks(
    metadata: AttentionMetadata, dtype: torch.dtype, num_heads: int
) -> list[_PrefillChunk]:
    chunks = []
    begin = metadata.num_decode
    for index in range(metadata.num_decode, len(metadata.query_lens)):
        num_queries = metadata.query_lens[index]
        context_len = metadata.host_context_lens[index]
        if num_queries == context_len and num_heads * context_len**2 <= MAX_ATTENTION_SCORES:
            chunks.append(_PrefillChunk(slice(begin, begin + num_queries), None, None))
        else:
            table = metadata.block_tables[index : index + 1]
            slots = _context_slots(table, metadata.block_size, context_len).flatten()
            # A long context is met by few queries at a time, so that the scores stay bounded.
            step = max(1, MAX_ATTENTION_SCORES // (num_heads * context_len))
            for first in range(0, num_queries, step):
                last = min(first + step, num_queries)
                visible_len = context_len - num_queries + last
                mask = _causal_mask(last - first, visible_len, slots.device, dtype)
                rows = slice(begin + first, begin + last)
                chunks.append(_PrefillChunk(rows, slots[:visible_len], mask))
        begin += num_queries
    return chunks


def _context_slots(block_tables: torch.Tensor, block_size: int, context_len: int) -> torch.Tensor:
    """The slots of the first `context_len` positions: [num_seqs, context_len], int64."""
    num_blocks = -(-context_len // block_size)
    first_slots = block_tables[:, :num_blocks].long() * block_size
    offsets = torch.arange(block_size, device=block_tables.device)
    return (first_slots.unsqueeze(2) + offsets).flatten(1)[:, :context_len]


def _causal_mask(
    num_queries: int, context_len: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """For queries that are the last of the context."""
    queries = torch.arange(context_len - num_queries, context_len, device=device)
    return _additive(torch.arange(context_len, device=device) > queries.unsqueeze(1), dtype)


def _additive(is_hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device)
    return mask.masked_fill_(is_hidden, float("-inf"))

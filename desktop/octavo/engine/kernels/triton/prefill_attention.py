"""Paged attention of stretches of query tokens: causal, over all that is cached before them.

The plain-torch twin is `attention.torch_attention`. A program takes some tokens of one sequence
and all query heads of one key head, so that keys are read once for the heads that share them.

Source: Dao 2023, arXiv:2307.08691, section 3.1; Kwon et al. 2023, arXiv:2309.06180, section 4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.decode_attention import (
    DecodeShape,
    cap_scores,
    padded_head_dim,
)
from octavo.engine.kernels.triton.heads import storage_kind
from octavo.engine.kernels.triton.tiled_gemm import has_much_shared_memory
from octavo.engine.layer_cache import AttentionRule, LayerCache

_LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class TileShape:
    """How much of queries and keys a program holds at a time."""

    rows: int
    """Query tokens times the heads that share a key head, rounded up to a power of two."""
    keys: int
    warps: int
    stages: int


def tile_shape(shape: DecodeShape, dtype: torch.dtype, device: torch.device) -> TileShape:
    """The measured best on Hopper; what fits the 99 KiB of consumer cards where a card has no more.

    What a program holds of queries, keys and values has to fit.
    """
    block_d = padded_head_dim(shape.head_dim)
    group = triton.next_power_of_2(shape.num_heads // shape.num_kv_heads)
    if dtype is torch.float32:
        return TileShape(max(32, group), 32, 4, 1)
    if block_d > 128:
        return TileShape(max(64, group), 32, 4, 2)
    if block_d > 64 and has_much_shared_memory(device):
        return TileShape(max(128, group), 64, 4, 3)
    return TileShape(max(64, group), 64, 4, 2)


def plan_tiles(query_lens: Sequence[int], tokens_each: int) -> npt.NDArray[np.int32]:
    """Cuts the sequences' queries into tiles: [2, num_tiles], sequence and first token in it.

    The last tokens of a sequence come first: they see most and take longest.
    """
    seqs: list[int] = []
    starts: list[int] = []
    for seq, length in enumerate(query_lens):
        for start in reversed(range(0, length, tokens_each)):
            seqs.append(seq)
            starts.append(start)
    return np.array([seqs, starts], dtype=np.int32)


@triton.jit
def _attend_keys(
    own, maximum, weight_sum, sums, keys, values, key_scales, value_scales, table, kv_head,
    positions, key_start, end, scale,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, KIND: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Lets a tile's rows attend to some keys; if not `MASKED`, all rows see all of them."""
    dtype = own.dtype
    channels = tl.arange(0, BLOCK_D)
    key_tokens = key_start + tl.arange(0, BLOCK_N)
    cached = key_tokens < end
    if MASKED:
        block = tl.load(table + key_tokens // BLOCK_SIZE, mask=cached, other=0).to(tl.int64)
    else:
        block = tl.load(table + key_tokens // BLOCK_SIZE).to(tl.int64)
    slot = block * BLOCK_SIZE + key_tokens % BLOCK_SIZE
    place = (slot * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + channels[None, :]
    if MASKED or HEAD_DIM < BLOCK_D:
        loaded = cached[:, None] & (channels < HEAD_DIM)[None, :]
        key = tl.load(keys + place, mask=loaded, other=0.0).to(dtype)
        value = tl.load(values + place, mask=loaded, other=0.0).to(dtype)
    else:
        key = tl.load(keys + place).to(dtype)
        value = tl.load(values + place).to(dtype)
    scores = tl.dot(own, tl.trans(key), input_precision="ieee")
    if KIND == 2:
        scale_place = slot * NUM_KV_HEADS + kv_head
        key_scale = tl.load(key_scales + scale_place, mask=cached, other=0.0)
        scores *= key_scale.to(tl.float32)[None, :]
    if SOFTCAP > 0.0:
        scores = cap_scores(scores * scale, SOFTCAP) * _LOG2_E
    else:
        scores *= scale * _LOG2_E
    if MASKED:
        visible = key_tokens[None, :] <= positions[:, None]
        if WINDOW > 0:
            visible = visible & (key_tokens[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(visible, scores, -1e30)
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    weights = tl.exp2(scores - new_maximum[:, None])
    if MASKED and WINDOW > 0:
        # A tile may lie before all that a row sees; its maximum is the mask's value then.
        weights = tl.where(visible, weights, 0.0)
    faded = tl.exp2(maximum - new_maximum)
    weight_sum = weight_sum * faded + tl.sum(weights, 1)
    if KIND == 2:
        value_scale = tl.load(value_scales + scale_place, mask=cached, other=0.0)
        weights *= value_scale.to(tl.float32)[None, :]
    sums = tl.dot(weights.to(dtype), value, sums * faded[:, None], input_precision="ieee")
    return new_maximum, weight_sum, sums


@triton.jit(
    do_not_specialize=[
        "tiles", "block_tables", "cu_seqlens_q", "context_lens", "num_tiles", "table_stride"
    ]
)  # fmt: skip
def _attend_tile(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    sinks,
    tiles,
    block_tables,
    cu_seqlens_q,
    context_lens,
    output,
    num_tiles,
    query_stride,
    table_stride,
    scale,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    KIND: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    seq = tl.load(tiles + tile)
    start = tl.load(tiles + num_tiles + tile)
    first_row = tl.load(cu_seqlens_q + seq)
    query_len = tl.load(cu_seqlens_q + seq + 1) - first_row
    context_len = tl.load(context_lens + seq)
    table = block_tables + seq.to(tl.int64) * table_stride

    rows = tl.arange(0, BLOCK_M)
    tokens = start + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    channels = tl.arange(0, BLOCK_D)
    in_head = channels < HEAD_DIM
    exists = (rows < TOKENS * GROUP) & (tokens < query_len)
    positions = context_len - query_len + tokens
    dtype = query.dtype.element_ty
    row = (first_row + tokens).to(tl.int64)
    own = tl.load(
        query + row[:, None] * query_stride + heads[:, None] * HEAD_DIM + channels[None, :],
        mask=exists[:, None] & in_head[None, :],
        other=0.0,
    )
    maximum = tl.full([BLOCK_M], -1e30, tl.float32)
    weight_sum = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if HAS_SINKS:
        maximum = tl.load(sinks + heads).to(tl.float32) * _LOG2_E
        weight_sum += 1.0

    first_position = context_len - query_len + start
    end = tl.minimum(first_position + TOKENS, context_len)
    # All rows see all keys from `whole_begin` to `whole_end`, and some of those around.
    begin = 0
    whole_begin = 0
    whole_end = (first_position + 1) // BLOCK_N * BLOCK_N
    if WINDOW > 0:
        begin = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        whole_begin = tl.maximum(first_position + TOKENS - WINDOW, begin)
        whole_begin = tl.minimum((whole_begin + BLOCK_N - 1) // BLOCK_N * BLOCK_N, end)
        whole_end = tl.maximum(whole_end, whole_begin)
    for stretch in tl.static_range(0 if WINDOW > 0 else 1, 3):
        first = begin if stretch == 0 else whole_begin if stretch == 1 else whole_end
        last = whole_begin if stretch == 0 else whole_end if stretch == 1 else end
        for key_start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
            maximum, weight_sum, sums = _attend_keys(
                own, maximum, weight_sum, sums, keys, values, key_scales, value_scales, table,
                kv_head, positions, key_start, end, scale, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE,
                WINDOW, SOFTCAP, KIND, BLOCK_N, BLOCK_D, stretch != 1,
            )  # fmt: skip

    sums = sums / tl.maximum(weight_sum, 1e-30)[:, None]
    place = (row * NUM_HEADS + heads)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(output + place, sums.to(dtype), mask=exists[:, None] & in_head[None, :])


def prefill_attention(
    query: torch.Tensor,
    cache: LayerCache,
    tiles: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    rule: AttentionRule,
    shape: DecodeShape,
    output: torch.Tensor,
    *,
    sinks: torch.Tensor | None = None,
    tile: TileShape | None = None,
) -> None:
    """Attends each query token to its sequence's cached keys up to its own.

    Args:
        query: [num_tokens, num_heads, head_dim], of all sequences; rows may be apart.
        cache: the layer's; the step's own keys and values are in it.
        tiles: [2, num_tiles], int32, as `plan_tiles` made them.
        block_tables: [num_seqs, max_blocks], int32.
        cu_seqlens_q: [num_seqs + 1], int32: the sequences' first rows in `query`.
        context_lens: [num_seqs], int32; includes the query tokens.
        rule: the layer's.
        shape: the model's.
        output: [num_tokens, num_heads, head_dim], type of query; is written.
        sinks: [num_heads].
        tile: as `tiles` are cut; None: the usual one.
    """
    if tile is None:
        tile = tile_shape(shape, query.dtype, query.device)
    group = shape.num_heads // shape.num_kv_heads
    num_tiles = tiles.shape[1]
    keys, values = cache.keys, cache.values
    _attend_tile[(num_tiles, shape.num_kv_heads)](
        query,
        keys,
        values,
        keys if cache.key_scales is None else cache.key_scales,
        values if cache.value_scales is None else cache.value_scales,
        query if sinks is None else sinks,
        tiles,
        block_tables,
        cu_seqlens_q,
        context_lens,
        output,
        num_tiles,
        query.stride(0),
        block_tables.stride(0),
        rule.scale,
        NUM_KV_HEADS=shape.num_kv_heads,
        GROUP=group,
        HEAD_DIM=shape.head_dim,
        BLOCK_SIZE=shape.block_size,
        WINDOW=rule.window or 0,
        SOFTCAP=rule.softcap or 0.0,
        HAS_SINKS=sinks is not None,
        KIND=storage_kind(cache, query.dtype),
        TOKENS=tile.rows // group,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.keys,
        BLOCK_D=padded_head_dim(shape.head_dim),
        STAGES=tile.stages,
        num_warps=tile.warps,
    )


def tokens_per_tile(shape: DecodeShape, dtype: torch.dtype, device: torch.device) -> int:
    """Query tokens that one program takes."""
    return tile_shape(shape, dtype, device).rows // (shape.num_heads // shape.num_kv_heads)

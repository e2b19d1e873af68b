"""Paged attention of one query token per sequence, the keys of a sequence split over programs.

The plain-torch twin is `attention.torch_attention`. A program takes all query heads of one key head
and a stretch of the context; a second kernel puts the stretches together.

Source: Kwon et al. 2023, arXiv:2309.06180, section 4.3; Dao et al. 2023, "Flash-Decoding".
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.attention_tiling import AttentionTiling
from octavo.engine.kernels.triton.heads import (
    SAME,
    HeadNorms,
    HeadRotation,
    storage_kind,
    turn,
)
from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.layer_cache import AttentionRule, LayerCache

_MIN_ROWS = 16
"""The matrix units take no fewer."""
_MAX_SPLITS = 32
_MANY_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """What stays the same in every step."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int


def padded_head_dim(head_dim: int) -> int:
    """Channels of a head in registers: a power of two that the matrix units take."""
    return max(_MIN_ROWS, 1 << (head_dim - 1).bit_length())


def num_splits(num_seqs: int, num_kv_heads: int, max_context: int, num_programs: int) -> int:
    """Into how many stretches contexts are cut: a power of two that fills the card.

    From what the step may hold, not from what it holds: a captured graph keeps the number.
    """
    wanted = num_programs // max(1, num_seqs * num_kv_heads)
    most = _MAX_SPLITS if max_context > _MANY_TOKENS else _MAX_SPLITS // 2
    splits = 1
    while splits * 2 <= min(wanted, most):
        splits *= 2
    return splits


@triton.jit
def cap_scores(scores, SOFTCAP: tl.constexpr):
    """Squeezes scores between the cap and its negative."""
    squeezed = 2.0 / (1.0 + tl.exp(-2.0 * scores / SOFTCAP)) - 1.0
    return SOFTCAP * squeezed


@triton.jit(
    do_not_specialize=["block_tables", "table_rows", "context_lens", "table_stride", "num_splits"]
)
def _attend_split(
    query,
    cosines,
    sines,
    query_weight,
    key_weight,
    keys,
    values,
    key_scales,
    value_scales,
    sinks,
    block_tables,
    table_rows,
    context_lens,
    output,
    partial_sums,
    partial_maxima,
    partial_weights,
    query_stride,
    table_stride,
    num_splits,
    scale,
    eps,
    offset,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    KIND: tl.constexpr,
    FUSED: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    LOG2_E: tl.constexpr = 1.4426950408889634
    rows = tl.arange(0, BLOCK_M)
    channels = tl.arange(0, BLOCK_D)
    in_head = channels < HEAD_DIM
    in_group = rows < GROUP
    dtype = query.dtype.element_ty
    follow(OVERLAP)
    context_len = tl.load(context_lens + seq)
    table = block_tables + tl.load(table_rows + seq).to(tl.int64) * table_stride
    heads = kv_head * GROUP + rows
    start = query + seq.to(tl.int64) * query_stride
    own = tl.load(
        start + heads[:, None] * HEAD_DIM + channels[None, :],
        mask=in_group[:, None] & in_head[None, :],
        other=0.0,
    )
    num_cached = context_len
    if FUSED:
        # The new token is not in the cache yet: its key and value come from the projections.
        num_cached = context_len - 1
        turns = channels < 2 * HALF
        partners = tl.where(channels < HALF, channels + HALF, channels - HALF)
        partners = tl.where(turns, partners, channels)
        partner = tl.load(
            start + heads[:, None] * HEAD_DIM + partners[None, :],
            mask=in_group[:, None] & in_head[None, :],
            other=0.0,
        )
        cosine = tl.full([BLOCK_D], 1.0, tl.float32)
        sine = tl.zeros([BLOCK_D], tl.float32)
        if HALF > 0:
            angle = seq * HALF + channels % HALF
            cosine = tl.load(cosines + angle, mask=turns, other=1.0)
            sine = tl.load(sines + angle, mask=turns, other=0.0)
            sine = tl.where(channels < HALF, -sine, sine)
        weight_own = 1.0
        weight_partner = 1.0
        if NORM:
            weight_own = tl.load(query_weight + channels, mask=in_head, other=0.0)
            weight_own = weight_own.to(tl.float32)[None, :]
            weight_partner = tl.load(query_weight + partners, mask=in_head, other=0.0)
            weight_partner = weight_partner.to(tl.float32)[None, :]
        own = turn(
            own,
            partner,
            weight_own,
            weight_partner,
            cosine[None, :],
            sine[None, :],
            eps,
            offset,
            HEAD_DIM,
            NORM,
            IN_FLOAT32,
            dtype,
        )
    first = 0
    if WINDOW > 0:
        first = tl.maximum(context_len - WINDOW, 0)
    first_tile = first // BLOCK_N
    num_tiles = (num_cached + BLOCK_N - 1) // BLOCK_N - first_tile
    tiles_each = (num_tiles + num_splits - 1) // num_splits
    tile_from = first_tile + split * tiles_each
    tile_to = tl.minimum(tile_from + tiles_each, first_tile + num_tiles)

    maximum = tl.full([BLOCK_M], -1e30, tl.float32)
    weight_sum = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if HAS_SINKS:
        if split == 0:
            sink = tl.load(sinks + heads, mask=in_group, other=0.0).to(tl.float32)
            maximum = sink * LOG2_E
            weight_sum += 1.0
    if FUSED:
        if (split == num_splits - 1) & (context_len > 0):
            key_row = start + (NUM_HEADS + kv_head) * HEAD_DIM
            new_key = tl.load(key_row + channels, mask=in_head, other=0.0)
            key_partner = tl.load(key_row + partners, mask=in_head, other=0.0)
            if NORM:
                weight_own = tl.load(key_weight + channels, mask=in_head, other=0.0)
                weight_own = weight_own.to(tl.float32)[None, :]
                weight_partner = tl.load(key_weight + partners, mask=in_head, other=0.0)
                weight_partner = weight_partner.to(tl.float32)[None, :]
            new_key = turn(
                new_key[None, :],
                key_partner[None, :],
                weight_own,
                weight_partner,
                cosine[None, :],
                sine[None, :],
                eps,
                offset,
                HEAD_DIM,
                NORM,
                IN_FLOAT32,
                dtype,
            )
            new_value = tl.load(
                key_row + NUM_KV_HEADS * HEAD_DIM + channels, mask=in_head, other=0.0
            )[None, :]
            position = context_len - 1
            new_slot = tl.load(table + position // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE
            new_slot += position % BLOCK_SIZE
            written = (new_slot * NUM_KV_HEADS + kv_head) * HEAD_DIM + channels[None, :]
            tl.store(keys + written, new_key, mask=in_head[None, :])
            tl.store(values + written, new_value, mask=in_head[None, :])
            score = tl.sum(own.to(tl.float32) * new_key.to(tl.float32), 1) * scale
            if SOFTCAP > 0.0:
                score = cap_scores(score, SOFTCAP)
            score = score * LOG2_E
            larger = tl.maximum(maximum, score)
            kept = tl.exp2(maximum - larger)
            share = tl.exp2(score - larger)
            weight_sum = weight_sum * kept + share
            sums = sums * kept[:, None] + share[:, None] * new_value.to(tl.float32)
            maximum = larger

    offsets = tl.arange(0, BLOCK_N)
    for tile in tl.range(tile_from, tile_to, num_stages=STAGES):
        tokens = tile * BLOCK_N + offsets
        visible = (tokens < num_cached) & (tokens >= first)
        block = tl.load(table + tokens // BLOCK_SIZE, mask=visible, other=0).to(tl.int64)
        slot = block * BLOCK_SIZE + tokens % BLOCK_SIZE
        place = (slot * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + channels[None, :]
        loaded = visible[:, None] & in_head[None, :]
        key = tl.load(keys + place, mask=loaded, other=0.0).to(dtype)
        # Unread slots may hold NaN, and a weight of 0 would not stop it.
        value = tl.load(values + place, mask=loaded, other=0.0).to(dtype)
        scores = tl.dot(own, tl.trans(key), input_precision="ieee") * scale
        if KIND == 2:
            scale_place = slot * NUM_KV_HEADS + kv_head
            key_scale = tl.load(key_scales + scale_place, mask=visible, other=0.0)
            scores *= key_scale.to(tl.float32)[None, :]
        if SOFTCAP > 0.0:
            scores = cap_scores(scores, SOFTCAP)
        scores = tl.where(visible[None, :], scores * LOG2_E, -1e30)
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2(scores - new_maximum[:, None])
        faded = tl.exp2(maximum - new_maximum)
        weight_sum = weight_sum * faded + tl.sum(weights, 1)
        if KIND == 2:
            value_scale = tl.load(value_scales + scale_place, mask=visible, other=0.0)
            weights *= value_scale.to(tl.float32)[None, :]
        sums = tl.dot(weights.to(dtype), value, sums * faded[:, None], input_precision="ieee")
        maximum = new_maximum

    out_row = seq * NUM_HEADS + heads
    stored = in_group[:, None] & in_head[None, :]
    if not IS_SPLIT:
        # A row of padding has no keys at all.
        sums = sums / tl.maximum(weight_sum, 1e-30)[:, None]
        written = out_row.to(tl.int64)[:, None] * HEAD_DIM + channels[None, :]
        tl.store(output + written, sums.to(dtype), mask=stored)
    else:
        part = out_row * num_splits + split
        tl.store(partial_sums + part[:, None] * HEAD_DIM + channels[None, :], sums, mask=stored)
        tl.store(partial_maxima + part, maximum, mask=in_group)
        tl.store(partial_weights + part, weight_sum, mask=in_group)


@triton.jit
def _reduce_splits(
    partial_sums,
    partial_maxima,
    partial_weights,
    output,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0)
    splits = tl.arange(0, SPLITS)
    channels = tl.arange(0, BLOCK_D)
    in_head = channels < HEAD_DIM
    follow(OVERLAP)
    place = row * SPLITS + splits
    maxima = tl.load(partial_maxima + place)
    weights = tl.load(partial_weights + place)
    sums = tl.load(
        partial_sums + place[:, None] * HEAD_DIM + channels[None, :],
        mask=in_head[None, :],
        other=0.0,
    )
    shares = tl.exp2(maxima - tl.max(maxima, 0))
    total = tl.maximum(tl.sum(weights * shares, 0), 1e-30)
    attended = tl.sum(sums * shares[:, None], 0) / total
    place = row.to(tl.int64) * HEAD_DIM + channels
    tl.store(output + place, attended.to(output.dtype.element_ty), mask=in_head)


class SplitScratch:
    """Where the stretches of a step leave their parts; layers use it one after another."""

    def __init__(
        self,
        num_seqs: int,
        shape: DecodeShape,
        splits: int,
        device: torch.device,
        tiling: AttentionTiling | None = None,
    ) -> None:
        """Args:
        num_seqs: of the step.
        shape: the model's.
        splits: into how many stretches contexts are cut.
        device: where all lies.
        tiling: of the programs; None: the default.
        """
        self.splits = splits
        self.tiling = tiling or AttentionTiling()
        count = num_seqs * shape.num_heads * splits if splits > 1 else 1
        self.sums = torch.empty(count * shape.head_dim, dtype=torch.float32, device=device)
        self.maxima = torch.empty(count, dtype=torch.float32, device=device)
        self.weights = torch.empty(count, dtype=torch.float32, device=device)


def decode_attention(
    query: torch.Tensor,
    cache: LayerCache,
    block_tables: torch.Tensor,
    table_rows: torch.Tensor,
    context_lens: torch.Tensor,
    rule: AttentionRule,
    shape: DecodeShape,
    scratch: SplitScratch,
    *,
    sinks: torch.Tensor | None = None,
    rotation: HeadRotation | None = None,
    norms: HeadNorms | None = None,
    is_projected: bool = False,
    output: torch.Tensor | None = None,
    overlap: bool = False,
) -> torch.Tensor:
    """Attends one query token per sequence to that sequence's cached keys.

    Args:
        query: [num_seqs, ...]: heads side by side; if `is_projected`, queries, keys and values as
            the projections left them: they are turned, and keys and values written, here. That is
            for caches of the model's type alone.
        cache: the layer's.
        block_tables: [num_rows, max_blocks], int32.
        table_rows: [num_seqs], int32: each sequence's row in `block_tables`.
        context_lens: [num_seqs], int32; includes the query token. 0: a row of padding.
        rule: the layer's.
        shape: the model's.
        scratch: made for so many sequences.
        sinks: [num_heads].
        rotation: of the new tokens, if `is_projected`; None: nothing turns.
        norms: of the new tokens, if `is_projected`; None: heads are not normalised.
        is_projected: see `query`.
        output: [num_seqs, num_heads * head_dim]; None: a new one.
        overlap: whether the launches may overlap with the kernel before them.

    Returns:
        [num_seqs, num_heads * head_dim], type of query.
    """
    num_seqs = len(query)
    kind = storage_kind(cache, query.dtype)
    assert kind == SAME or not is_projected
    if output is None:
        output = query.new_empty(num_seqs, shape.num_heads * shape.head_dim)
    group = shape.num_heads // shape.num_kv_heads
    block_d = padded_head_dim(shape.head_dim)
    is_wide = query.dtype is torch.float32 or block_d > 128
    keys, values = cache.keys, cache.values
    tiling = scratch.tiling
    _attend_split[(num_seqs, shape.num_kv_heads, scratch.splits)](
        query,
        query if rotation is None else rotation.cosines,
        query if rotation is None else rotation.sines,
        query if norms is None else norms.query_weight,
        query if norms is None else norms.key_weight,
        keys,
        values,
        keys if cache.key_scales is None else cache.key_scales,
        values if cache.value_scales is None else cache.value_scales,
        query if sinks is None else sinks,
        block_tables,
        table_rows,
        context_lens,
        output,
        scratch.sums,
        scratch.maxima,
        scratch.weights,
        query.stride(0),
        block_tables.stride(0),
        scratch.splits,
        rule.scale,
        0.0 if norms is None else norms.eps,
        0.0 if norms is None else norms.offset,
        NUM_KV_HEADS=shape.num_kv_heads,
        GROUP=group,
        HEAD_DIM=shape.head_dim,
        BLOCK_SIZE=shape.block_size,
        WINDOW=rule.window or 0,
        SOFTCAP=rule.softcap or 0.0,
        HAS_SINKS=sinks is not None,
        KIND=kind,
        FUSED=is_projected,
        HALF=0 if rotation is None else rotation.cosines.shape[-1],
        NORM=norms is not None,
        IN_FLOAT32=norms is not None and norms.in_float32,
        IS_SPLIT=scratch.splits > 1,
        BLOCK_M=max(_MIN_ROWS, triton.next_power_of_2(group)),
        BLOCK_N=min(32, tiling.keys) if is_wide else tiling.keys,
        BLOCK_D=block_d,
        STAGES=tiling.stages,
        OVERLAP=overlap,
        num_warps=tiling.warps,
        **launch_options(overlap),
    )
    if scratch.splits > 1:
        _reduce_splits[(num_seqs * shape.num_heads,)](
            scratch.sums,
            scratch.maxima,
            scratch.weights,
            output,
            HEAD_DIM=shape.head_dim,
            BLOCK_D=block_d,
            SPLITS=scratch.splits,
            OVERLAP=overlap,
            num_warps=4,
            **launch_options(overlap),
        )
    return output

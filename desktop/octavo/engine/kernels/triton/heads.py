"""Head norms, rotation and the write into the KV cache, in one pass over the projections.

The plain-torch twins: `layers.attention` (norms), `layers.rotary_embedding.rotate`,
`attention.kv_types` (the write).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.layer_cache import LayerCache

SAME, FLOAT8, INT8 = 0, 1, 2
"""How keys and values are stored: as the model's type, or as one of these."""

_BLOCK_TOKENS = 8


@dataclass(frozen=True, slots=True)
class HeadRotation:
    """The rotations of one step's tokens, shared by layers."""

    cosines: torch.Tensor
    """[num_tokens, rotary_dim / 2], float32."""
    sines: torch.Tensor
    """As `cosines`."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Norms of each query and each key head by itself."""

    query_weight: torch.Tensor
    """[head_dim]."""
    key_weight: torch.Tensor
    """[head_dim]."""
    eps: float
    offset: float = 0.0
    in_float32: bool = False


def storage_kind(cache: LayerCache, dtype: torch.dtype) -> int:
    """Says how a layer stores what was computed in `dtype`."""
    if cache.key_scales is not None:
        return INT8
    return SAME if cache.keys.dtype == dtype else FLOAT8


@triton.jit
def turn(
    own,
    partner,
    weight_own,
    weight_partner,
    cosine,
    sine,
    eps,
    offset,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    dtype,
):
    """Normalises and rotates heads: [rows, channels] and, beside each, its pair in the rotation.

    The sine has the sign of its channel; where nothing turns, the cosine is 1 and the sine 0.
    """
    own = own.to(tl.float32)
    partner = partner.to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(own * own, 1) / HEAD_DIM + eps)[:, None]
        if IN_FLOAT32:
            own = (own * factor * (weight_own + offset)).to(dtype).to(tl.float32)
            partner = (partner * factor * (weight_partner + offset)).to(dtype).to(tl.float32)
        else:
            own = ((own * factor).to(dtype).to(tl.float32) * weight_own).to(dtype).to(tl.float32)
            partner = (partner * factor).to(dtype).to(tl.float32) * weight_partner
            partner = partner.to(dtype).to(tl.float32)
    return (own * cosine + partner * sine).to(dtype)


@triton.jit(do_not_specialize=["num_tokens"])
def _write_heads(
    projected,
    cosines,
    sines,
    query_weight,
    key_weight,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    num_tokens,
    token_stride,
    eps,
    offset,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    KIND: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    head = tl.program_id(1)
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    channels = tl.arange(0, BLOCK_D)
    in_head = channels < HEAD_DIM
    exists = (tokens < num_tokens)[:, None] & in_head[None, :]
    dtype = projected.dtype.element_ty
    follow(OVERLAP)
    row = projected + tokens.to(tl.int64)[:, None] * token_stride + head * HEAD_DIM
    heads = tl.load(row + channels[None, :], mask=exists, other=0.0)
    if head < NUM_HEADS + NUM_KV_HEADS:
        if NORM or HALF > 0:
            turns = channels < 2 * HALF
            partners = tl.where(channels < HALF, channels + HALF, channels - HALF)
            partners = tl.where(turns, partners, channels)
            partner = tl.load(row + partners[None, :], mask=exists, other=0.0)
            cosine = tl.full([BLOCK_T, BLOCK_D], 1.0, tl.float32)
            sine = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
            if HALF > 0:
                angle = tokens[:, None] * HALF + (channels % HALF)[None, :]
                turned = exists & turns[None, :]
                cosine = tl.load(cosines + angle, mask=turned, other=1.0)
                sine = tl.load(sines + angle, mask=turned, other=0.0)
                sine = tl.where((channels < HALF)[None, :], -sine, sine)
            weight_own = 1.0
            weight_partner = 1.0
            if NORM:
                weight = query_weight
                if head >= NUM_HEADS:
                    weight = key_weight
                weight_own = tl.load(weight + channels, mask=in_head, other=0.0)
                weight_own = weight_own.to(tl.float32)[None, :]
                weight_partner = tl.load(weight + partners, mask=in_head, other=0.0)
                weight_partner = weight_partner.to(tl.float32)[None, :]
            heads = turn(
                heads,
                partner,
                weight_own,
                weight_partner,
                cosine,
                sine,
                eps,
                offset,
                HEAD_DIM,
                NORM,
                IN_FLOAT32,
                dtype,
            )
            if KEEP or head < NUM_HEADS:
                tl.store(row + channels[None, :], heads, mask=exists)
    if head >= NUM_HEADS:
        kv_head = head - NUM_HEADS
        stored = keys
        scales = key_scales
        if kv_head >= NUM_KV_HEADS:
            kv_head -= NUM_KV_HEADS
            stored = values
            scales = value_scales
        slot = tl.load(slots + tokens, mask=tokens < num_tokens, other=-1).to(tl.int64)
        exists = exists & (slot >= 0)[:, None]
        place = stored + (slot * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + channels[None, :]
        if KIND == 2:
            wide = heads.to(tl.float32)
            scale = tl.maximum(tl.max(tl.abs(wide), 1) / 127.0, 5.9604644775390625e-08)
            scale = scale.to(tl.float16)
            tl.store(scales + slot * NUM_KV_HEADS + kv_head, scale, mask=slot >= 0)
            wide = wide / scale.to(tl.float32)[:, None]
            # Adding and taking away 1.5 * 2**23 rounds to even, as the definition does.
            wide = (wide + 12582912.0) - 12582912.0
            wide = tl.minimum(tl.maximum(wide, -127.0), 127.0)
            tl.store(place, wide.to(tl.int8), mask=exists)
        elif KIND == 1:
            wide = tl.minimum(tl.maximum(heads.to(tl.float32), -448.0), 448.0)
            tl.store(place, wide.to(tl.float8e4nv), mask=exists)
        else:
            tl.store(place, heads, mask=exists)


def write_heads(
    projected: torch.Tensor,
    cache: LayerCache,
    slots: torch.Tensor,
    *,
    num_heads: int,
    rotation: HeadRotation | None,
    norms: HeadNorms | None = None,
    keep: bool = True,
    overlap: bool = False,
) -> None:
    """Turns the queries in place, and writes the turned keys and the values into the cache.

    Args:
        projected: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: queries, keys, values.
        cache: the layer's.
        slots: [num_tokens], where keys and values go; -1: nowhere.
        num_heads: of the queries; 0: `projected` holds keys and values alone.
        rotation: None: nothing turns.
        norms: None: heads are not normalised.
        keep: also leaves the turned keys in `projected`.
        overlap: whether the launch may overlap with the kernel before it.
    """
    num_tokens, num_parts, head_dim = projected.shape
    assert projected.stride(1) == head_dim
    assert projected.stride(2) == 1
    kind = storage_kind(cache, projected.dtype)
    keys, values = cache.keys, cache.values
    block_tokens = 1 if num_tokens <= 64 else _BLOCK_TOKENS
    _write_heads[(triton.cdiv(num_tokens, block_tokens), num_parts)](
        projected,
        projected if rotation is None else rotation.cosines,
        projected if rotation is None else rotation.sines,
        projected if norms is None else norms.query_weight,
        projected if norms is None else norms.key_weight,
        keys,
        values,
        keys if cache.key_scales is None else cache.key_scales,
        values if cache.value_scales is None else cache.value_scales,
        slots,
        num_tokens,
        projected.stride(0),
        0.0 if norms is None else norms.eps,
        0.0 if norms is None else norms.offset,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=keys.shape[2],
        HEAD_DIM=head_dim,
        HALF=0 if rotation is None else rotation.cosines.shape[-1],
        NORM=norms is not None,
        IN_FLOAT32=norms is not None and norms.in_float32,
        KIND=kind,
        KEEP=keep,
        BLOCK_T=block_tokens,
        BLOCK_D=triton.next_power_of_2(head_dim),
        OVERLAP=overlap,
        num_warps=1 if block_tokens == 1 else 4,
        **launch_options(overlap),
    )

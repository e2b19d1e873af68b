"""The first kernel of a decode step: from one packed array to what the layers read.

Resolves tokens that only the device knows yet, brings the block tables up to date, finds the slots
of the new tokens, computes their rotations and gathers their embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.heads import HeadRotation
from octavo.engine.kernels.triton.launch import follow, launch_options

TABLE_ROW, TOKEN, POSITION, FIRST_BLOCK = range(4)
"""Rows of the packed array. A token below 0 is the one sampled at index -1 - token in the step
before; a position of -1 marks a row of padding. The block of the position follows, a row for each
KV group."""


@dataclass(frozen=True, slots=True)
class RotationRule:
    """How positions turn heads."""

    frequencies: torch.Tensor
    """[rotary_dim / 2], float32: angle per position."""
    magnitude: float


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """Buffers of a decode step of some number of rows; a captured graph reads and writes them."""

    packed: torch.Tensor
    """[3 + num_groups, num_rows], int32; see `TABLE_ROW` and its neighbours."""
    sampled: torch.Tensor
    """[num_rows], int32: the step before's."""
    table_rows: torch.Tensor
    """[num_rows], int32."""
    context_lens: torch.Tensor
    """[num_rows], int32."""
    slots: torch.Tensor
    """[num_groups, num_rows], int64."""
    rotations: tuple[HeadRotation, ...]
    """Of each `RotationRule`."""
    hidden: torch.Tensor
    """[num_rows, hidden_size]."""
    token_ids: torch.Tensor
    """[num_rows], int64: what the step computes, all resolved."""


@triton.jit
def _begin_step(
    packed,
    sampled,
    embedding,
    tables,
    table_rows,
    context_lens,
    slots,
    hidden,
    token_ids,
    num_rows,
    group_stride,
    table_stride,
    hidden_size,
    embedding_scale,
    EMBED: tl.constexpr,
    SCALE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0)
    follow(OVERLAP)
    table_row = tl.load(packed + row)
    token = tl.load(packed + num_rows + row)
    position = tl.load(packed + 2 * num_rows + row)
    if token < 0:
        token = tl.load(sampled - 1 - token)
    # A row whose logits were not finite; the host has yet to hear of it.
    token = tl.maximum(token, 0)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(table_rows + row, table_row)
    tl.store(context_lens + row, position + 1)
    for group in tl.static_range(NUM_GROUPS):
        if position >= 0:
            block = tl.load(packed + (3 + group) * num_rows + row)
            place = tables + group * group_stride + table_row.to(tl.int64) * table_stride
            tl.store(place + position // BLOCK_SIZE, block)
            slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
            tl.store(slots + group * num_rows + row, slot)
        else:
            tl.store(slots + group * num_rows + row, tl.full([], -1, tl.int64))
    if not EMBED:
        return
    channels = tl.arange(0, BLOCK)
    exists = channels < hidden_size
    values = tl.load(embedding + token.to(tl.int64) * hidden_size + channels, mask=exists)
    if SCALE:
        values = (values.to(tl.float32) * embedding_scale).to(hidden.dtype.element_ty)
    tl.store(hidden + row * hidden_size + channels, values, mask=exists)


@triton.jit
def _rotate_positions(
    positions,
    frequencies,
    cosines,
    sines,
    magnitude,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    exists = channels < HALF
    frequency = tl.load(frequencies + channels, mask=exists, other=0.0)
    follow(OVERLAP)
    angles = tl.load(positions + row).to(tl.float32) * frequency
    place = row * HALF + channels
    tl.store(cosines + place, tl.cos(angles) * magnitude, mask=exists)
    tl.store(sines + place, tl.sin(angles) * magnitude, mask=exists)


def rotate_positions(
    positions: torch.Tensor, rule: RotationRule, rotation: HeadRotation, *, overlap: bool = False
) -> None:
    """Fills in the rotations of [num_tokens] positions, of any integer type."""
    half = len(rule.frequencies)
    _rotate_positions[(len(positions),)](
        positions,
        rule.frequencies,
        rotation.cosines,
        rotation.sines,
        rule.magnitude,
        HALF=half,
        BLOCK=triton.next_power_of_2(half),
        OVERLAP=overlap,
        num_warps=1,
        **launch_options(overlap),
    )


def begin_step(
    inputs: DecodeInputs,
    embedding: torch.Tensor | None,
    tables: torch.Tensor,
    rules: Sequence[RotationRule],
    *,
    block_size: int,
    embedding_scale: float | None = None,
    overlap: bool = False,
) -> None:
    """Fills in all of `inputs` from its packed array.

    Args:
        inputs: of the step.
        embedding: [vocab_size, hidden_size]; None: the hidden states are left as they are.
        tables: [num_groups, num_table_rows, max_blocks], int32: block tables of all sequences.
        rules: one for each of the inputs' rotations.
        block_size: tokens of a block.
        embedding_scale: factor on the embedding; None: none.
        overlap: whether the launches may overlap with the kernel before them.
    """
    num_rows, hidden_size = inputs.hidden.shape
    _begin_step[(num_rows,)](
        inputs.packed,
        inputs.sampled,
        inputs.hidden if embedding is None else embedding,
        tables,
        inputs.table_rows,
        inputs.context_lens,
        inputs.slots,
        inputs.hidden,
        inputs.token_ids,
        num_rows,
        tables.stride(0),
        tables.stride(1),
        hidden_size,
        1.0 if embedding_scale is None else embedding_scale,
        EMBED=embedding is not None,
        SCALE=embedding_scale is not None,
        NUM_GROUPS=len(tables),
        BLOCK_SIZE=block_size,
        BLOCK=triton.next_power_of_2(hidden_size),
        OVERLAP=overlap,
        num_warps=4,
        **launch_options(overlap),
    )
    for rule, rotation in zip(rules, inputs.rotations, strict=True):
        rotate_positions(inputs.packed[POSITION], rule, rotation, overlap=overlap)

"""Greedy choice and random draws on the device.

The plain-torch twin is `Sampler`: the same noise, a function of a row's key and the token id.

Source: Steele et al. 2014, "Fast splittable pseudorandom number generators"; Maddison et al. 2014,
arXiv:1411.0030.
"""

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.launch import follow, launch_options
from octavo.engine.kernels.triton.row_logits import LogitRows, load_logits
from octavo.engine.kernels.triton.truncation import Truncation, find_edges

NOT_FINITE = -1
"""Stands for a token where a row's logits are not finite numbers."""

_BLOCK = 1024


@triton.jit
def gumbel(keys, token_ids):
    """Noise for tokens, float32; the steps of `sampler.gumbel_noise`."""
    # The golden gamma and the two multipliers of SplitMix64, as signed numbers.
    bits = (token_ids.to(tl.int64) + 1) * -7046029254386353131 + keys
    bits = bits ^ ((bits >> 30) & 0x3FFFFFFFF)
    bits = bits * -4658895280553007687
    bits = bits ^ ((bits >> 27) & 0x1FFFFFFFFF)
    bits = bits * -7723592293110705685
    bits = bits ^ ((bits >> 31) & 0x1FFFFFFFF)
    uniform = (((bits >> 12) & 0xFFFFFFFFFFFFF).to(tl.float64) + 0.5) * 2.220446049250313e-16
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def _choose_parts(
    logits,
    words,
    mask_rows,
    temperatures,
    keys,
    maxima,
    edges,
    part_maxima,
    part_ids,
    vocab_size,
    logits_stride,
    mask_stride,
    part_size,
    logits_scale,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    TRUNCATED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    part = tl.program_id(0)
    row = tl.program_id(1)
    follow(OVERLAP)
    temperature = tl.load(temperatures + row)
    key = tl.load(keys + row)
    maximum = 0.0
    edge = -float("inf")
    if TRUNCATED:
        maximum = tl.load(maxima + row)
        edge = tl.load(edges + row)
    if MASKED:
        words += tl.load(mask_rows + row).to(tl.int64) * mask_stride
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    start = part * part_size
    end = tl.minimum(start + part_size, vocab_size)
    place = logits + row.to(tl.int64) * logits_stride
    for first in range(start, end, BLOCK):
        token_ids = first + tl.arange(0, BLOCK)
        scores = load_logits(
            place, words, token_ids, token_ids < end, logits_scale, SOFTCAP, MASKED
        )
        if temperature > 0.0:
            is_finite = tl.abs(scores) < float("inf")
            tempered = (scores - maximum) / temperature
            is_left = is_finite & (tempered >= edge)
            # Noise costs more than all the rest, and few parts have anything left.
            if tl.max(is_left.to(tl.int32), 0) > 0:
                tempered += gumbel(key, token_ids)
            left_out = tl.where(is_finite, -float("inf"), scores)
            scores = tl.where(is_left, tempered, left_out)
        best_id = tl.where(scores > best, token_ids, best_id)
        best = tl.maximum(scores, best)
    maximum = tl.max(best, 0)
    first_id = tl.min(tl.where(best == maximum, best_id, 2147483647), 0)
    tl.store(part_maxima + row * PARTS + part, maximum)
    tl.store(part_ids + row * PARTS + part, first_id)


@triton.jit
def _choose(
    part_maxima,
    part_ids,
    token_ids,
    num_parts,
    row_stride,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0)
    follow(OVERLAP)
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    best_id = tl.full([BLOCK], 2147483647, tl.int32)
    for first in range(0, num_parts, BLOCK):
        parts = first + tl.arange(0, BLOCK)
        exists = parts < num_parts
        maxima = tl.load(part_maxima + row * row_stride + parts, mask=exists, other=-float("inf"))
        ids = tl.load(part_ids + row * row_stride + parts, mask=exists, other=2147483647)
        best_id = tl.where(maxima > best, ids, best_id)
        best = tl.maximum(maxima, best)
    maximum = tl.max(best, 0)
    chosen = tl.min(tl.where(best == maximum, best_id, 2147483647), 0)
    chosen = tl.where(tl.abs(maximum) < float("inf"), chosen, -1)
    tl.store(token_ids + row, chosen)


def choose_among_parts(
    part_maxima: torch.Tensor,
    part_ids: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    overlap: bool = False,
) -> None:
    """Writes each row's best token, or `NOT_FINITE`.

    Args:
        part_maxima: [num_rows, num_parts], float32.
        part_ids: [num_rows, num_parts], int32: the token of each part's maximum.
        token_ids: [num_rows], int32.
        overlap: whether the launch may overlap with the kernel before it.
    """
    num_rows, num_parts = part_maxima.shape
    _choose[(num_rows,)](
        part_maxima,
        part_ids,
        token_ids,
        num_parts,
        part_maxima.stride(0),
        BLOCK=min(4096, triton.next_power_of_2(num_parts)),
        OVERLAP=overlap,
        num_warps=4,
        **launch_options(overlap),
    )


def choose_tokens(
    rows: LogitRows,
    temperatures: torch.Tensor,
    keys: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    truncation: Truncation | None = None,
    overlap: bool = False,
) -> None:
    """Chooses a token per row: the likeliest, or one drawn at a temperature.

    Args:
        rows: the logits.
        temperatures: [num_rows], float32; 0: greedy.
        keys: [num_rows], int64, of the noise.
        token_ids: [num_rows], int32, is written; `NOT_FINITE` where logits are not finite.
        truncation: what each row leaves out of a draw; None: nothing.
        overlap: whether the launches may overlap with the kernel before them.
    """
    num_rows, num_parts = len(rows.logits), rows.num_parts
    device = rows.logits.device
    edges = None if truncation is None else find_edges(rows, temperatures, truncation)
    part_maxima = torch.empty(num_rows, num_parts, dtype=torch.float32, device=device)
    part_ids = torch.empty(num_rows, num_parts, dtype=torch.int32, device=device)
    _choose_parts[(num_parts, num_rows)](
        rows.logits,
        rows.words,
        rows.mask_rows,
        temperatures,
        keys,
        temperatures if edges is None else edges.maxima,
        temperatures if edges is None else edges.lowest,
        part_maxima,
        part_ids,
        rows.vocab_size,
        rows.logits.stride(0),
        rows.mask_stride,
        rows.part_size,
        rows.scale,
        SOFTCAP=rows.softcap,
        MASKED=rows.is_masked,
        TRUNCATED=edges is not None,
        BLOCK=_BLOCK,
        PARTS=num_parts,
        OVERLAP=overlap,
        num_warps=4,
        enable_fp_fusion=False,
        **launch_options(overlap),
    )
    choose_among_parts(part_maxima, part_ids, token_ids, overlap=overlap)

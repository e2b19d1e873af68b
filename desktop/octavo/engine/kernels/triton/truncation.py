"""Top-k, top-p and min-p as one lowest score per row, found without sorting the vocabulary.

A token may be drawn if fewer than top-k tokens and less than top-p of the mass lie above it. Most
tokens are out of the question by the maxima of a row's parts; among the others, the edge between
those that may be drawn and those that may not is searched by halving. The plain-torch twin is
`octavo.engine.truncation`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.row_logits import LogitRows, load_logits

_BLOCK, _SEARCH_BLOCK = 1024, 2048


@dataclass(frozen=True, slots=True)
class Truncation:
    """What each row leaves out."""

    top_ks: torch.Tensor
    """[num_rows], int32; 0: nothing."""
    top_ps: torch.Tensor
    """[num_rows], float32; 1: nothing."""
    min_ps: torch.Tensor
    """[num_rows], float32, as logarithms; -inf: nothing."""


@dataclass(frozen=True, slots=True)
class Edges:
    """What is left of each row: tokens with (logit - maximum) / temperature >= lowest."""

    maxima: torch.Tensor
    """[num_rows], float32; 0 where nothing is left out."""
    lowest: torch.Tensor
    """[num_rows], float32; -inf where nothing is left out."""


@triton.jit
def _survey(
    logits,
    words,
    mask_rows,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    part_maxima,
    part_minima,
    part_masses,
    vocab_size,
    logits_stride,
    mask_stride,
    part_size,
    logits_scale,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    part = tl.program_id(0)
    row = tl.program_id(1)
    temperature = tl.load(temperatures + row)
    truncates = (tl.load(top_ks + row) > 0) | (tl.load(top_ps + row) < 1.0)
    truncates = truncates | (tl.load(min_ps + row) > -float("inf"))
    if (temperature == 0.0) | (not truncates):
        return
    place = logits + row.to(tl.int64) * logits_stride
    if MASKED:
        words += tl.load(mask_rows + row).to(tl.int64) * mask_stride
    start = part * part_size
    end = tl.minimum(start + part_size, vocab_size)
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    lowest = tl.full([BLOCK], float("inf"), tl.float32)
    for first in range(start, end, BLOCK):
        token_ids = first + tl.arange(0, BLOCK)
        values = load_logits(
            place, words, token_ids, token_ids < end, logits_scale, SOFTCAP, MASKED
        )
        highest = tl.maximum(highest, values)
        lowest = tl.minimum(lowest, tl.where(values > -float("inf"), values, float("inf")))
    maximum = tl.max(highest, 0)
    mass = tl.zeros([BLOCK], tl.float32)
    if tl.abs(maximum) < float("inf"):
        for first in range(start, end, BLOCK):
            token_ids = first + tl.arange(0, BLOCK)
            values = load_logits(
                place, words, token_ids, token_ids < end, logits_scale, SOFTCAP, MASKED
            )
            mass += tl.exp((values - maximum) / temperature)
    tl.store(part_maxima + row * PARTS + part, maximum)
    tl.store(part_minima + row * PARTS + part, tl.min(lowest, 0))
    tl.store(part_masses + row * PARTS + part, tl.sum(mass, 0))


@triton.jit
def _look_above(pivot, candidates, num_candidates, BLOCK: tl.constexpr):
    """How many candidates lie above the pivot, their mass, that of those at the pivot, the lowest
    above it, and the highest of the others."""
    counts = tl.zeros([BLOCK], tl.int32)
    masses = tl.zeros([BLOCK], tl.float32)
    masses_at = tl.zeros([BLOCK], tl.float32)
    lowest = tl.full([BLOCK], float("inf"), tl.float32)
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    for first in range(0, num_candidates, BLOCK):
        places = first + tl.arange(0, BLOCK)
        exists = places < num_candidates
        scores = tl.load(candidates + places, mask=exists, other=-float("inf"))
        mass = tl.exp(scores)
        is_above = scores > pivot
        counts += is_above.to(tl.int32)
        masses += tl.where(is_above, mass, 0.0)
        masses_at += tl.where(scores == pivot, mass, 0.0)
        lowest = tl.minimum(lowest, tl.where(is_above, scores, float("inf")))
        highest = tl.maximum(highest, tl.where(is_above, -float("inf"), scores))
    return (
        tl.sum(counts, 0),
        tl.sum(masses, 0),
        tl.sum(masses_at, 0),
        tl.min(lowest, 0),
        tl.max(highest, 0),
    )


@triton.jit
def _find_edges(
    logits,
    words,
    mask_rows,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    all_part_maxima,
    part_minima,
    part_masses,
    all_candidates,
    maxima,
    edges,
    vocab_size,
    num_parts,
    logits_stride,
    mask_stride,
    part_size,
    logits_scale,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0)
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    edge = tl.load(min_ps + row)
    tl.store(maxima + row, 0.0)
    tl.store(edges + row, -float("inf"))
    truncates = (top_k > 0) | (top_p < 1.0) | (edge > -float("inf"))
    if (temperature == 0.0) | (not truncates):
        return
    parts = tl.arange(0, PARTS)
    exists = parts < num_parts
    part_maxima = all_part_maxima + row * num_parts
    tops = tl.load(part_maxima + parts, mask=exists, other=-float("inf"))
    maximum = tl.max(tops, 0)
    if tl.abs(maximum) == float("inf"):
        # Not finite, which whoever chooses finds out.
        return
    tops = (tops - maximum) / temperature
    masses = tl.load(part_masses + row * num_parts + parts, mask=exists, other=0.0)
    mass = tl.sum(masses * tl.exp(tops), 0)
    has_top_k = (top_k > 0) & (top_k < vocab_size)
    bottom = edge
    if has_top_k:
        # Each of so many parts has a token from here up.
        is_higher = tops[None, :] > tops[:, None]
        ranks = tl.sum(is_higher.to(tl.int32), 1)
        bottom = tl.min(tl.where(exists & (ranks < top_k), tops, 0.0), 0)
        if top_k > num_parts:
            lows = tl.load(part_minima + row * num_parts + parts, mask=exists, other=float("inf"))
            bottom = (tl.min(lows, 0) - maximum) / temperature
    elif top_p < 1.0:
        # All tokens below this together hold less than is left out; a little room for rounding.
        bottom = tl.maximum(tl.log((1.0 - top_p) * mass / vocab_size) - 0.01, edge)
    if has_top_k | (top_p < 1.0):
        place = logits + row.to(tl.int64) * logits_stride
        candidates = all_candidates + row.to(tl.int64) * vocab_size
        if MASKED:
            words += tl.load(mask_rows + row).to(tl.int64) * mask_stride
        num_candidates = 0
        for part in range(num_parts):
            if (tl.load(part_maxima + part) - maximum) / temperature >= bottom:
                start = part * part_size
                end = tl.minimum(start + part_size, vocab_size)
                for first in range(start, end, BLOCK):
                    token_ids = first + tl.arange(0, BLOCK)
                    values = load_logits(
                        place, words, token_ids, token_ids < end, logits_scale, SOFTCAP, MASKED
                    )
                    scores = (values - maximum) / temperature
                    is_candidate = (scores >= bottom) & (scores > -float("inf"))
                    counted = is_candidate.to(tl.int32)
                    places = num_candidates + tl.cumsum(counted, 0) - 1
                    tl.store(candidates + places, scores, mask=is_candidate)
                    num_candidates += tl.sum(counted, 0)
        # What one thread wrote, others read.
        tl.debug_barrier()
        low = bottom
        if has_top_k:
            high = 0.0
            while low < high:
                pivot = (low + high) * 0.5
                pivot = tl.where(pivot < high, pivot, low)
                count, _, _, lowest, highest = _look_above(pivot, candidates, num_candidates, BLOCK)
                low = tl.where(count >= top_k, lowest, low)
                high = tl.where(count >= top_k, high, highest)
            edge = tl.maximum(edge, low)
        if top_p < 1.0:
            if has_top_k:
                _, above, at, _, _ = _look_above(low, candidates, num_candidates, BLOCK)
                mass = above + at
            high = 0.0
            while low < high:
                pivot = (low + high) * 0.5
                pivot = tl.where(pivot < high, pivot, low)
                _, above, _, lowest, highest = _look_above(pivot, candidates, num_candidates, BLOCK)
                low = tl.where(above >= top_p * mass, lowest, low)
                high = tl.where(above >= top_p * mass, high, highest)
            edge = tl.maximum(edge, low)
    tl.store(maxima + row, maximum)
    tl.store(edges + row, edge)


def find_edges(rows: LogitRows, temperatures: torch.Tensor, truncation: Truncation) -> Edges:
    """Finds what top-k, then top-p, then min-p leave of each row; ties at an edge stay together.

    Args:
        rows: the logits.
        temperatures: [num_rows], float32; a row with 0 is greedy, and keeps everything.
        truncation: of each row.
    """
    num_rows, num_parts = len(rows.logits), rows.num_parts

    def scratch(*shape: int) -> torch.Tensor:
        # Each by itself: slices of one would begin elsewhere for other numbers of rows, and kernels
        # are compiled anew for that.
        return torch.empty(shape, dtype=torch.float32, device=rows.logits.device)

    part_maxima, part_minima, part_masses = (scratch(num_rows, num_parts) for _ in range(3))
    edges = Edges(scratch(num_rows), scratch(num_rows))
    candidates = scratch(num_rows, rows.vocab_size)
    _survey[(num_parts, num_rows)](
        rows.logits,
        rows.words,
        rows.mask_rows,
        temperatures,
        truncation.top_ks,
        truncation.top_ps,
        truncation.min_ps,
        part_maxima,
        part_minima,
        part_masses,
        rows.vocab_size,
        rows.logits.stride(0),
        rows.mask_stride,
        rows.part_size,
        rows.scale,
        SOFTCAP=rows.softcap,
        MASKED=rows.is_masked,
        BLOCK=_BLOCK,
        PARTS=num_parts,
        num_warps=4,
        enable_fp_fusion=False,
    )
    _find_edges[(num_rows,)](
        rows.logits,
        rows.words,
        rows.mask_rows,
        temperatures,
        truncation.top_ks,
        truncation.top_ps,
        truncation.min_ps,
        part_maxima,
        part_minima,
        part_masses,
        candidates,
        edges.maxima,
        edges.lowest,
        rows.vocab_size,
        num_parts,
        rows.logits.stride(0),
        rows.mask_stride,
        rows.part_size,
        rows.scale,
        SOFTCAP=rows.softcap,
        MASKED=rows.is_masked,
        BLOCK=_SEARCH_BLOCK,
        PARTS=max(16, triton.next_power_of_2(num_parts)),
        num_warps=8,
        enable_fp_fusion=False,
    )
    return edges

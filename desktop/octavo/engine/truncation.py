"""Which tokens may be drawn: top-k, top-p, min-p and XTC over tempered logits."""

import math
from collections.abc import Sequence

import torch

from octavo.engine.sampling_params import SamplingParams

_CANDIDATES = (64, 1024, 16384)
"""Truncation looks at this many of the likeliest tokens before it sorts the whole vocabulary."""


def likeliest(
    scores: torch.Tensor, params: Sequence[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What top-k, then top-p, then min-p leave: scores, likeliest first, and their token ids.

    Left-out candidates have -inf. Each step finds a lowest score per row instead of a set, so
    that ties at the edge stay together and the result does not hang on how they were ordered.
    Few candidates are enough for most rows; the vocabulary is sorted only if they are not.

    Args:
        scores: [num_rows, vocab_size], float32.
        params: one per row; each truncates, for the others would need every candidate.

    Returns:
        Two tensors, [num_rows, num_candidates].

    Source of top-p: Holtzman et al. 2019, arXiv:1904.09751, section 3.1; of min-p: Nguyen et al.
    2024, arXiv:2407.01082, section 3.
    """
    device, vocab_size = scores.device, scores.shape[-1]
    top_ks = [item.top_k if 0 < item.top_k < vocab_size else vocab_size for item in params]
    top_k = torch.tensor(top_ks, device=device).unsqueeze(1)
    top_p = column([item.top_p for item in params], device)
    min_p = column([math.log(item.min_p) if item.min_p else -math.inf for item in params], device)
    has_top_k = top_k < vocab_size
    total = scores.logsumexp(-1, keepdim=True)
    for width in (*(size for size in _CANDIDATES if size < vocab_size), vocab_size):
        ordered, token_ids = scores.topk(width)
        last = ordered[:, -1:]
        top_k_edge = ordered.gather(-1, top_k.clamp(max=width) - 1)
        top_k_edge = top_k_edge.masked_fill(~has_top_k, -math.inf)
        kept = ordered.masked_fill(ordered < top_k_edge, -math.inf)
        mass = torch.where(has_top_k, kept.logsumexp(-1, keepdim=True), total)
        cumulative = (kept - mass).exp().cumsum(-1)
        top_p_edge = ordered.gather(-1, (cumulative < top_p).sum(-1, True).clamp(max=width - 1))
        # A row with top_p = 1 keeps everything, whatever rounding made of its sum.
        top_p_edge = top_p_edge.masked_fill(top_p >= 1.0, -math.inf)
        edge = top_k_edge.maximum(top_p_edge).maximum(ordered[:, :1] + min_p)
        is_complete = (last < edge) & ((last < top_k_edge) | ~has_top_k)
        if width == vocab_size or bool(is_complete.all()):
            break
    return ordered.masked_fill(ordered < edge, -math.inf), token_ids


def exclude_top_choices(
    scores: torch.Tensor,
    token_ids: torch.Tensor,
    thresholds: Sequence[float],
    protected: frozenset[int],
) -> None:
    """XTC: removes, in place, the tokens above a row's threshold but for the least likely of them.

    Ties with that one stay. A row from which a protected token would go keeps everything: the
    source spares the end of text so, and the newline, which has no special rank here.

    Args:
        scores: [num_rows, num_candidates], float32; -inf: left out.
        token_ids: [num_rows or 1, num_candidates].
        thresholds: probabilities, one per row; a row with 1 or more keeps everything.
        protected: token ids.

    Source: p-e-w 2024, github.com/oobabooga/text-generation-webui, pull request 6335.
    """
    edge = scores.logsumexp(-1, keepdim=True)
    edge += column([math.log(value) for value in thresholds], scores.device)
    least = scores.masked_fill(scores < edge, math.inf).amin(-1, keepdim=True)
    # A row with no token above its threshold has inf for the least of them.
    leaves = (scores > least) & least.isfinite()
    if protected:
        spared = torch.tensor(sorted(protected), device=scores.device)
        leaves &= ~(leaves & torch.isin(token_ids, spared)).any(-1, keepdim=True)
    scores.masked_fill_(leaves, -math.inf)


def column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """[num_rows, 1], float32."""
    return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)

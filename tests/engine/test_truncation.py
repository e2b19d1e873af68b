"""Truncation and XTC against plain loops, over random rows with ties and impossible tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.sampling_params import SamplingParams
from octavo.engine.truncation import exclude_top_choices, likeliest

# Few values, so that there are ties; some tokens cannot come at all.
SCORES = st.lists(
    st.sampled_from([-math.inf, -4.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=90
).filter(lambda row: max(row) > -math.inf)
PARAMS = st.builds(
    SamplingParams,
    top_k=st.sampled_from([0, 1, 2, 5, 63, 64, 65, 200]),
    top_p=st.sampled_from([0.01, 0.3, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)


def kept_by_definition(scores: list[float], params: SamplingParams) -> set[int]:
    """Top-k, then top-p over what is left, then min-p; a tie at an edge stays."""
    possible = [score for score in scores if score > -math.inf]
    edge = sorted(possible)[-params.top_k] if 0 < params.top_k <= len(possible) else min(possible)
    kept = [i for i, score in enumerate(scores) if score > -math.inf and score >= edge]
    if params.top_p < 1.0:
        total = math.fsum(math.exp(scores[i]) for i in kept)
        levels = sorted({scores[i] for i in kept}, reverse=True)
        mass, edge = 0.0, levels[0]
        for level in levels:
            edge = level
            mass += sum(math.exp(level) for i in kept if scores[i] == level) / total
            if mass >= params.top_p:
                break
        kept = [i for i in kept if scores[i] >= edge]
    least = max(scores) + (math.log(params.min_p) if params.min_p else -math.inf)
    return {i for i in kept if scores[i] >= least}


def kept(scores: torch.Tensor, token_ids: torch.Tensor) -> set[int]:
    return set(token_ids[scores > -math.inf].tolist())


@settings(max_examples=400, deadline=None)
@given(rows=st.lists(st.tuples(SCORES, PARAMS), min_size=1, max_size=4))
def test_truncation_as_defined(rows: list[tuple[list[float], SamplingParams]]) -> None:
    width = max(len(scores) for scores, _ in rows)
    padded = [scores + [-math.inf] * (width - len(scores)) for scores, _ in rows]
    found, token_ids = likeliest(torch.tensor(padded), [params for _, params in rows])
    for row, (scores, params) in enumerate(rows):
        assert kept(found[row], token_ids[row]) == kept_by_definition(scores, params)
        for score, token_id in zip(found[row].tolist(), token_ids[row].tolist(), strict=True):
            assert score in (-math.inf, padded[row][token_id])


@pytest.mark.parametrize("vocab_size", [1025, 20_000])
@pytest.mark.parametrize("top_p", [0.5, 0.999])
def test_wide_nuclei_are_whole(vocab_size: int, top_p: float) -> None:
    scores = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1)) * 0.5
    found, token_ids = likeliest(scores, [SamplingParams(top_p=top_p)] * 3)
    for row in range(3):
        probabilities = scores[row].double().softmax(-1).numpy()
        order = np.argsort(-probabilities)
        count = int((np.cumsum(probabilities[order]) < top_p).sum()) + 1
        assert len(kept(found[row], token_ids[row])) == pytest.approx(count, abs=2)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(
        st.tuples(SCORES, st.sampled_from([0.001, 0.05, 0.1, 0.3, 0.5, 1.0])),
        min_size=1,
        max_size=4,
    ),
    protected=st.frozensets(st.integers(0, 89), max_size=3),
)
def test_xtc_as_defined(rows: list[tuple[list[float], float]], protected: frozenset[int]) -> None:
    width = max(len(scores) for scores, _ in rows)
    scores = torch.tensor([row + [-math.inf] * (width - len(row)) for row, _ in rows])
    before = scores.clone()
    token_ids = torch.arange(width).unsqueeze(0)
    exclude_top_choices(scores, token_ids, [threshold for _, threshold in rows], protected)
    for row, (_, threshold) in enumerate(rows):
        total = before[row].double().exp().sum().item()
        values = before[row].tolist()
        above = [i for i, one in enumerate(values) if math.exp(one) / total >= threshold - 1e-9]
        gone = {i for i in above if values[i] > min(values[j] for j in above)}
        if gone & protected:
            gone = set()
        expected = {i for i, one in enumerate(values) if one > -math.inf} - gone
        assert kept(scores[row], token_ids[0]) == expected

"""Sampling against plain numpy, and its promise: batch mates and preemption change nothing."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from octavo.engine.sampler import Sampler, gumbel_noise
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.errors import EngineError
from tests.support.tiny_decoders import make_sequence

Array = npt.NDArray[Any]
VOCAB = 40


def random_logits(num_rows: int, seed: int = 0, vocab_size: int = VOCAB) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 2


def sample(
    logits: torch.Tensor, *sequences: TokenSequence, stops: tuple[int, ...] = ()
) -> list[int]:
    sampler = Sampler(logits.shape[-1], frozenset(stops))
    return sampler.sample(logits.clone(), sequences).token_ids


def draw_many(logits: torch.Tensor, count: int = 4000, **sampling: Any) -> Array:
    """How often each token comes up over many seeds."""
    sequences = [make_sequence(i, [0], seed=i, **sampling) for i in range(count)]
    tokens = sample(logits.expand(count, -1), *sequences)
    return np.bincount(tokens, minlength=logits.shape[-1])


def expected_probabilities(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Array:
    """The same steps, token by token."""
    scores = logits.double().numpy() / temperature
    order = sorted(range(len(scores)), key=lambda token_id: -scores[token_id])
    kept = order[:top_k] if top_k > 0 else order
    weights = np.exp(scores[kept] - scores.max())
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities) - probabilities
    nucleus = [token_id for token_id, mass in zip(kept, before, strict=True) if mass < top_p]
    final = np.zeros(len(scores))
    for token_id in nucleus:
        weight = math.exp(scores[token_id] - scores.max())
        if weight >= min_p:
            final[token_id] = weight
    result: Array = final / final.sum()
    return result


def assert_distributed(counts: Array, probabilities: Array) -> None:
    """A chi-square test at about one in a hundred thousand, seeds being fixed."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    large = expected >= 5
    chi_square = ((counts[large] - expected[large]) ** 2 / expected[large]).sum()
    degrees = max(1, large.sum() - 1)
    assert chi_square < degrees + 4.5 * math.sqrt(2 * degrees) + 8


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": VOCAB + 10},
        {"top_p": 0.6},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_distribution(sampling: dict[str, Any]) -> None:
    logits = random_logits(1, seed=5)
    assert_distributed(draw_many(logits, **sampling), expected_probabilities(logits[0], **sampling))


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1e-40},
        {"temperature": 1.5, "top_k": 8},
        {"temperature": 0.9, "top_p": 0.85},
        {"temperature": 1.4, "min_p": 0.2},
    ],
)
@pytest.mark.parametrize("vocab_size", [2, 7, 70])
def test_distribution_with_ties_and_impossible_tokens(
    sampling: dict[str, Any], vocab_size: int
) -> None:
    logits = random_logits(1, seed=vocab_size, vocab_size=vocab_size)
    # No ties among the survivors' edge: there the reference, which counts, differs on purpose.
    logits[0, 1::5] = -math.inf
    logits[0, 0] = logits.max() + 0.5
    expected = expected_probabilities(logits[0], **sampling)
    assert_distributed(draw_many(logits, **sampling), expected)


@pytest.mark.parametrize("truncation", [{}, {"top_k": 20}, {"min_p": 0.01}])
@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_xtc_distribution(truncation: dict[str, Any], probability: float) -> None:
    logits = random_logits(1, seed=3)
    plain = expected_probabilities(logits[0], **truncation)
    threshold = float(np.sort(plain)[-4] * 0.99)
    excluded = plain.copy()
    excluded[np.argsort(-plain)[:3]] = 0.0
    expected = (1 - probability) * plain + probability * excluded / excluded.sum()
    xtc: dict[str, Any] = {"xtc_probability": probability, "xtc_threshold": threshold}
    assert_distributed(draw_many(logits, **truncation, **xtc), expected)
    stop = int(np.argmax(plain))
    sequences = [make_sequence(i, [0], seed=i, **truncation, **xtc) for i in range(4000)]
    spared = sample(logits.expand(4000, -1), *sequences, stops=(stop,))
    assert_distributed(np.bincount(spared, minlength=VOCAB), plain)


def test_xtc_leaves_greedy_alone() -> None:
    logits = random_logits(1)
    sequence = make_sequence(0, [0], temperature=0, xtc_probability=1.0, xtc_threshold=0.001)
    assert sample(logits, sequence) == logits.argmax(-1).tolist()


def test_the_coin_of_xtc_says_nothing_about_the_draw() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    xtc: dict[str, Any] = {"xtc_probability": 0.5, "xtc_threshold": 0.16}
    counts = draw_many(logits, **xtc)
    plain = expected_probabilities(logits[0])
    expected = 0.5 * plain + 0.5 * np.array([0, 0, 0.5, 0.5])
    assert_distributed(counts, expected)


@pytest.mark.parametrize("penalty", [1e-300, 100.0])
def test_no_parameter_makes_an_infinity(penalty: float) -> None:
    logits = random_logits(1)
    params: dict[str, Any] = {"repetition_penalty": penalty, "temperature": 1e-300}
    assert sample(logits, make_sequence(0, list(range(VOCAB)), **params))


def test_top_p_over_a_flat_vocabulary() -> None:
    logits = torch.arange(5000).flip(0)[None] * 1e-4
    counts = draw_many(logits, count=300, top_p=0.8)
    kept = np.flatnonzero(expected_probabilities(logits[0], top_p=0.8))
    assert set(np.flatnonzero(counts)) <= set(kept)
    assert np.flatnonzero(counts).max() > 2000


def test_ties_at_the_edge_stay_together() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert set(np.flatnonzero(draw_many(logits, count=200, top_k=2))) == {0, 1, 2}


def test_greedy_is_argmax() -> None:
    logits = random_logits(8)
    sequences = [make_sequence(i, [0], temperature=0) for i in range(8)]
    assert sample(logits, *sequences) == logits.argmax(-1).tolist()


def test_batch_mates_and_order_change_nothing() -> None:
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_p": 0.7, "temperature": 1.5},
        {"top_k": 3, "temperature": 2.0},
        {},
        {"min_p": 0.02, "temperature": 3.0},
        {"frequency_penalty": 1.0, "repetition_penalty": 1.3},
        {"logit_bias": {3: 5.0}, "temperature": 0.7},
        {"xtc_probability": 0.5, "xtc_threshold": 0.02, "temperature": 2.0},
        {"xtc_probability": 0.5, "xtc_threshold": 0.02, "top_k": 9},
        {"allowed_token_ids": (4, 5, 6), "temperature": 2.0},
    ] * 5
    sequences = [
        make_sequence(i, [1, 2, 3, i % VOCAB], seed=i, **item) for i, item in enumerate(options)
    ]
    logits = random_logits(len(sequences), seed=2)
    together = sample(logits, *sequences)
    alone = [sample(logits[row : row + 1], sequence)[0] for row, sequence in enumerate(sequences)]
    assert together == alone
    assert sample(logits.flip(0), *reversed(sequences)) == alone[::-1]


def test_seed_and_position_decide() -> None:
    logits = torch.zeros(1, VOCAB)
    first = sample(logits, make_sequence(0, [1, 2], seed=7))
    assert first == sample(logits, make_sequence(9, [5, 6], seed=7))
    drawn = {sample(logits, make_sequence(0, [1] * n, seed=7))[0] for n in range(1, 60)}
    assert len(drawn) > 20
    assert sample(logits, make_sequence(0, [1, 2], seed=-1))
    assert sample(logits, make_sequence(0, [1, 2], seed=2**64 - 1))


def test_neighbouring_seeds_and_positions_are_unrelated() -> None:
    tokens = [
        sample(torch.zeros(1, 2), make_sequence(0, [1] * position, seed=seed))[0]
        for seed in range(40)
        for position in range(1, 11)
    ]
    ones = sum(tokens)
    repeats = sum(a == b for a, b in itertools.pairwise(tokens))
    assert abs(ones - 200) < 50
    assert abs(repeats - 200) < 50


def test_noise_is_gumbel() -> None:
    noise = gumbel_noise([1, 2**63 + 5], torch.arange(50_000))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.02


def test_penalties() -> None:
    logits = random_logits(1, seed=9)
    sequence = make_sequence(
        0,
        [3, 4, 4],
        temperature=0,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        logprobs=0,
    )
    for token_id in (4, 8, 8, 8):
        sequence.append_token(token_id)
    expected = logits[0].double().numpy().copy()
    for token_id in (3, 4, 8):
        expected[token_id] *= 1.5 if expected[token_id] <= 0 else 1 / 1.5
    expected[4] -= 0.25 + 0.5
    expected[8] -= 0.25 + 3 * 0.5
    changed = logits.clone()
    Sampler(VOCAB).sample(changed, [sequence])
    np.testing.assert_allclose(changed[0].numpy(), expected, rtol=1e-5)


def test_logit_bias() -> None:
    logits = random_logits(2)
    biased = make_sequence(0, [0], temperature=0, logit_bias={17: 100.0})
    plain = make_sequence(1, [0], temperature=0)
    assert sample(logits, biased, plain) == [17, int(logits[1].argmax())]


def test_min_tokens_masks_stop_ids() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5], logits[0, 6], logits[0, 7] = 3.0, 2.0, 1.0
    sequence = make_sequence(0, [0], temperature=0, min_tokens=1, stop_token_ids=(6,))
    assert sample(logits, sequence, stops=(5,)) == [7]
    sequence.append_token(7)
    assert sample(logits, sequence, stops=(5,)) == [5]


def test_logprobs_are_of_the_raw_model() -> None:
    logits = random_logits(3)
    options: dict[str, Any] = {"temperature": 0, "logit_bias": {2: 90.0}}
    sequences = [
        make_sequence(0, [0], logprobs=3, **options),
        make_sequence(1, [0], **options),
        make_sequence(2, [0], logprobs=0, **options),
    ]
    sampled = Sampler(VOCAB).sample(logits.clone(), sequences)
    assert sampled.token_ids == [2, 2, 2]
    assert sampled.logprobs.keys() == {0, 2}
    expected = logits[0].log_softmax(-1)
    assert sampled.logprobs[0].token_id == 2
    assert sampled.logprobs[0].logprob == pytest.approx(expected[2].item(), abs=1e-5)
    top = expected.topk(3)
    assert [token_id for token_id, _ in sampled.logprobs[0].top] == top.indices.tolist()
    assert [value for _, value in sampled.logprobs[0].top] == pytest.approx(top.values.tolist())
    assert sampled.logprobs[2].top == ()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(broken: float, temperature: float) -> None:
    logits = random_logits(2)
    logits[1, 3] = broken
    sequences = [make_sequence(i, [0], temperature=temperature) for i in range(2)]
    with pytest.raises(EngineError, match="not finite"):
        sample(logits, *sequences)


def test_no_rows() -> None:
    assert sample(torch.empty(0, VOCAB)) == []

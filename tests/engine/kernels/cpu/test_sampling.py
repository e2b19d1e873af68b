"""Tokens that the kernels choose are those of the sampler."""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from octavo.engine.kernels.cpu import sampling, step_words, truncation
from octavo.engine.kernels.cpu.program import Words
from octavo.engine.kernels.cpu.step_arrays import StepArrays
from octavo.engine.sampler import Sampler, draw_temperature, gumbel_noise, noise_key
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.engine.token_masks import TokenMasks
from octavo.engine.truncation import likeliest
from tests.engine.kernels.cpu.operations import run_operations
from tests.support.tiny_decoders import make_sequence

VOCAB_SIZES = [37, 64, 2500, 4097, 10_007, 49_152]
TRUNCATIONS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 1000},
    {"top_k": 10**6},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_p": 0.9999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.95},
    {"top_k": 300, "top_p": 0.6, "min_p": 0.02},
    {"top_p": 0.95, "min_p": 0.3},
    {"top_k": 0, "top_p": 1.0},
]


class Choice:
    """The operations that choose tokens, over logits of their own."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.num_rows, self.vocab_size = num_rows, vocab_size = logits.shape
        self.parts = -(-vocab_size // sampling.PART_SIZE)
        self.lowest = torch.full((num_rows,), math.nan)
        self.words: Words = {
            sampling.LOGITS: logits.clone(),
            sampling.VOCAB_SIZE: vocab_size,
            sampling.NUM_PARTS: self.parts,
            sampling.PART_SCORES: torch.zeros(num_rows, self.parts),
            sampling.PART_TOKENS: torch.zeros(num_rows, self.parts, dtype=torch.int64),
            sampling.BEST_SCORES: torch.zeros(num_rows),
            # What nobody writes must not count.
            sampling.GROUP_SCORES: torch.full(
                (num_rows, self.parts * sampling.PART_GROUPS), math.nan
            ),
            sampling.PART_MASSES: torch.full((num_rows, self.parts), math.nan),
            sampling.LOWEST_SCORES: self.lowest,
        }

    def run(
        self,
        temperatures: Sequence[float],
        keys: Sequence[int],
        cuts: Sequence[tuple[int, float, float]] = (),
        masks: Sequence[Any] = (),
    ) -> list[int]:
        step = StepArrays(1, 1, self.num_rows)
        step.want_tokens(temperatures, keys, cuts, masks)
        run_operations(
            [
                (sampling.find_likeliest, step_words.NUM_CHOICES, self.parts),
                (sampling.take_likeliest, step_words.NUM_CHOICES, 1),
                (truncation.weigh_parts, step_words.NUM_CUTS, self.parts),
                (truncation.find_lowest_scores, step_words.NUM_CUTS, 1),
                (sampling.draw_parts, step_words.NUM_DRAWS, self.parts),
                (sampling.take_drawn, step_words.NUM_DRAWS, 1),
            ],
            self.words,
            step,
            scratch_bytes=max(sampling.SCRATCH_BYTES, truncation.scratch_bytes(self.vocab_size)),
        )
        found: list[int] = step.chosen.tolist()
        return found


def choose(logits: torch.Tensor, temperatures: list[float], keys: list[int]) -> list[int]:
    return Choice(logits).run(temperatures, keys)


def choose_for(
    logits: torch.Tensor, sequences: list[TokenSequence], masks: Sequence[Any] = ()
) -> list[int]:
    """As `ModelRunner` asks for it."""
    params = [one.sampling_params for one in sequences]
    keys = [noise_key(one.seed, one.num_tokens) for one in sequences]
    cuts = [(max(one.top_k, 0), one.top_p, one.min_p) for one in params]
    return Choice(logits).run([draw_temperature(one) for one in params], keys, cuts, masks)


def sample(logits: torch.Tensor, sequences: list[TokenSequence]) -> list[int]:
    return Sampler(logits.shape[1]).sample(logits.clone(), sequences).token_ids


def twin(logits: torch.Tensor, temperatures: list[float], keys: list[int]) -> list[int]:
    """As `Sampler` does it."""
    noise = gumbel_noise(keys, torch.arange(logits.shape[1]).unsqueeze(0))
    scores = logits - logits.max(-1, keepdim=True).values
    return [
        int((row / temperature + one).argmax() if temperature else row.argmax())
        for row, one, temperature in zip(scores, noise, temperatures, strict=True)
    ]


def logits_of_kind(kind: str, num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """As models make them: peaked, nearly flat, with ties as half precision has, with gaps."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    if kind == "peaked":
        return logits * 4
    if kind == "flat":
        return logits * 0.01
    if kind == "equal":
        return torch.full_like(logits, -3.5)
    if kind == "tied":
        return (logits * 3).round(decimals=0) / 2
    if kind == "one candidate":
        logits[:] = -math.inf
        logits[:, vocab_size // 2] = 1.0
        return logits
    logits[:, 1::3] = -math.inf
    return logits * 2


KINDS = ["peaked", "flat", "equal", "tied", "one candidate", "with gaps"]


@pytest.mark.parametrize("vocab_size", [37, 4096, 10_007, 32_000])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 30.0])
def test_tokens_are_those_of_the_sampler(vocab_size: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = spread * torch.randn(9, vocab_size, generator=generator)
    temperatures = [0.0, 0.7, 1.0, 0.0, 1e-6, 2.0, 0.3, 5.0, 1.0]
    keys = [noise_key(7, position) for position in range(9)]
    assert choose(logits, temperatures, keys) == twin(logits, temperatures, keys)
    assert choose(logits, [0.0] * 9, keys) == logits.argmax(-1).tolist()


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(4000, 1)
    keys = [noise_key(11, position) for position in range(4000)]
    counts = np.bincount(choose(logits, [1.0] * 4000, keys), minlength=4)
    expected = logits[0].softmax(-1).numpy()
    # Three standard deviations.
    assert (np.abs(counts / 4000 - expected) < 3 * np.sqrt(expected / 4000)).all()


def kept_by_likeliest(scores: torch.Tensor, params: SamplingParams) -> set[int]:
    kept, token_ids = likeliest(scores.unsqueeze(0), [params])
    return set(token_ids[0, kept[0] > -math.inf].tolist())


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_much_is_left_as_the_sampler_leaves(vocab_size: int, kind: str) -> None:
    params = [SamplingParams(**one) for one in TRUNCATIONS]
    logits = logits_of_kind(kind, len(params), vocab_size, seed=vocab_size)
    temperatures = [1.0, 0.7, 1.3, 0.9, 1.0, 1.0, 1.5, 0.6, 1.0, 0.8, 1.0, 1.0, 1.0]
    choice = Choice(logits)
    cuts = [(one.top_k, one.top_p, one.min_p) for one in params]
    choice.run(temperatures, list(range(len(params))), cuts)
    for row, one in enumerate(params):
        scores = (logits[row] - logits[row].max()) / temperatures[row]
        lowest = float(choice.lowest[row])
        found = set(torch.nonzero((scores >= lowest) & (scores > -math.inf)).flatten().tolist())
        if not one.truncates:
            assert lowest == -math.inf
            continue
        expected = kept_by_likeliest(scores, one)
        if found != expected:
            # The sum up to some token is top_p in one order of additions, and not in another.
            allowed = kept_by_likeliest(scores, SamplingParams(top_k=one.top_k or vocab_size))
            weights = scores.double().exp()
            smaller = sorted(found & expected)
            assert smaller in (sorted(found), sorted(expected))
            share = float(weights[smaller].sum() / weights[sorted(allowed)].sum())
            assert share == pytest.approx(one.top_p, abs=1e-4)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_sampler_where_some_are_left_out(
    vocab_size: int, kind: str
) -> None:
    choices = random.Random(vocab_size)
    sequences = [
        make_sequence(
            row,
            [0],
            seed=row,
            temperature=choices.choice([0.0, 0.3, 0.8, 1.0, 1.7, 100.0, 1e-40]),
            **TRUNCATIONS[row % len(TRUNCATIONS)],
        )
        for row in range(2 * len(TRUNCATIONS))
    ]
    logits = logits_of_kind(kind, len(sequences), vocab_size)
    found, expected = choose_for(logits, sequences), sample(logits, sequences)
    # A token may lie where the sum is just top_p.
    num_others = sum(one != other for one, other in zip(found, expected, strict=True))
    assert num_others <= (1 if vocab_size > 2500 else 0), (found, expected)


def test_draws_have_the_distribution_that_is_left() -> None:
    logits = logits_of_kind("peaked", 1, 40)
    params: dict[str, Any] = {"top_k": 12, "top_p": 0.9, "temperature": 1.5}
    count = 2000
    sequences = [make_sequence(row, [0], seed=row, **params) for row in range(count)]
    found = choose_for(logits.expand(count, -1).contiguous(), sequences)
    scores = (logits[0] - logits[0].max()) / 1.5
    kept = sorted(kept_by_likeliest(scores, SamplingParams(**params)))
    assert set(found) <= set(kept)
    expected = scores[kept].double().softmax(0).numpy() * count
    counts = np.array([found.count(token_id) for token_id in kept])
    large = expected >= 5
    chi_square = ((counts[large] - expected[large]) ** 2 / expected[large]).sum()
    assert chi_square < 3 * large.sum() + 10


def test_a_draw_does_not_depend_on_its_mates() -> None:
    logits = logits_of_kind("tied", len(TRUNCATIONS), 5000)
    sequences = [
        make_sequence(row, [0], seed=row, temperature=1.2, **one)
        for row, one in enumerate(TRUNCATIONS)
    ]
    together = choose_for(logits, sequences)
    alone = [choose_for(logits[row : row + 1], [one])[0] for row, one in enumerate(sequences)]
    assert together == alone
    assert together == choose_for(logits, sequences)


def test_seeds_draw_differently() -> None:
    logits = logits_of_kind("flat", 1, 300).repeat(20, 1)
    sequences = [make_sequence(row, [0], seed=row, top_p=0.95) for row in range(20)]
    assert len(set(choose_for(logits, sequences))) > 10


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 63, 4095, 4096, 4999])
@pytest.mark.parametrize("cut", [{}, {"top_k": 5, "top_p": 0.9}, {"top_p": 0.9}])
def test_a_row_that_is_not_finite_is_marked(
    value: float, place: int, cut: dict[str, float]
) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    logits[1, place] = value
    for temperature in (0.0, 1.0):
        sequences = [
            make_sequence(row, [0], seed=row, temperature=temperature, **cut) for row in range(3)
        ]
        found = choose_for(logits, sequences)
        assert found[1] == sampling.NOT_FINITE
        assert found[0] >= 0
        assert found[2] >= 0


def test_a_token_with_no_probability_does_not_come_and_a_row_of_them_is_marked() -> None:
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1))
    logits[0, :4990] = -math.inf
    logits[1] = -math.inf
    for temperature in (0.0, 5.0):
        found = choose(logits, [temperature] * 2, [1, 2])
        assert found == [found[0], sampling.NOT_FINITE]
        assert found[0] >= 4990


MASKED: list[dict[str, Any]] = [
    {"allowed_token_ids": (3, 64, 65, 99), "temperature": 1.0},
    {"allowed_token_ids": (5, 8), "temperature": 0.0},
    {"min_tokens": 1, "stop_token_ids": tuple(range(40)), "temperature": 0.0},
    {"min_tokens": 1, "stop_token_ids": (1, 2), "top_k": 4},
    {"temperature": 1.0},
    {"allowed_token_ids": tuple(range(0, 99, 2)), "top_p": 0.7, "min_p": 0.01},
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vocab_size", [100, 4130])
def test_masked_tokens_do_not_come(seed: int, vocab_size: int) -> None:
    stops = frozenset({2, 50})
    logits = logits_of_kind("peaked", len(MASKED), vocab_size, seed)
    sequences = [make_sequence(row, [0], seed=seed, **one) for row, one in enumerate(MASKED)]
    host = TokenMasks(vocab_size, stops)
    words: dict[int, Any] = {}
    for row, sequence in enumerate(sequences):
        sequence.row = row
    numbers = [host.number(one, 0, words) for one in sequences]
    masks = [words[number] if number else None for number in numbers]
    expected = Sampler(vocab_size, stops).sample(logits.clone(), sequences).token_ids
    assert choose_for(logits, sequences, masks) == expected

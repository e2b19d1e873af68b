"""Tokens chosen on the device against the host's sampler, whose noise is the same."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_decoders import make_sequence
from tests.support.triton_device import DEVICE, DTYPES, cases

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.kernels.triton.row_logits import LogitRows, TokenMasks  # isort: skip
from octavo.engine.kernels.triton.sampling import NOT_FINITE, choose_tokens  # isort: skip
from octavo.engine.kernels.triton.truncation import Truncation, find_edges  # isort: skip
from octavo.engine.sampler import Sampler, draw_temperature, noise_key  # isort: skip
from octavo.engine.sampling_params import SamplingParams  # isort: skip
from octavo.engine.sequence import Sequence as TokenSequence  # isort: skip
from octavo.engine.token_masks import TokenMasks as HostMasks  # isort: skip
from octavo.engine.truncation import likeliest  # isort: skip

VOCAB_SIZES = cases([90, 2500], on_card=[211, 32_000, 128_256, 151_936, 262_144])


def logits_of_kind(kind: str, num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Rows as models make them: peaked, nearly flat, with ties as half precision has, with gaps."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    if kind == "peaked":
        return logits * 4
    if kind == "flat":
        return logits * 0.01
    if kind == "tied":
        return (logits * 3).round(decimals=0) / 2
    logits[:, 1::3] = -math.inf
    return logits * 2


KINDS = ["peaked", "flat", "tied", "with gaps"]
TRUNCATIONS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"top_p": 0.9999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.95},
    {"top_k": 300, "top_p": 0.6, "min_p": 0.02},
    {"top_k": 0, "top_p": 1.0},
]


def on_device(params: list[SamplingParams]) -> Truncation:
    min_ps = [math.log(one.min_p) if one.min_p else -math.inf for one in params]
    return Truncation(
        torch.tensor([max(one.top_k, 0) for one in params], dtype=torch.int32, device=DEVICE),
        torch.tensor([one.top_p for one in params], dtype=torch.float32, device=DEVICE),
        torch.tensor(min_ps, dtype=torch.float32, device=DEVICE),
    )


def choose(
    logits: torch.Tensor,
    sequences: list[TokenSequence],
    *,
    masks: TokenMasks | None = None,
    **options: Any,
) -> list[int]:
    params = [one.sampling_params for one in sequences]
    keys = [noise_key(one.seed, one.num_tokens) for one in sequences]
    signed = np.array(keys, dtype=np.uint64).view(np.int64)
    found = torch.zeros(len(sequences), dtype=torch.int32, device=DEVICE)
    choose_tokens(
        LogitRows(logits.to(DEVICE), masks=masks, **options),
        torch.tensor([draw_temperature(one) for one in params], device=DEVICE),
        torch.from_numpy(signed).to(DEVICE),
        found,
        truncation=on_device(params) if any(one.truncates for one in params) else None,
    )
    token_ids: list[int] = found.tolist()
    return token_ids


def sample(logits: torch.Tensor, sequences: list[TokenSequence]) -> list[int]:
    return Sampler(logits.shape[1]).sample(logits.float().clone(), sequences).token_ids


def kept_by_likeliest(scores: torch.Tensor, params: SamplingParams) -> set[int]:
    kept, token_ids = likeliest(scores.unsqueeze(0), [params])
    return set(token_ids[0, kept[0] > -math.inf].tolist())


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_much_is_left_as_the_host_leaves(vocab_size: int, kind: str) -> None:
    params = [SamplingParams(**one) for one in TRUNCATIONS]
    logits = logits_of_kind(kind, len(params), vocab_size, seed=vocab_size)
    temperatures = torch.tensor([1.0, 0.7, 1.3, 0.9, 1.0, 1.5, 0.6, 1.0, 0.8, 1.0, 1.0])
    edges = find_edges(LogitRows(logits.to(DEVICE)), temperatures.to(DEVICE), on_device(params))
    for row, one in enumerate(params):
        maximum, lowest = float(edges.maxima[row]), float(edges.lowest[row])
        scores = (logits[row].to(DEVICE) - maximum) / float(temperatures[row])
        found = set(torch.nonzero((scores >= lowest) & (scores > -math.inf)).flatten().tolist())
        if not one.truncates:
            assert lowest == -math.inf
            continue
        scores = (logits[row] - logits[row].max()) / temperatures[row]
        expected = kept_by_likeliest(scores, one)
        if found != expected:
            # The sum up to some token is top_p in one order of additions, and not in another.
            allowed = kept_by_likeliest(scores, SamplingParams(top_k=max(one.top_k, 0) or 1))
            weights = scores.double().exp()
            total = weights[sorted(allowed)].sum() if one.top_k > 0 else weights.sum()
            smaller = sorted(found & expected)  # One holds the other.
            assert float(weights[smaller].sum() / total) == pytest.approx(one.top_p, abs=1e-4)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_those_of_the_host(vocab_size: int, kind: str, dtype: torch.dtype) -> None:
    choices = random.Random(vocab_size)
    sequences = [
        make_sequence(
            row,
            [0],
            seed=row,
            temperature=choices.choice([0.0, 0.3, 0.8, 1.0, 1.7, 1e-40]),
            **TRUNCATIONS[row % len(TRUNCATIONS)],
        )
        for row in range(2 * len(TRUNCATIONS))
    ]
    logits = logits_of_kind(kind, len(sequences), vocab_size).to(dtype)
    found, expected = choose(logits, sequences), sample(logits, sequences)
    # Two candidates may differ in their last bit, or a token lie where the sum is just top_p.
    num_others = sum(one != other for one, other in zip(found, expected, strict=True))
    assert num_others <= (1 if vocab_size > 2500 else 0), (found, expected)


@pytest.mark.gpu
def test_draws_have_the_distribution_that_is_left() -> None:
    logits = logits_of_kind("peaked", 1, 40)
    params: dict[str, Any] = {"top_k": 12, "top_p": 0.9, "temperature": 1.5}
    count = 600
    sequences = [make_sequence(row, [0], seed=row, **params) for row in range(count)]
    found = choose(logits.expand(count, -1).contiguous(), sequences)
    scores = (logits[0] - logits[0].max()) / 1.5
    kept = sorted(kept_by_likeliest(scores, SamplingParams(**params)))
    assert set(found) <= set(kept)
    expected = scores[kept].double().softmax(0).numpy() * count
    counts = np.array([found.count(token_id) for token_id in kept])
    large = expected >= 5
    chi_square = ((counts[large] - expected[large]) ** 2 / expected[large]).sum()
    assert chi_square < 3 * large.sum() + 10


def test_a_draw_does_not_depend_on_its_mates() -> None:
    logits = logits_of_kind("tied", 9, 300)
    sequences = [
        make_sequence(row, [0], seed=row, temperature=1.2, **TRUNCATIONS[row]) for row in range(9)
    ]
    together = choose(logits, sequences)
    alone = [choose(logits[row : row + 1], [one])[0] for row, one in enumerate(sequences)]
    assert together == alone


@pytest.mark.parametrize("truncation", [{}, {"top_k": 5, "top_p": 0.9}])
def test_rows_that_are_not_finite_are_told(truncation: dict[str, Any]) -> None:
    logits = logits_of_kind("peaked", 4, 100)
    logits[0, 7], logits[1, 99], logits[2, 3] = math.nan, math.inf, -math.inf
    sequences = [make_sequence(row, [0], seed=row, **truncation) for row in range(4)]
    found = choose(logits, sequences)
    assert found[:2] == [NOT_FINITE, NOT_FINITE]
    assert min(found[2:]) >= 0


def test_scale_and_cap_come_before_the_draw() -> None:
    logits = logits_of_kind("peaked", 6, 500) * 10
    sequences = [
        make_sequence(row, [0], seed=row, top_p=0.8, temperature=float(row % 3)) for row in range(6)
    ]
    capped = 30 * torch.tanh(logits * 0.5 / 30)
    assert choose(logits, sequences, scale=0.5, softcap=30.0) == sample(capped, sequences)


MASKED: list[dict[str, Any]] = [
    {"allowed_token_ids": (3, 64, 65, 99), "temperature": 1.0},
    {"allowed_token_ids": (5, 8), "temperature": 0.0},
    {"min_tokens": 1, "stop_token_ids": tuple(range(40)), "temperature": 0.0},
    {"min_tokens": 1, "stop_token_ids": (1, 2), "top_k": 4},
    {"temperature": 1.0},
    {"allowed_token_ids": tuple(range(0, 99, 2)), "top_p": 0.7, "min_p": 0.01},
]


@pytest.mark.parametrize("seed", range(3))
def test_masked_tokens_do_not_come(seed: int) -> None:
    vocab_size, stops = 100, frozenset({2, 50})
    logits = logits_of_kind("peaked", len(MASKED), vocab_size, seed)
    sequences = [make_sequence(row, [0], seed=seed, **one) for row, one in enumerate(MASKED)]
    host = HostMasks(vocab_size, stops)
    words: dict[int, Any] = {}
    for row, sequence in enumerate(sequences):
        sequence.row = row
    rows = [host.number(one, 0, words) for one in sequences]
    bank = torch.full((1 + len(rows), 4), -1, dtype=torch.int32)
    for number, mask in words.items():
        bank[number] = torch.from_numpy(mask)
    masks = TokenMasks(bank.to(DEVICE), torch.tensor(rows, dtype=torch.int32, device=DEVICE))
    expected = Sampler(vocab_size, stops).sample(logits.clone(), sequences).token_ids
    assert choose(logits, sequences, masks=masks) == expected

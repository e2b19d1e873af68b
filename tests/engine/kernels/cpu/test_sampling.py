"""Tokens that the kernels choose are those of the sampler."""

import math

import numpy as np
import pytest
import torch

from octavo.engine.kernels.cpu import sampling, step_words
from octavo.engine.kernels.cpu.program import Words
from octavo.engine.sampler import gumbel_noise, noise_key
from tests.engine.kernels.cpu.operations import run_operations


def choose(logits: torch.Tensor, temperatures: list[float], keys: list[int]) -> list[int]:
    num_rows, vocab_size = logits.shape
    parts = -(-vocab_size // sampling.PART_SIZE)
    words: Words = {
        sampling.LOGITS: logits,
        sampling.VOCAB_SIZE: vocab_size,
        sampling.NUM_PARTS: parts,
        sampling.PART_SCORES: torch.zeros(num_rows, parts),
        sampling.PART_TOKENS: torch.zeros(num_rows, parts, dtype=torch.int64),
        sampling.BEST_SCORES: torch.zeros(num_rows),
    }
    chosen = np.zeros(num_rows, dtype=np.int64)
    tempered, noise_keys = np.array(temperatures, np.float32), np.array(keys, np.uint64)
    run_operations(
        [
            (sampling.find_likeliest, step_words.NUM_CHOICES, parts),
            (sampling.take_likeliest, step_words.NUM_CHOICES, 1),
            (sampling.draw_parts, step_words.NUM_DRAWS, parts),
            (sampling.take_drawn, step_words.NUM_DRAWS, 1),
        ],
        words,
        {
            step_words.NUM_CHOICES: num_rows,
            step_words.NUM_DRAWS: num_rows if any(temperatures) else 0,
            step_words.CHOSEN: chosen.ctypes.data,
            step_words.TEMPERATURES: tempered.ctypes.data,
            step_words.NOISE_KEYS: noise_keys.ctypes.data,
        },
    )
    found: list[int] = chosen.tolist()
    return found


def twin(logits: torch.Tensor, temperatures: list[float], keys: list[int]) -> list[int]:
    """As `Sampler` does it."""
    noise = gumbel_noise(keys, torch.arange(logits.shape[1]).unsqueeze(0))
    scores = logits - logits.max(-1, keepdim=True).values
    return [
        int((row / temperature + one).argmax() if temperature else row.argmax())
        for row, one, temperature in zip(scores, noise, temperatures, strict=True)
    ]


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 4095, 4096, 4999])
def test_a_row_that_is_not_finite_is_marked(value: float, place: int) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    logits[1, place] = value
    for temperatures in ([0.0] * 3, [1.0] * 3):
        found = choose(logits, temperatures, [1, 2, 3])
        assert found[1] == sampling.NOT_FINITE
        assert found[0] >= 0
        assert found[2] >= 0

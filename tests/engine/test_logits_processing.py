"""Masks on a row of logits; penalties are tested through the sampler."""

import math
from typing import Any, cast

import pytest
import torch

from octavo.engine.logits_processing import process_logits
from octavo.engine.sequence import Sequence
from octavo.engine.token_rules import TokenRules
from tests.support.tiny_decoders import make_sequence

VOCAB = 12


class Words:
    """Rules with bad words given in tokens."""

    def __init__(self, *bad_words: tuple[int, ...]) -> None:
        self.bad_words = bad_words


def sequence_after(output: list[int], *bad_words: tuple[int, ...], **sampling: Any) -> Sequence:
    words: dict[str, Any] = {"bad_words": ("word",)} if bad_words else {}
    sequence = make_sequence(0, [1, 2], **words, **sampling)
    sequence.token_rules = cast("TokenRules", Words(*bad_words))
    for token_id in output:
        sequence.append_token(token_id)
    return sequence


def left_of(sequence: Sequence, stops: tuple[int, ...] = ()) -> set[int]:
    logits = torch.linspace(-1, 1, VOCAB)[None].clone()
    before = logits.clone()
    process_logits(logits, [sequence], frozenset(stops))
    kept = logits > -math.inf
    assert torch.equal(logits[kept], before[kept])
    return set(torch.nonzero(kept[0]).flatten().tolist())


def test_only_allowed_tokens_are_left() -> None:
    assert left_of(sequence_after([], allowed_token_ids=(3, 3, 7))) == {3, 7}


def test_min_tokens_counts_inside_the_allowed() -> None:
    held: dict[str, Any] = {"allowed_token_ids": (3, 7, 8), "stop_token_ids": (7,), "min_tokens": 2}
    assert left_of(sequence_after([3], **held), stops=(8,)) == {3}
    assert left_of(sequence_after([3, 3], **held), stops=(8,)) == {3, 7, 8}


@pytest.mark.parametrize(
    ("output", "gone"),
    [
        ([], {5}),
        ([3], {5, 4}),
        ([9, 3], {5, 4, 10}),
        ([3, 9], {5}),
        ([3, 4], {5}),
    ],
)
def test_the_last_token_of_a_bad_word_goes(output: list[int], gone: set[int]) -> None:
    sequence = sequence_after(output, (5,), (3, 4), (9, 3, 10))
    assert left_of(sequence) == set(range(VOCAB)) - gone


def test_the_prompt_does_not_begin_a_bad_word() -> None:
    assert left_of(sequence_after([], (2, 6))) == set(range(VOCAB))


def test_something_must_come() -> None:
    sequence = sequence_after([3], (3, 4), (3, 5), allowed_token_ids=(4, 5))
    assert left_of(sequence) == {4, 5}


def test_rows_that_ask_for_nothing_are_untouched() -> None:
    logits = torch.randn(3, VOCAB)
    before = logits.clone()
    asking = sequence_after([], allowed_token_ids=(3,))
    silent = make_sequence(1, [1], temperature=0.5, top_k=2, xtc_probability=1.0)
    process_logits(logits, [silent, asking, silent], frozenset({1}))
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert not torch.equal(logits[1], before[1])

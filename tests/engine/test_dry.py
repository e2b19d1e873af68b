"""DRY against its definition, token by token."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.dry import dry_penalties
from octavo.engine.sequence import Sequence
from octavo.engine.token_rules import TokenRules
from tests.support.tiny_decoders import make_sequence


@dataclass
class Breakers:
    """Rules that know their breakers by id."""

    ids: frozenset[int]

    def is_breaker(self, token_id: int) -> bool:
        return token_id in self.ids


def sequence_of(tokens: list[int], breakers: frozenset[int], **sampling: Any) -> Sequence:
    sequence = make_sequence(0, tokens[:1], **{"dry_multiplier": 0.8, **sampling})
    for token_id in tokens[1:]:
        sequence.append_token(token_id)
    sequence.token_rules = cast("TokenRules", Breakers(breakers))
    return sequence


def by_definition(
    tokens: list[int], breakers: frozenset[int], allowed: int, base: float, last: int
) -> dict[int, float]:
    """The loops of the source."""
    tokens = tokens[-last:] if last else tokens
    longest: dict[int, int] = {}
    if tokens[-1] in breakers:
        return {}
    for place in range(len(tokens) - 1):
        follows = tokens[place + 1]
        length = 0
        while (
            length <= place
            and length < allowed + 50
            and tokens[place - length] == tokens[-1 - length]
            and tokens[place - length] not in breakers
        ):
            length += 1
        if length >= allowed and follows not in breakers:
            longest[follows] = max(longest.get(follows, 0), length)
    return {
        token_id: min(0.8 * base ** (length - allowed), 1e4) for token_id, length in longest.items()
    }


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    breakers=st.frozensets(st.integers(0, 4), max_size=2),
    allowed=st.integers(1, 4),
    base=st.floats(1.0, 3.0),
    last=st.integers(0, 45),
)
def test_as_defined(
    tokens: list[int], breakers: frozenset[int], allowed: int, base: float, last: int
) -> None:
    sequence = sequence_of(
        tokens, breakers, dry_allowed_length=allowed, dry_base=base, dry_range=last
    )
    token_ids, penalties = dry_penalties(sequence)
    expected = by_definition(tokens, breakers, allowed, base, last)
    assert sorted(token_ids.tolist()) == sorted(expected)
    found = dict(zip(token_ids.tolist(), penalties.tolist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_endless_loop_is_cheap_and_finite() -> None:
    sequence = sequence_of([1, 2] * 4000, frozenset(), dry_base=10.0, dry_multiplier=100.0)
    token_ids, penalties = dry_penalties(sequence)
    assert token_ids.tolist() == [1]
    assert penalties.tolist() == [1e4]
    assert penalties.dtype == np.float32


def test_nothing_repeats_in_one_token() -> None:
    token_ids, penalties = dry_penalties(sequence_of([3], frozenset()))
    assert token_ids.tolist() == penalties.tolist() == []

"""Literal tokens: the leftmost, the longest of several, and what they do to their neighbours."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.literal_tokens import LiteralTokens, Manners


def found(*tokens: str, **manners: Manners) -> LiteralTokens:
    return LiteralTokens({token: i for i, token in enumerate(tokens)}, manners)


@given(
    st.lists(st.text("ab<|", min_size=1, max_size=4), unique=True, max_size=8),
    st.text("ab<| ", max_size=30),
)
def test_it_cuts_as_alternatives_sorted_by_length(tokens: list[str], text: str) -> None:
    pieces = found(*tokens).split(text)
    expected: list[str | int] = []
    done = 0
    alternatives = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    for match in re.finditer(alternatives, text) if tokens else ():
        expected += [text[done : match.start()], tokens.index(match[0])]
        done = match.end()
    assert pieces == [piece for piece in [*expected, text[done:]] if piece != ""]


def test_starts_overlap() -> None:
    assert list(found("aa", "ab").starts("aaab")) == [0, 1, 2]
    assert list(found().starts("aaab")) == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("x  A \n y", ["x  ", 0, " \n y"]),
        ("x  L y", ["x", 1, " y"]),
        ("x R \u3000\ty", ["x ", 2, "y"]),
        ("R L", [2, 1]),
        ("x\x1fL R\x1fy", ["x\x1f", 1, " ", 2, "\x1fy"]),
        ("W W1 xW W_ W, éW W\u0301 W", [3, " W1 xW W_ ", 3, ", éW W\u0301 ", 3]),
    ],
)
def test_manners(text: str, pieces: list[str | int]) -> None:
    tokens = found(
        *"ALRW",
        L=Manners(strips_left=True),
        R=Manners(strips_right=True),
        W=Manners(is_whole_word=True),
    )
    assert tokens.split(text) == pieces


def test_thousands_of_tokens_cost_no_more_than_one() -> None:
    """Gemma 3 has more than six thousand that begin alike."""
    tokens = found(*(f"<unused{number}>" for number in range(6000)))
    text = "<p>a < b</p>" * 20_000
    start = time.monotonic()
    assert tokens.split(text) == [text]
    assert time.monotonic() - start < 5

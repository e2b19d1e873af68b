"""Titles, and metrics as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.chats.message import (
    MAX_TITLE_CHARACTERS,
    metrics_from_json,
    metrics_to_json,
    title_from,
)
from tests.chats.fake_model import METRICS


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Hello", "Hello"),
        ("  \n\n  Second   line \n third", "Second line"),
        ("", ""),
        (
            "Why is the sky blue and the sunset red, and what does dust do?",
            "Why is the sky blue and the sunset red, and what…",
        ),
        ("Why is the sky blue and the sunset red, really, today?", None),
        ("x" * 100, "x" * MAX_TITLE_CHARACTERS + "…"),
        ("a " + "x" * 100, "a " + "x" * (MAX_TITLE_CHARACTERS - 2) + "…"),
        ("y" * MAX_TITLE_CHARACTERS, "y" * MAX_TITLE_CHARACTERS),
    ],
)
def test_title(text: str, title: str | None) -> None:
    made = title_from(text)
    if title is not None:
        assert made == title
    assert len(made) <= MAX_TITLE_CHARACTERS + 1


@given(st.text())
def test_title_is_one_short_line(text: str) -> None:
    title = title_from(text)
    assert len(title) <= MAX_TITLE_CHARACTERS + 1
    assert len(title.splitlines()) <= 1
    assert bool(title) == bool(text.strip())


def test_metrics_come_back() -> None:
    assert metrics_from_json(metrics_to_json(METRICS)) == METRICS


def test_metrics_of_other_versions() -> None:
    values = json.loads(metrics_to_json(METRICS))
    assert metrics_from_json(json.dumps(values | {"joules": 3})) == METRICS
    del values["total_s"]
    assert metrics_from_json(json.dumps(values)) is None
    assert metrics_from_json("[]") is None

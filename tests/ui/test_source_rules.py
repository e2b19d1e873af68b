"""Rules for the text of `ui/` that no linter knows."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import octavo.ui

UI = Path(octavo.ui.__file__).parent
COLOUR_FILES = {UI / "tokens.py"}
LONGEST_FILE = 500


def lines() -> Iterator[tuple[Path, int, str]]:
    for path in UI.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            yield path, number, line


@pytest.mark.parametrize("pattern", [r"\.exec_?\(", r"processEvents"])
def test_no_nested_event_loops(pattern: str) -> None:
    """They lose the wake-ups of every coroutine; `open` and await instead."""
    found = [f"{path.name}:{n}: {line}" for path, n, line in lines() if re.search(pattern, line)]
    assert found == []


def test_colours_are_named_in_the_tokens_only() -> None:
    literal = re.compile(
        r"#[0-9A-Fa-f]{6}\b|#[0-9A-Fa-f]{3}\b|\brgba?\(|GlobalColor\.(?!transparent)"
    )
    found = [
        f"{path.name}:{number}: {line}"
        for path, number, line in lines()
        if path not in COLOUR_FILES and literal.search(line)
    ]
    assert found == []


def test_the_window_of_pages_knows_no_page_from_within() -> None:
    source = (UI / "main_window.py").read_text(encoding="utf-8")
    for word in ("download", "prompt", "markdown", "quantis", "temperature"):
        assert word not in source.lower()


def test_files_stay_readable() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in UI.rglob("*.py")}
    assert {path.name: size for path, size in sizes.items() if size > LONGEST_FILE} == {}

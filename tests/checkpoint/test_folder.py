"""Model folders: what they are called."""

from pathlib import Path

import pytest

from octavo.checkpoint.folder import FolderHeader


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("models/SmolLM2", "SmolLM2"),
        ("hub/models--org--Some-Model/snapshots/0123abcd", "Some-Model"),
        ("hub/models--org--A--B/snapshots/0123abcd", "A--B"),
        ("hub/models--gpt2/snapshots/0123abcd", "gpt2"),
        ("snapshots/tiny", "tiny"),
        ("hub/datasets--org--name/snapshots/0123abcd", "0123abcd"),
    ],
)
def test_title(path: str, title: str) -> None:
    assert FolderHeader(Path(path), {"model_type": "llama"}, {}, {}).title == title

"""The report of an error card: all that is ours, and nothing that somebody wrote."""

import logging
from pathlib import Path

import pytest

from octavo.errors import (
    ChatTemplateError,
    CheckpointError,
    DownloadError,
    InsufficientMemoryError,
    OctavoError,
)
from octavo.log import setup_logging
from octavo.ui.error_report import describe_error, make_error_report


def caused(error: OctavoError, cause: BaseException) -> OctavoError:
    error.__cause__ = cause
    return error


def test_numbers_and_next_step_are_in_it() -> None:
    error = InsufficientMemoryError(
        "Needs 17.2 GiB, 15.4 GiB are free.",
        needed_bytes=18_468_398_694,
        free_bytes=16_535_624_089,
        hint="Use a shorter context.",
    )
    assert describe_error(error).splitlines() == [
        "InsufficientMemoryError: Needs 17.2 GiB, 15.4 GiB are free.",
        "Use a shorter context.",
        "needed_bytes: 18468398694",
        "free_bytes: 16535624089",
    ]


def test_causes_are_named_and_the_systems_words_kept() -> None:
    disk = OSError(28, "No space left on device", "/models/x.part")
    error = caused(CheckpointError("x.gguf is damaged.", path=Path("/models/x.gguf")), disk)
    assert describe_error(error).splitlines() == [
        "CheckpointError: x.gguf is damaged.",
        "path: /models/x.gguf",
        "Cause: OSError: No space left on device: /models/x.part",
    ]


def quote() -> None:
    raise ValueError("Dear Ada, the secret is 42.")


def test_what_other_code_says_is_left_out() -> None:
    with pytest.raises(ValueError, match="42") as quoting:
        quote()
    refused = "The model's chat template refuses these messages: Dear Ada, the secret is 42."
    error = caused(ChatTemplateError(refused, hint="Change them."), quoting.value)
    report = describe_error(error)
    assert "Ada" not in report
    assert "refuses these messages: [the template's own words are left out]" in report
    assert "Cause: ValueError in quote, line " in report


def test_keys_and_the_home_folder_are_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("octavo").level
    try:
        setup_logging(tmp_path / "octavo.log")
        logging.getLogger("octavo.hub").warning("asked with hf_abcdefghijkl in /home/ada/models")
        error = DownloadError("https://ada:pw@proxy.example refused Bearer abcdefgh12345678.")
        report = make_error_report(error)
    finally:
        for handler in set(root.handlers) - set(before[0]):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before[1])
        logging.getLogger("octavo").setLevel(before[2])
        logging.captureWarnings(False)
    for secret in ("hf_abcdefghijkl", "/home/ada", "ada:pw", "abcdefgh12345678"):
        assert secret not in report
    assert "asked with [key] in ~/models" in report
    assert "https://proxy.example refused Bearer [key]" in report

"""Help texts of man-page grade: examples that parse, defaults that are the real ones."""

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from octavo.cli.main import split_opened
from octavo.cli.parsers import make_parser
from octavo.cli.parsers.manual import ENVIRONMENT
from octavo.cli.window import absolute
from octavo.settings import ChatDefaults, EngineSettings, Server
from tests.cli.conftest import Cli

SETTINGS = {
    "temperature": ChatDefaults().temperature,
    "top_p": ChatDefaults().top_p,
    "device": EngineSettings().device,
    "dtype": EngineSettings().dtype,
    "max_num_seqs": EngineSettings().max_num_seqs,
    "port": Server().port,
}


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    """Every verb; names of groups of verbs, as `models`, are not among them."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


VERBS = verb_parsers()


def examples(text: str) -> list[str]:
    """The command lines that a help text shows."""
    part = text.split("\nexamples:\n")[1].split("\n\n")[0]
    return [re.split(r"\s{2,}", line.strip())[0] for line in part.splitlines()]


def octavo_calls(command: str) -> Iterator[list[str]]:
    """The arguments of each `octavo` in a shell's line."""
    for part in re.split(r"\s\|\s", command):
        words = shlex.split(re.split(r"\s[<>]\s", part)[0])
        while words and "=" in words[0]:
            words.pop(0)
        if words and words[0] == "octavo":
            yield words[1:]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_a_manual_says(cli: Cli, verb: str) -> None:
    text = cli(verb, "--help").out
    assert text.startswith(f"usage: octavo {verb} ")
    for heading in ("examples:", "exit status:", "files and environment:", "$OCTAVO_HOME"):
        assert f"\n{heading}\n" in text or f"  {heading} " in text, heading
    assert VERBS[verb].description
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_examples_are_command_lines_that_parse(cli: Cli, verb: str) -> None:
    text = cli(*([verb] if verb else []), "--help").out
    calls = [call for line in examples(text) for call in octavo_calls(line)]
    assert calls
    for call in calls:
        arguments, _opened = split_opened(call)
        make_parser().parse_args(arguments)
        if verb:
            assert arguments[0] == verb


@pytest.mark.parametrize("verb", VERBS)
def test_documented_defaults_are_the_real_ones(verb: str) -> None:
    for action in VERBS[verb]._actions:
        text = action.help or ""
        if isinstance(action, argparse._HelpAction):
            continue
        assert text, f"{verb}: {action.dest} says nothing"
        stated = re.search(r"default: ([^;,]+)", text)
        if stated is not None and action.default not in (None, False):
            assert stated[1].strip() == str(action.default), f"{verb}: {action.dest}"
        of_settings = re.search(r"default: the settings' \(([^()]+)\)", text)
        if of_settings is not None and action.dest in SETTINGS:
            assert of_settings[1] == str(SETTINGS[action.dest]), f"{verb}: {action.dest}"


def test_options_with_a_default_show_it(cli: Cli) -> None:
    text = cli("bench", "--help").out
    assert re.search(r"--prompt-tokens N .*default: 512", text)
    assert re.search(r"--streams \[N \.\.\.\] .*default: 1 8\b", text)


def test_the_environment_is_told_at_the_top(cli: Cli) -> None:
    text = cli("--help").out
    for name in ENVIRONMENT:
        assert text.count(f"  ${name} ") == 1


@pytest.mark.parametrize(
    ("arguments", "rest", "opened"),
    [
        (["a/b.GGUF"], [], "a/b.GGUF"),
        (
            ["--verbose", "https://huggingface.co/ORG/NAME"],
            ["--verbose"],
            "https://huggingface.co/ORG/NAME",
        ),
        (["b.gguf", "--verbose"], ["--verbose"], "b.gguf"),
        (["run", "b.gguf"], ["run", "b.gguf"], ""),
        (["list"], ["list"], ""),
        ([], [], ""),
    ],
)
def test_a_file_without_a_verb_is_for_the_window(
    arguments: list[str], rest: list[str], opened: str
) -> None:
    assert split_opened(arguments) == (rest, opened)


def test_a_path_is_made_whole_and_an_address_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert absolute("a.gguf").endswith("/a.gguf")
    assert absolute("a.gguf").startswith("/")
    assert absolute("https://hub/ORG/NAME") == "https://hub/ORG/NAME"
    assert absolute("") == ""

"""A command line in this process: arguments and standard input in, output and status out."""

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from octavo.cli.main import run
from octavo.paths import AppPaths
from tests.support.gguf_files import write_tiny_llama


@dataclass(frozen=True)
class Outcome:
    """What a person sees."""

    status: int
    out: str
    err: str


Cli = Callable[..., Outcome]


class Terminal(io.StringIO):
    """Standard input that claims to be a person's."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def cli(
    paths: AppPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cli]:
    handlers = list(logging.getLogger().handlers)

    def call(*arguments: str | Path, stdin: str | None = None) -> Outcome:
        monkeypatch.setattr("sys.stdin", Terminal() if stdin is None else io.StringIO(stdin))
        try:
            status = run([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(status, captured.out, captured.err)

    yield call
    for handler in logging.getLogger().handlers[:]:
        if handler not in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


@pytest.fixture
def tiny(paths: AppPaths) -> Path:
    """A tiny random model in the library."""
    paths.models_dir.mkdir(parents=True)
    return write_tiny_llama(paths.models_dir / "tiny.gguf")

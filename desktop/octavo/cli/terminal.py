"""What the verbs share on a terminal: progress line, tables, loading a model."""

import argparse
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Sequence

from octavo.core import Core
from octavo.errors import InvalidInputError, ModelNotFoundError
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.hub.starter import pull
from octavo.jobs import JobControl, Progress
from octavo.paths import AppPaths
from octavo.units import format_amount, format_bytes

BAR_WIDTH = 28
STARTER = "starter"
ENGINE_OPTIONS = (
    "device",
    "dtype",
    "weights",
    "kv_dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "cpu_threads",
)
"""Fields of `EngineConfig` that the command line can say; `parsers.manual.add_engine` adds them."""


class ProgressLine:
    """One line on standard error that is drawn anew; silent where that is not a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._drawn_at = 0.0
        self._stage = ""

    def show(self, progress: Progress) -> None:
        """Draws at most ten times a second, and each new stage."""
        now = time.monotonic()
        is_drawn = progress.stage == self._stage and now - self._drawn_at < 0.1
        if is_drawn or not self._is_terminal:
            return
        self._stage, self._drawn_at = progress.stage, now
        text = progress.stage
        if progress.fraction is not None and progress.total is not None:
            filled = round(progress.fraction * BAR_WIDTH)
            bar = "━" * filled + "─" * (BAR_WIDTH - filled)
            of = format_amount(progress.done, progress.total, progress.unit)
            text = f"{text}  {bar} {progress.fraction:4.0%}  {of}"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def note(self, sentence: str) -> None:
        """Leaves a sentence on a line of its own."""
        if self._is_terminal:
            print(sentence, file=sys.stderr)

    def clear(self) -> None:
        if self._is_terminal and self._stage:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self._stage = ""


def make_core(options: argparse.Namespace, paths: AppPaths) -> Core:
    """A core whose engine settings are the settings file's with the command line's on top."""
    names = (*ENGINE_OPTIONS, "waits_for_kernels")
    given = {name: getattr(options, name, None) for name in names}
    overrides = {name: value for name, value in given.items() if value is not None}
    core = Core(paths, engine_overrides=overrides)
    if core.settings_error is not None:
        print(f"octavo: {core.settings_error}", file=sys.stderr)
    return core


def find_model(core: Core, name: str) -> LibraryModel:
    """The model of that name or path; the starter model is fetched if it is not there yet.

    Raises:
        ModelNotFoundError, DownloadError, StorageError: as the library and the download say.
    """
    try:
        return core.library.find(name)
    except ModelNotFoundError:
        if name != STARTER:
            raise
    pull_starter(core)
    return core.library.find(STARTER)


def pull_starter(core: Core) -> None:
    """Downloads the starter model with a progress line."""
    line = ProgressLine()
    entry = core.starter
    print(
        f"Fetching {entry.title} ({format_bytes(entry.download_bytes)}, {entry.license}).",
        file=sys.stderr,
    )
    try:
        pull(entry, core.models_dir, core.paths.cache_dir, JobControl(line.show))
    finally:
        line.clear()


@contextlib.asynccontextmanager
async def loaded(core: Core, model: LibraryModel) -> AsyncGenerator[None, None]:
    """Loads a model with a progress line and closes everything afterwards."""
    line = ProgressLine()

    def show(state: HostState) -> None:
        if state.status is HostStatus.LOADING and state.progress is not None:
            line.show(state.progress)

    disconnect = core.host.state_changed.connect(show)
    try:
        try:
            await core.host.load(model)
        finally:
            line.clear()
            disconnect()
        report = core.host.state.report
        if report is not None and report.is_temporary:
            line.note(report.executor_reason)
        yield
    finally:
        await core.close()


def read_stdin() -> str | None:
    """What was piped in; None if standard input is a terminal or closed.

    Raises:
        InvalidInputError: it is not UTF-8 text.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"Standard input is not UTF-8 text (byte {error.start}).",
            hint="Convert it first, for example with iconv.",
        ) from error


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())

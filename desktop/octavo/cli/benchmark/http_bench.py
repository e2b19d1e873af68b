"""`octavo bench --http`: streaming clients of a server process, as a share of the engine's rate."""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from octavo.cli.benchmark.http_clients import HttpRun, stream_completions
from octavo.cli.benchmark.timed_run import (
    TimedRun,
    measured_sampling,
    random_prompts,
    time_prompts,
)
from octavo.cli.terminal import ENGINE_OPTIONS, ProgressLine, loaded, print_table
from octavo.core import Core
from octavo.errors import ServerError
from octavo.hub.library import LibraryModel
from octavo.jobs import Progress

_ADDRESS = re.compile(r"is served at http://([^:/]+):([0-9]+)/v1")


@dataclass(frozen=True, slots=True)
class HttpRow:
    """One number of clients; medians over the rounds."""

    clients: int
    engine_output_tokens_per_second: float
    """Of the same number of requests in this process, without the server."""
    http_output_tokens_per_second: float
    share: float
    """Of the second in the first, round by round."""
    engine_first_token_s: float
    """Of the request that waited longest, as the next."""
    http_first_token_s: float


class ServerProcess:
    """`octavo serve` in a process of its own, at a free port of this machine."""

    def __init__(self, model: Path, arguments: Sequence[str]) -> None:
        """Loads the model. Raises ServerError: it does not start; its own words are the cause."""
        # A file, because a pipe that nobody reads would fill up and stop the server.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "octavo", "serve", str(model), "--port", "0"]
        self._process = subprocess.Popen(  # noqa: S603
            [*command, "--api-key", "", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdout is not None
        found = _ADDRESS.search(self._process.stdout.readline())
        if found is None:
            self._process.wait()
            self._errors.seek(0)
            words = self._errors.read().strip() or "It said nothing."
            self._close()
            raise ServerError(
                f"The server to be measured did not start. {words}",
                hint="Try `octavo serve` with the same model.",
            )
        self.host, self.port = found[1], int(found[2])

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._close()

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def http_bench(options: argparse.Namespace, core: Core, model: LibraryModel) -> int:
    """Measures both in turn and prints the table."""
    rows, executor = asyncio.run(_measure(options, core, model))
    if options.json:
        content = {
            "model": model.name,
            "executor": executor,
            "prompt_tokens": options.prompt_tokens,
            "output_tokens": options.output_tokens,
            "rounds": options.repetitions,
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(content, indent=2))
        return 0
    print(f"{model.title} · {executor}, with and without the server")
    print_table(
        ("CLIENTS", "ENGINE tok/s", "HTTP tok/s", "SHARE", "FIRST TOKEN", "OVER HTTP"),
        [
            (
                str(row.clients),
                f"{row.engine_output_tokens_per_second:.1f}",
                f"{row.http_output_tokens_per_second:.1f}",
                f"{row.share:.1%}",
                f"{row.engine_first_token_s:.3f} s",
                f"{row.http_first_token_s:.3f} s",
            )
            for row in rows
        ],
    )
    print(
        f"{options.prompt_tokens} prompt and {options.output_tokens} output tokens a request, all"
        f" output tokens by the whole time; medians of {options.repetitions} rounds in turn. The"
        " clients run on this machine, too."
    )
    return 0


async def _measure(
    options: argparse.Namespace, core: Core, model: LibraryModel
) -> tuple[list[HttpRow], str]:
    line = ProgressLine()
    # The engine first: a server would answer before its kernels are compiled, and measure torch.
    async with loaded(core, model):
        assert core.host.state.report is not None
        line.show(Progress("Starting the server"))
        arguments = _engine_arguments(options)
        with await asyncio.to_thread(ServerProcess, model.path, arguments) as server:
            line.clear()
            rows = [await _row(core, server, clients, options) for clients in options.streams]
        return rows, core.host.state.report.executor


def _engine_arguments(options: argparse.Namespace) -> list[str]:
    """What was said about the engine, for the server's command line."""
    given = ((name, getattr(options, name)) for name in ENGINE_OPTIONS)
    return [
        word
        for name, value in given
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


async def _row(
    core: Core, server: ServerProcess, clients: int, options: argparse.Namespace
) -> HttpRow:
    line = ProgressLine()
    engine_runs: list[TimedRun] = []
    http_runs: list[HttpRun] = []
    params = measured_sampling(options)
    for number in range(options.repetitions + 1):
        line.show(Progress(f"{clients} clients, round {number} of {options.repetitions}"))
        prompts = random_prompts(core, clients, options.prompt_tokens)
        engine_run = await time_prompts(core, prompts, params)
        http_run = await stream_completions(server.host, server.port, prompts, params)
        if number:  # the first warms up
            engine_runs.append(engine_run)
            http_runs.append(http_run)
    line.clear()
    return HttpRow(
        clients,
        statistics.median(run.output_tokens_per_second for run in engine_runs),
        statistics.median(run.output_tokens_per_second for run in http_runs),
        statistics.median(
            http.output_tokens_per_second / engine.output_tokens_per_second
            for http, engine in zip(http_runs, engine_runs, strict=True)
        ),
        statistics.median(run.prefill_s for run in engine_runs),
        statistics.median(run.first_token_s for run in http_runs),
    )

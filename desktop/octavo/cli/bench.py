"""`octavo bench`: tokens per second and time to first token of a model on this machine."""

import argparse
import asyncio
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo.cli.benchmark.timed_run import (
    TimedRun,
    measured_sampling,
    random_prompts,
    time_prompts,
)
from octavo.cli.terminal import ProgressLine, find_model, loaded, make_core, print_table
from octavo.core import Core
from octavo.errors import InvalidInputError
from octavo.jobs import Progress
from octavo.paths import AppPaths
from octavo.units import format_bytes


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Medians over the repetitions of one number of streams."""

    streams: int
    prompt_tokens: int
    output_tokens: int
    repetitions: int
    time_to_first_token_s: float
    """Of the request that waited longest."""
    prefill_tokens_per_second: float
    """All prompt tokens by the time until every request had its first token."""
    decode_tokens_per_second: float
    """All streams together, after every request had its first token."""
    output_tokens_per_second: float
    """All output tokens by the whole wall time."""


def bench_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo bench [MODEL]`."""
    if options.tune:
        from octavo.cli.tune import tune

        return tune(options, paths)
    from octavo.cli.benchmark.dummy_file import DUMMY_FILE_FORMATS, dummy_file

    if options.dummy_weights and options.weight_format not in DUMMY_FILE_FORMATS:
        from octavo.cli.dummy_bench import dummy_bench

        return dummy_bench(options, paths)
    _check(options)
    core = make_core(options, paths)
    if not options.dummy_weights:
        return _measure(options, core, options.model)
    kept = Path(options.keep_file).expanduser() if options.keep_file else None
    with dummy_file(options.dummy_weights, options.weight_format, kept) as path:
        return _measure(options, core, str(path))


def _check(options: argparse.Namespace) -> None:
    for name in ("prompt_tokens", "output_tokens", "repetitions"):
        if getattr(options, name) < (2 if name == "output_tokens" else 1):
            raise InvalidInputError(f"--{name.replace('_', '-')} is {getattr(options, name)}.")
    if not options.streams or any(streams < 1 for streams in options.streams):
        raise InvalidInputError("--streams must hold numbers from 1 up.")
    if options.against and options.http:
        raise InvalidInputError(
            "--against and --http cannot be measured in one run.", hint="Leave one of them out."
        )
    if not measured_sampling(options).is_greedy and options.against:
        raise InvalidInputError(
            f"--temperature is {options.temperature:g}, but other programs are measured with 0.",
            hint="Leave out --against or the temperature.",
        )


def _measure(options: argparse.Namespace, core: Core, name: str) -> int:
    model = find_model(core, name)
    if options.against:
        from octavo.cli.benchmark.duel import duel

        return duel(options, core, model)
    if options.http:
        from octavo.cli.benchmark.http_bench import http_bench

        return http_bench(options, core, model)

    async def measure() -> list[BenchRow]:
        async with loaded(core, model):
            assert core.host.state.report is not None
            report = core.host.state.report
            if not options.json:
                print(
                    f"{model.title} · {report.plan.device.name} · {report.plan.dtype} ·"
                    f" {report.executor} · loaded in {report.load_s:.2f} s,"
                    f" {format_bytes(report.resident_growth_bytes)} in memory"
                )
            return [await _row(core, streams, options) for streams in options.streams]

    rows = asyncio.run(measure())
    if options.json:
        print(json.dumps({"model": model.name, "rows": [asdict(row) for row in rows]}, indent=2))
        return 0
    header = ("STREAMS", "FIRST TOKEN", "PREFILL tok/s", "DECODE tok/s", "OUTPUT tok/s")
    print_table(
        header,
        [
            (
                str(row.streams),
                f"{row.time_to_first_token_s:.3f} s",
                f"{row.prefill_tokens_per_second:.1f}",
                f"{row.decode_tokens_per_second:.1f}",
                f"{row.output_tokens_per_second:.1f}",
            )
            for row in rows
        ],
    )
    print(
        f"{options.prompt_tokens} prompt and {options.output_tokens} output tokens a request,"
        f" temperature {options.temperature:g}; median of {options.repetitions} after one warm-up."
    )
    return 0


async def _row(core: Core, streams: int, options: argparse.Namespace) -> BenchRow:
    runs: list[TimedRun] = []
    line = ProgressLine()
    params = measured_sampling(options)
    for repetition in range(options.repetitions + 1):
        stage = f"Measuring {streams} stream{'s' if streams > 1 else ''}"
        line.show(Progress(f"{stage}, run {repetition} of {options.repetitions}"))
        prompts = random_prompts(core, streams, options.prompt_tokens)
        run = await time_prompts(core, prompts, params)
        if repetition > 0:  # the first warms up
            runs.append(run)
    line.clear()
    return BenchRow(
        streams,
        options.prompt_tokens,
        options.output_tokens,
        options.repetitions,
        statistics.median(run.prefill_s for run in runs),
        statistics.median(run.prefill_tokens_per_second for run in runs),
        statistics.median(run.decode_tokens_per_second for run in runs),
        statistics.median(run.output_tokens_per_second for run in runs),
    )

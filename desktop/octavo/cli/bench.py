"""`octavo bench`: tokens per second and time to first token of a model on this machine."""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass

from octavo.cli.dummy_bench import dummy_bench
from octavo.cli.terminal import ProgressLine, find_model, loaded, make_core, print_table
from octavo.core import Core
from octavo.engine.request import RequestMetrics
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import EngineError, InvalidInputError
from octavo.jobs import Progress
from octavo.paths import AppPaths
from octavo.units import format_bytes

SINGLE_STREAM = 1


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
    if options.dummy_weights:
        return dummy_bench(options, paths)
    for name in ("prompt_tokens", "output_tokens", "repetitions"):
        if getattr(options, name) < (2 if name == "output_tokens" else 1):
            raise InvalidInputError(f"--{name.replace('_', '-')} is {getattr(options, name)}.")
    if any(streams < 1 for streams in options.streams):
        raise InvalidInputError("--streams must hold numbers from 1 up.")
    core = make_core(options, paths)
    model = find_model(core, options.model)
    if options.against:
        from octavo.cli.bench_against import bench_against

        return bench_against(options, core, model)

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
            counts = sorted({SINGLE_STREAM, *options.streams})
            return [await _measure(core, streams, options) for streams in counts]

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
        f"{options.prompt_tokens} prompt and {options.output_tokens} output tokens a request;"
        f" median of {options.repetitions} after one warm-up."
    )
    return 0


async def _measure(core: Core, streams: int, options: argparse.Namespace) -> BenchRow:
    line = ProgressLine()
    runs: list[BenchRow] = []
    for repetition in range(options.repetitions + 1):
        stage = f"Measuring {streams} stream{'s' if streams > 1 else ''}"
        line.show(Progress(f"{stage}, run {repetition} of {options.repetitions}"))
        run = await _run_once(core, streams, options)
        if repetition > 0:  # the first warms up
            runs.append(run)
    line.clear()

    def median(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    return BenchRow(
        streams,
        options.prompt_tokens,
        options.output_tokens,
        options.repetitions,
        median("time_to_first_token_s"),
        median("prefill_tokens_per_second"),
        median("decode_tokens_per_second"),
        median("output_tokens_per_second"),
    )


async def _run_once(core: Core, streams: int, options: argparse.Namespace) -> BenchRow:
    """Fresh random prompts in every run, so that no prefix is cached."""
    vocab_size = core.host.tokenizer.vocab_size
    prompts = [
        [random.randrange(vocab_size) for _ in range(options.prompt_tokens)]  # noqa: S311
        for _ in range(streams)
    ]
    params = SamplingParams(temperature=0.0, max_tokens=options.output_tokens, ignore_eos=True)
    started_at = time.perf_counter()
    metrics = await asyncio.gather(*(_complete(core, prompt, params) for prompt in prompts))
    wall_s = time.perf_counter() - started_at
    first_s = max(item.time_to_first_token_s for item in metrics)
    num_output = sum(item.output_tokens for item in metrics)
    return BenchRow(
        streams,
        options.prompt_tokens,
        options.output_tokens,
        1,
        time_to_first_token_s=first_s,
        prefill_tokens_per_second=streams * options.prompt_tokens / first_s,
        decode_tokens_per_second=(num_output - streams) / max(wall_s - first_s, 1e-9),
        output_tokens_per_second=num_output / wall_s,
    )


async def _complete(core: Core, prompt: list[int], params: SamplingParams) -> RequestMetrics:
    async with contextlib.aclosing(core.host.generate(prompt, params)) as deltas:
        async for delta in deltas:
            if delta.metrics is not None:
                if delta.metrics.output_tokens != params.max_tokens:
                    raise EngineError(
                        f"A request ended after {delta.metrics.output_tokens} of"
                        f" {params.max_tokens} tokens.",
                        hint="Use fewer streams or tokens: the KV cache is full.",
                    )
                return delta.metrics
    raise EngineError("A request ended without its metrics.")


@dataclass(frozen=True, slots=True)
class TimedRun:
    """How long some prompts and their answers took."""

    prefill_s: float
    """Until the last of them had its first token."""
    decode_s: float
    """From then on."""
    decoded_tokens: int
    """In that time."""


async def time_prompts(core: Core, prompts: list[list[int]], output_tokens: int) -> TimedRun:
    """Runs prompts together, greedily and without end of text."""
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    arrivals: list[list[float]] = [[] for _ in prompts]

    async def complete(prompt: list[int], times: list[float]) -> None:
        async with contextlib.aclosing(core.host.generate(prompt, params)) as deltas:
            async for delta in deltas:
                times += [time.perf_counter()] * len(delta.token_ids)
        if len(times) != output_tokens:
            raise EngineError(
                f"A request ended after {len(times)} of {output_tokens} tokens.",
                hint="Use fewer streams or tokens: the KV cache is full.",
            )

    started_at = time.perf_counter()
    await asyncio.gather(*map(complete, prompts, arrivals))
    prefilled_at = max(times[0] for times in arrivals)
    decoded = [arrived for times in arrivals for arrived in times if arrived > prefilled_at]
    return TimedRun(
        prefilled_at - started_at, max(decoded, default=prefilled_at) - prefilled_at, len(decoded)
    )

"""`octavo bench --dummy-weights`: fixed workloads on models of known shapes with random weights.

The workloads are those that other engines are measured with, so that figures can stand side by
side: fresh random prompts in every run, greedy, no end of sequence, everything of the engine
included but the thread and the event loop around it.
"""

import argparse
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from octavo.engine.config import EngineConfig
from octavo.engine.request import GenerationRequest
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import EngineError, InvalidInputError
from octavo.paths import AppPaths
from octavo.units import format_bytes

if TYPE_CHECKING:
    from octavo.engine.engine import Engine

_PROMPT_TOKENS, _OUTPUT_TOKENS = 512, 128
_SINGLE_OUTPUT_TOKENS = 256
_LONG_PROMPT_TOKENS = 16384
_PREFIX_TOKENS, _PREFIX_OWN_TOKENS, _PREFIX_REQUESTS = 2048, 64, 64
_PREFIX_OUTPUT_TOKENS = 64
_SPARE_ROOM = 1.25
"""Of the KV cache, over what the largest workload holds at a time."""
_NUM_STREAMS, _STEPS_BEFORE = 8, 20
"""Streams that run before a long prompt comes."""
_CASE_WIDTH, _MEASURED_WIDTH = 57, 12
"""In characters, of the columns."""

Prompt = list[int]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    case: str
    value: float
    unit: str
    runs: tuple[float, ...]
    """Of each repetition, in the same unit."""


class Workloads:
    """Runs the workloads on one engine."""

    def __init__(self, engine: "Engine", vocab_size: int, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._clock = clock
        self._numbers = count()

    def single_stream(self) -> list[Figure]:
        """512 tokens in, 256 out: the time to the first token, and the rate of the others."""
        self._generate([self._prompt(_PROMPT_TOKENS)], 32)
        first = [self._generate([self._prompt(_PROMPT_TOKENS)], 1) for _ in range(5)]
        whole = [
            self._generate([self._prompt(_PROMPT_TOKENS)], _SINGLE_OUTPUT_TOKENS) for _ in range(3)
        ]
        first_s = statistics.median(first)
        rates = [(_SINGLE_OUTPUT_TOKENS - 1) / (one - first_s) for one in whole]
        milliseconds = tuple(one * 1000 for one in first)
        return [
            Figure("512/256, one stream: decode", statistics.median(rates), "tok/s", tuple(rates)),
            Figure("512, one stream: first token", first_s * 1000, "ms", milliseconds),
        ]

    def throughput(self, num_requests: int) -> list[Figure]:
        """Requests of 512/128, all at once."""
        rates = []
        for _ in range(3):
            prompts = [self._prompt(_PROMPT_TOKENS) for _ in range(num_requests)]
            wall_s = self._generate(prompts, _OUTPUT_TOKENS)
            rates.append(num_requests * _OUTPUT_TOKENS / wall_s)
        # The first run warms up; of the others the better one counts, as with the peers.
        name = f"512/128, {num_requests} at once: output"
        return [Figure(name, max(rates[1:]), "tok/s", tuple(rates))]

    def long_prompt(self) -> list[Figure]:
        """One token after 16,384."""
        runs = [self._generate([self._prompt(_LONG_PROMPT_TOKENS)], 1) for _ in range(4)]
        return [Figure("16,384-token prompt", statistics.median(runs[1:]), "s", tuple(runs))]

    def shared_prefix(self) -> list[Figure]:
        """64 requests that share 2,048 tokens and have 64 of their own; 64 out."""
        fresh, cached = [], []
        for _ in range(2):
            prefix = self._prompt(_PREFIX_TOKENS)
            fresh.append(self._generate(self._extended(prefix), _PREFIX_OUTPUT_TOKENS))
            cached.append(self._generate(self._extended(prefix), _PREFIX_OUTPUT_TOKENS))
        case = "64 × (2,048 shared + 64)/64"
        return [
            Figure(f"{case}, prefix not cached", min(fresh), "s", tuple(fresh)),
            Figure(f"{case}, prefix cached", min(cached), "s", tuple(cached)),
        ]

    def long_prompt_beside_streams(self) -> list[Figure]:
        """What 8 streams and a prompt of 16,384 tokens make of each other."""
        firsts, gaps = [], []
        for _ in range(3):
            first_s, longest = self._disturb(self._prompt(_LONG_PROMPT_TOKENS))
            firsts.append(first_s)
            gaps.append(longest)
        case = "16,384-token prompt beside 8 streams"
        milliseconds = tuple(1000 * statistics.quantiles(one, n=100)[98] for one in gaps[1:])
        longest_ms = tuple(1000 * max(one) for one in gaps[1:])
        return [
            Figure(f"{case}: first token", min(firsts[1:]), "s", tuple(firsts)),
            Figure(f"{case}: 99 % of gaps below", min(milliseconds), "ms", milliseconds),
            Figure(f"{case}: longest gap", min(longest_ms), "ms", longest_ms),
        ]

    def _disturb(self, prompt: Prompt) -> tuple[float, list[float]]:
        """Seconds to the prompt's first token, and between the streams' tokens until then."""
        params = SamplingParams(temperature=0.0, max_tokens=_SINGLE_OUTPUT_TOKENS, ignore_eos=True)
        for _ in range(_NUM_STREAMS):
            self._add(self._prompt(_PROMPT_TOKENS), params)
        for _ in range(_STEPS_BEFORE):
            self._engine.step()
        long_id = self._add(prompt, dataclasses.replace(params, max_tokens=1))
        begun_at = self._clock()
        latest: dict[str, float] = {}
        gaps: list[float] = []
        first_at = None
        while self._engine.has_work:
            deltas = self._engine.step()
            now = self._clock()
            for delta in deltas:
                if delta.request_id == long_id:
                    first_at = now
                elif first_at is None:
                    gaps.append(now - latest.get(delta.request_id, begun_at))
                    latest[delta.request_id] = now
        if first_at is None or len(gaps) < 2:
            raise EngineError(
                "The long prompt or the streams beside it got no token.",
                hint="The KV cache is too small for this workload.",
            )
        return first_at - begun_at, gaps

    def _extended(self, prefix: Prompt) -> list[Prompt]:
        return [prefix + self._prompt(_PREFIX_OWN_TOKENS) for _ in range(_PREFIX_REQUESTS)]

    def _prompt(self, num_tokens: int) -> Prompt:
        return [random.randrange(self._vocab_size) for _ in range(num_tokens)]  # noqa: S311

    def _generate(self, prompts: Sequence[Prompt], num_tokens: int) -> float:
        """Seconds from handing over all requests to the last token."""
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        num_generated = 0
        started_at = self._clock()
        for prompt in prompts:
            self._add(prompt, params)
        while self._engine.has_work:
            for delta in self._engine.step():
                if delta.error is not None:
                    raise delta.error
                num_generated += len(delta.token_ids)
        wall_s = self._clock() - started_at
        if num_generated != len(prompts) * num_tokens:
            raise EngineError(
                f"{num_generated} of {len(prompts) * num_tokens} tokens were generated.",
                hint="The KV cache is too small for this workload; use fewer requests.",
            )
        return wall_s

    def _add(self, prompt: Prompt, params: SamplingParams) -> str:
        request_id = f"bench-{next(self._numbers)}"
        self._engine.add_request(GenerationRequest(request_id, tuple(prompt), params))
        return request_id


def _room_tokens(batch_sizes: Sequence[int]) -> int:
    """Of a KV cache that holds every workload."""
    at_once = max(batch_sizes, default=1) * (_PROMPT_TOKENS + _OUTPUT_TOKENS)
    alone = _LONG_PROMPT_TOKENS + _SINGLE_OUTPUT_TOKENS
    sharing = _PREFIX_TOKENS + _PREFIX_REQUESTS * (_PREFIX_OWN_TOKENS + _PREFIX_OUTPUT_TOKENS)
    return int(max(at_once, alone, sharing) * _SPARE_ROOM)


def dummy_bench(options: argparse.Namespace, paths: AppPaths) -> int:
    """Measures one shape and prints a table, or JSON."""
    # Here, because torch comes with it.
    from octavo.engine.dummy_model import dummy_shapes, load_dummy_engine

    if any(size < 1 for size in options.batch_sizes):
        raise InvalidInputError("--batch-sizes must hold numbers from 1 up.")
    config = EngineConfig(
        device=options.device or "auto",
        max_num_seqs=max([_PREFIX_REQUESTS, *options.batch_sizes]),
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=_LONG_PROMPT_TOKENS + _SINGLE_OUTPUT_TOKENS,
        gpu_tuning_table=str(paths.gpu_tuning_table),
        num_kv_blocks=_room_tokens(options.batch_sizes) // EngineConfig().block_size + 1,
    )
    engine, report = load_dummy_engine(options.dummy_weights, options.weight_format, config)
    title = (
        f"{options.dummy_weights} · {options.weight_format} · {report.plan.device.name} ·"
        f" {report.executor} · ready in {report.load_s:.1f} s ·"
        f" planned {format_bytes(report.plan.total_bytes)}"
    )
    if not options.json:
        print(title, flush=True)
    workloads = Workloads(
        engine, dummy_shapes()[options.dummy_weights].vocab_size, time.perf_counter
    )
    measurements = [workloads.single_stream]
    measurements += [partial(workloads.throughput, size) for size in options.batch_sizes]
    if options.long_workloads:
        measurements += [workloads.long_prompt, workloads.long_prompt_beside_streams]
        measurements.append(workloads.shared_prefix)
    figures: list[Figure] = []
    if not options.json:
        _print_cells("CASE", "MEASURED", "RUNS")
    for measure in measurements:
        found = measure()
        figures += found
        if not options.json:
            # At once: it takes minutes, and what was measured stays if somebody ends it.
            for one in found:
                _print_figure(one)
    if options.json:
        print(json.dumps({"title": title, "figures": [asdict(one) for one in figures]}, indent=2))
    return 0


def _print_figure(figure: Figure) -> None:
    value = f"{figure.value:,.4g}" if figure.value < 1000 else f"{figure.value:,.0f}"
    runs = " ".join(f"{run:.4g}" for run in figure.runs)
    _print_cells(figure.case, f"{value} {figure.unit}", runs)


def _print_cells(case: str, measured: str, runs: str) -> None:
    print(f"{case:<{_CASE_WIDTH}}  {measured:<{_MEASURED_WIDTH}}  {runs}", flush=True)

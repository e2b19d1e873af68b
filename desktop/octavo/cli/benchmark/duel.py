"""`octavo bench --against`: the same file and prompts on us and on peers, in turn, with ratios."""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from octavo.checkpoint.header import read_checkpoint
from octavo.cli.benchmark.bandwidth import ReadBandwidth, weight_bytes_per_token
from octavo.cli.benchmark.peer import Peer
from octavo.cli.benchmark.peer_kinds import PEERS
from octavo.cli.benchmark.timed_run import (
    TimedRun,
    measured_sampling,
    random_prompts,
    time_prompts,
)
from octavo.cli.terminal import ProgressLine, loaded, print_table
from octavo.core import Core
from octavo.engine.device import default_cpu_threads
from octavo.hub.library import LibraryModel
from octavo.jobs import Progress

_OURS = "Octavo"


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Of one engine: medians over the rounds."""

    engine: str
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    decode_cpu_ms_per_token: float
    """Processor time of its whole process, all threads together."""


@dataclass(frozen=True, slots=True)
class PeerFigures(EngineFigures):
    """Of a peer, and ours to its: medians of the rounds' ratios."""

    decode_ratio: float
    prefill_ratio: float
    decode_cpu_ratio: float


@dataclass(frozen=True, slots=True)
class DuelRow:
    """One number of streams."""

    streams: int
    read_bytes_per_second: float
    """Of memory, median of what was measured in each round."""
    bandwidth_share: float
    """Bytes of weights that our decode steps read by what memory gives; median of the rounds."""
    octavo: EngineFigures
    peers: tuple[PeerFigures, ...]


@dataclass(frozen=True, slots=True)
class _Round:
    """What one round measured."""

    read_bytes_per_second: float
    ours: TimedRun
    theirs: tuple[TimedRun, ...]


def duel(options: argparse.Namespace, core: Core, model: LibraryModel) -> int:
    """Measures all and prints the table; each round runs ours, then theirs."""
    num_threads = (
        options.cpu_threads or core.settings.value.engine.cpu_threads or default_cpu_threads()
    )
    python = options.peer_python or sys.executable
    weight_bytes = weight_bytes_per_token(read_checkpoint(model.path))
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(Peer(PEERS[name], python, model.path, num_threads))
            for name in options.against
        ]
        line = ProgressLine()

        async def measure() -> tuple[list[DuelRow], str]:
            async with loaded(core, model):
                assert core.host.state.report is not None
                rows = []
                with contextlib.closing(ReadBandwidth(num_threads)) as bandwidth:
                    for streams in options.streams:
                        rounds = []
                        for number in range(options.repetitions + 1):
                            stage = f"{streams} streams, round {number} of {options.repetitions}"
                            line.show(Progress(stage))
                            rounds.append(
                                await _run_round(core, peers, bandwidth, streams, options)
                            )
                        # The first warms up.
                        rows.append(_row(streams, rounds[1:], peers, weight_bytes))
                line.clear()
                return rows, core.host.state.report.executor

        rows, executor = asyncio.run(measure())
        versions = {peer.kind.title: peer.version for peer in peers}
    if options.json:
        content = {
            "model": model.name,
            "executor": executor,
            "peers": versions,
            "threads": num_threads,
            "prompt_tokens": options.prompt_tokens,
            "output_tokens": options.output_tokens,
            "rounds": options.repetitions,
            "weight_bytes_per_token": weight_bytes,
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(content, indent=2))
        return 0
    print(f"{model.title} · {executor} · {num_threads} threads each")
    for title, version in versions.items():
        print(f"{title}: {version}")
    _print_rows(rows)
    print(
        f"{options.prompt_tokens} prompt and {options.output_tokens} output tokens a request;"
        f" medians of {options.repetitions} rounds in turn; ratios are Octavo's to the peer's,"
        f" round by round."
    )
    _print_floor(rows, weight_bytes)
    return 0


async def _run_round(
    core: Core,
    peers: Sequence[Peer],
    bandwidth: ReadBandwidth,
    streams: int,
    options: argparse.Namespace,
) -> _Round:
    prompts = random_prompts(core, streams, options.prompt_tokens)
    read = await asyncio.to_thread(bandwidth.bytes_per_second)
    ours = await time_prompts(core, prompts, measured_sampling(options))
    theirs = [await asyncio.to_thread(peer.run, prompts, options.output_tokens) for peer in peers]
    return _Round(read, ours, tuple(theirs))


def _row(
    streams: int, rounds: Sequence[_Round], peers: Sequence[Peer], weight_bytes: int
) -> DuelRow:
    def median(figure: Callable[[_Round], float]) -> float:
        return statistics.median(map(figure, rounds))

    def of_peer(index: int, title: str) -> PeerFigures:
        def rates(name: str) -> tuple[float, float]:
            return (
                median(lambda one: getattr(one.theirs[index], name)),
                median(lambda one: getattr(one.ours, name) / getattr(one.theirs[index], name)),
            )

        decode, decode_ratio = rates("decode_tokens_per_second")
        prefill, prefill_ratio = rates("prefill_tokens_per_second")
        cpu_ms, cpu_ratio = rates("decode_cpu_ms_per_token")
        return PeerFigures(title, decode, prefill, cpu_ms, decode_ratio, prefill_ratio, cpu_ratio)

    return DuelRow(
        streams,
        median(lambda one: one.read_bytes_per_second),
        # A step reads the weights once, for all streams together.
        median(
            lambda one: (
                one.ours.decode_tokens_per_second
                / streams
                * weight_bytes
                / one.read_bytes_per_second
            )
        ),
        EngineFigures(
            _OURS,
            median(lambda one: one.ours.decode_tokens_per_second),
            median(lambda one: one.ours.prefill_tokens_per_second),
            median(lambda one: one.ours.decode_cpu_ms_per_token),
        ),
        tuple(of_peer(index, peer.kind.title) for index, peer in enumerate(peers)),
    )


def _print_rows(rows: Sequence[DuelRow]) -> None:
    lines = []
    for row in rows:
        for figures in (row.octavo, *row.peers):
            ratios = ("", "", "")
            if isinstance(figures, PeerFigures):
                ratios = (
                    f"{figures.decode_ratio:.2f}",
                    f"{figures.prefill_ratio:.2f}",
                    f"{figures.decode_cpu_ratio:.2f}",
                )
            lines.append(
                (
                    str(row.streams),
                    figures.engine,
                    f"{figures.decode_tokens_per_second:.1f}",
                    ratios[0],
                    f"{figures.prefill_tokens_per_second:.1f}",
                    ratios[1],
                    f"{figures.decode_cpu_ms_per_token:.2f}",
                    ratios[2],
                )
            )
    header = ("STREAMS", "ENGINE", "DECODE tok/s", "RATIO", "PREFILL tok/s", "RATIO")
    print_table((*header, "CPU ms/token", "RATIO"), lines)


def _print_floor(rows: Sequence[DuelRow], weight_bytes: int) -> None:
    print(f"A step reads {weight_bytes / 1e6:.1f} MB of weights, whatever the number of streams.")
    for row in rows:
        read = row.read_bytes_per_second
        print(
            f"{row.streams} streams: memory gives {read / 1e9:.1f} GB/s, so at most"
            f" {row.streams * read / weight_bytes:.0f} tokens/s; Octavo reaches"
            f" {row.bandwidth_share:.0%} of that."
        )

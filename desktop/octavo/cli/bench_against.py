"""`octavo bench --against llama.cpp`: the same file and prompts on both, in turn, with ratios."""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from octavo.cli.bench import TimedRun, time_prompts
from octavo.cli.terminal import ProgressLine, loaded, print_table
from octavo.core import Core
from octavo.engine.device import default_cpu_threads
from octavo.errors import InvalidInputError
from octavo.hub.library import LibraryModel
from octavo.jobs import Progress

PEER_SCRIPT = Path(__file__).with_name("llama_cpp_peer.py")
_BANDWIDTH_BYTES = 256 << 20
_BANDWIDTH_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class DuelRow:
    """Medians over the rounds; a ratio is the median of the rounds' ratios, ours to theirs."""

    streams: int
    decode_tokens_per_second: float
    peer_decode_tokens_per_second: float
    decode_ratio: float
    prefill_tokens_per_second: float
    peer_prefill_tokens_per_second: float
    prefill_ratio: float


class Peer:
    """llama.cpp in a process of its own, asked line by line."""

    def __init__(self, python: str, model: Path, num_threads: int) -> None:
        """Raises InvalidInputError: that Python has no llama-cpp-python, or it refuses the file."""
        # A file, because a pipe that nobody reads would fill up and stop the peer.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(  # noqa: S603
            [python, str(PEER_SCRIPT), str(model), str(num_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first:
            self._process.wait()
            self._errors.seek(0)
            *_, cause = self._errors.read().strip().splitlines() or ["It said nothing."]
            self._close()
            raise InvalidInputError(
                f"llama.cpp does not start with {python}. {cause}",
                hint="Install the extra `peers` (pip install octavo[peers]), or name a Python that"
                " has llama-cpp-python with --peer-python.",
            )
        self.version = str(json.loads(first)["version"])

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def run(self, prompts: list[list[int]], num_output: int) -> TimedRun:
        """Runs prompts one after the other, then decodes them together."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([prompts, num_output]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        num_decoded = len(prompts) * (num_output - 1)
        return TimedRun(answer["prefill_s"], answer["decode_s"], num_decoded)


def bench_against(options: argparse.Namespace, core: Core, model: LibraryModel) -> int:
    """Measures both and prints the table; each round runs ours, then theirs."""
    num_threads = core.settings.value.engine.cpu_threads or default_cpu_threads()
    python = options.peer_python or sys.executable
    with Peer(python, model.path, num_threads) as peer:
        rows, executor = asyncio.run(_measure(core, model, peer, options))
        version = peer.version
    bandwidth = read_bandwidth(num_threads)
    # Each token reads every weight once; an embedding that is not the head's is read by the row.
    floor_s = model.path.stat().st_size / bandwidth
    if options.json:
        content = {
            "model": model.name,
            "peer": f"llama-cpp-python {version}",
            "threads": num_threads,
            "read_bytes_per_second": bandwidth,
            "most_single_stream_tokens_per_second": 1 / floor_s,
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(content, indent=2))
        return 0
    print(
        f"{model.title} · {executor} against llama.cpp (llama-cpp-python {version}),"
        f" {num_threads} threads"
    )
    print_table(
        ("STREAMS", "DECODE tok/s", "LLAMA.CPP", "RATIO", "PREFILL tok/s", "LLAMA.CPP", "RATIO"),
        [
            (
                str(row.streams),
                f"{row.decode_tokens_per_second:.1f}",
                f"{row.peer_decode_tokens_per_second:.1f}",
                f"{row.decode_ratio:.2f}",
                f"{row.prefill_tokens_per_second:.1f}",
                f"{row.peer_prefill_tokens_per_second:.1f}",
                f"{row.prefill_ratio:.2f}",
            )
            for row in rows
        ],
    )
    print(
        f"{options.prompt_tokens} prompt and {options.output_tokens} output tokens a request;"
        f" medians of {options.repetitions} rounds in turn."
        f" Memory reads {bandwidth / 1e9:.1f} GB/s, so one stream cannot exceed"
        f" {1 / floor_s:.0f} tokens/s."
    )
    return 0


async def _measure(
    core: Core, model: LibraryModel, peer: Peer, options: argparse.Namespace
) -> tuple[list[DuelRow], str]:
    line = ProgressLine()
    async with loaded(core, model):
        assert core.host.state.report is not None
        executor = core.host.state.report.executor
        rows = []
        for streams in sorted({1, *options.streams}):
            ours: list[TimedRun] = []
            theirs: list[TimedRun] = []
            for round_number in range(options.repetitions + 1):
                stage = f"{streams} streams, round {round_number} of {options.repetitions}"
                line.show(Progress(stage))
                vocab_size = core.host.tokenizer.vocab_size
                prompts = [
                    [random.randrange(vocab_size) for _ in range(options.prompt_tokens)]  # noqa: S311
                    for _ in range(streams)
                ]
                mine = await time_prompts(core, prompts, options.output_tokens)
                peers = await asyncio.to_thread(peer.run, prompts, options.output_tokens)
                if round_number:  # the first warms up
                    ours.append(mine)
                    theirs.append(peers)
            rows.append(_row(streams, ours, theirs, options))
        line.clear()
        return rows, executor


def _row(
    streams: int,
    ours: list[TimedRun],
    theirs: list[TimedRun],
    options: argparse.Namespace,
) -> DuelRow:
    num_prompt_tokens: int = streams * options.prompt_tokens

    def prefill(run: TimedRun) -> float:
        return num_prompt_tokens / run.prefill_s

    def decode(run: TimedRun) -> float:
        return run.decoded_tokens / run.decode_s

    def columns(rate: Callable[[TimedRun], float]) -> tuple[float, float, float]:
        mine, peers = [rate(run) for run in ours], [rate(run) for run in theirs]
        ratios = [our / their for our, their in zip(mine, peers, strict=True)]
        return statistics.median(mine), statistics.median(peers), statistics.median(ratios)

    return DuelRow(streams, *columns(decode), *columns(prefill))


def read_bandwidth(num_threads: int) -> float:
    """Bytes that so many threads read from memory in a second: the best of a few rounds."""
    parts = [
        np.ones(_BANDWIDTH_BYTES // 8 // num_threads, dtype=np.int64) for _ in range(num_threads)
    ]
    best_s = float("inf")
    for _ in range(_BANDWIDTH_ROUNDS):
        threads = [threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts]
        started_at = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best_s = min(best_s, time.perf_counter() - started_at)
    num_bytes: int = sum(part.nbytes for part in parts)
    return float(num_bytes / best_s)

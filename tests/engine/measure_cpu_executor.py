"""Measures steps on the CPU kernels: `python -m tests.engine.measure_cpu_executor MODEL.gguf`.

Wall time and processor time of the layers and of the logits, medians; no scheduler, no sampler.
"""

import argparse
import asyncio
import random
import statistics
import time
from pathlib import Path

import torch

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.batch import PersistentBatch, StepInputs
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.config import EngineConfig
from octavo.engine.cpu_executor import CPUExecutor
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.loading import load_engine
from octavo.engine.models.decoder import build_model
from octavo.engine.planning import plan_load
from octavo.engine.request import GenerationRequest
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence
from octavo.engine.thread import EngineThread
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobControl

CASES = ((1, 1, 100), (8, 1, 100), (16, 1, 100), (1, 512, 0))
"""Sequences, tokens of each in the step, and tokens before them."""


def make_inputs(num_seqs: int, num_tokens: int, start: int, vocab_size: int) -> StepInputs:
    batch, work, next_block = PersistentBatch(num_seqs, 4096, 16), [], 1
    for number in range(num_seqs):
        tokens = [random.randrange(vocab_size) for _ in range(start + num_tokens)]
        sequence = Sequence(number, str(number), 0, tokens, SamplingParams(), seed=0)
        if num_tokens == 1:
            sequence.num_prompt_tokens = start
        num_blocks = -(-len(tokens) // 16)
        sequence.block_tables[:] = [list(range(next_block, next_block + num_blocks))]
        next_block += num_blocks
        work.append(ScheduledSequence(sequence, start, num_tokens))
    return batch.prepare(ScheduledBatch(tuple(work), ()))


def measure_steps(path: Path, num_threads: int, repetitions: int) -> None:
    header = read_checkpoint(path)
    model_config = read_model_config(header)
    config = EngineConfig(device="cpu", num_kv_blocks=600)
    plan = plan_load(header, model_config, config, choose_device(config, detect_devices()))
    decoder = build_model(model_config, plan)
    load_weights(decoder, header, model_config, JobControl())
    executor = CPUExecutor(decoder, model_config, plan, config, num_threads=num_threads)
    for case in CASES:
        inputs = make_inputs(*case, model_config.vocab_size)
        rows: list[tuple[float, float, float, float]] = []
        for _ in range(repetitions + 1):
            wall, spent = time.perf_counter(), time.process_time()
            with torch.inference_mode():
                hidden = executor.forward(inputs)
                between, spent_between = time.perf_counter(), time.process_time()
                executor.compute_logits(hidden[-case[0] :])
            end, spent_end = time.perf_counter(), time.process_time()
            rows.append(
                (between - wall, spent_between - spent, end - between, spent_end - spent_between)
            )
        medians = [1e3 * statistics.median(column) for column in zip(*rows[1:], strict=True)]
        print(
            f"{num_threads} threads, {case[0]} sequences of {case[1]} tokens after {case[2]}:"
            " layers {:.2f} ms ({:.2f} of processor), logits {:.2f} ms ({:.2f})".format(*medians)
        )


async def measure_loop(path: Path, num_streams: int) -> None:
    """How late an event loop of the same process is while streams run, and what idling costs."""
    thread = EngineThread(lambda control: load_engine(path, EngineConfig(device="cpu"), control))
    await thread.load(JobControl())
    late: list[float] = []

    async def tick() -> None:
        while True:
            wanted = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - wanted)

    async def stream(number: int) -> None:
        tokens = tuple(random.randrange(1000, 40000) for _ in range(64))
        params = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)
        async for _ in thread.generate(GenerationRequest(str(number), tokens, params)):
            pass

    ticking = asyncio.create_task(tick())
    await asyncio.gather(*map(stream, range(num_streams)))
    ticking.cancel()
    late.sort()
    print(
        f"{num_streams} streams: the event loop is {1e3 * late[len(late) // 2]:.1f} ms late,"
        f" 99 of 100 times at most {1e3 * late[len(late) * 99 // 100]:.1f} ms"
    )
    await asyncio.sleep(0.5)
    before = time.process_time()
    await asyncio.sleep(2.0)
    print(f"idle: {1e3 * (time.process_time() - before):.1f} ms of processor in 2 s")
    await thread.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    for num_threads in (1, 2):
        measure_steps(options.model, num_threads, options.repetitions)
    asyncio.run(measure_loop(options.model, 8))


if __name__ == "__main__":
    main()

"""Torch answers while kernels compile, then the kernels do: no token lost, none chosen twice."""

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.engine import Engine
from octavo.engine.kernel_upgrade import STAGE
from octavo.engine.kernels.cpu import kernel_cache, preparation
from octavo.engine.kernels.cpu.simd_tier import Tier, host_features, tier_of
from octavo.engine.load_report import LoadReport
from octavo.engine.loading import load_engine
from octavo.engine.planning import plan_load, plan_meanwhile
from octavo.engine.request import FinishReason, GenerationRequest
from octavo.engine.thread import EngineThread
from octavo.errors import EngineClosedError, EngineError
from octavo.jobs import JobControl, Progress
from tests.support.engines import Result, drain, make_engine, request, run_all
from tests.support.gguf_files import write_tiny_llama

pytestmark = [
    pytest.mark.skipif(
        tier_of(host_features()) is Tier.NONE, reason="this processor has no kernels"
    ),
    pytest.mark.timeout(300),
]

PROMPT = list(b"hello the quick brown fox jumps over the lazy dog")
BLOCKS: dict[str, Any] = {"num_kv_blocks": 120, "block_size": 16, "max_num_batched_tokens": 64}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def streams(number: int, **sampling: Any) -> list[GenerationRequest]:
    sampling = {"max_tokens": 40, "ignore_eos": True, **sampling}
    return [request(str(i), PROMPT[i : 12 + 3 * i], **sampling) for i in range(number)]


def assert_all_free(engine: Engine) -> None:
    stats = engine.stats()
    assert stats.num_used_blocks == stats.num_running == stats.num_waiting == 0


# The engine alone, from one torch to another: tokens must be the very same.


def run_with_switches(checkpoint: Path, requests: list[GenerationRequest], every: int) -> Any:
    engine, other = (make_engine(checkpoint, **BLOCKS) for _ in range(2))
    for one in requests:
        engine.add_request(one)
    results: dict[tuple[str, int], Result] = {}
    runners = [other._runner, engine._runner]
    num_steps = 0
    while engine.has_work:
        for delta in engine.step():
            results.setdefault((delta.request_id, delta.index), Result()).add(delta)
        num_steps += 1
        if num_steps % every == 0:
            runners.reverse()
            engine.switch_runner(runners[0])
            assert engine.stats().num_used_blocks == engine.stats().num_cached_blocks == 0
    assert_all_free(engine)
    return results


@pytest.mark.parametrize("every", [1, 7])
def test_a_switch_changes_no_answer(checkpoint: Path, every: int) -> None:
    requests = [
        *streams(4, logprobs=1, max_tokens=16),
        request("n", PROMPT, n=3, temperature=1.0, seed=4, max_tokens=10, ignore_eos=True),
        request("prompt", PROMPT, prompt_logprobs=0, max_tokens=4),
        request("stop", PROMPT[:9], stop=["e"], max_tokens=20),
    ]
    expected = run_all(make_engine(checkpoint, **BLOCKS), requests)
    if every == 1:
        # What together is longer than a step's budget would begin anew each time, for ever.
        requests = requests[:1]
        expected = {key: expected[key] for key in expected if key[0] == requests[0].request_id}
    actual = run_with_switches(checkpoint, requests, every)
    assert actual.keys() == expected.keys()
    for key, result in expected.items():
        assert actual[key].token_ids == result.token_ids, key
        assert actual[key].text == result.text
        assert actual[key].finish_reason is result.finish_reason
        for ours, theirs in zip(actual[key].logprobs, result.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert len(actual[key].prompt_logprobs) == len(result.prompt_logprobs)


def test_what_was_cached_is_forgotten_and_cached_anew(checkpoint: Path) -> None:
    engine, other = (make_engine(checkpoint, **BLOCKS) for _ in range(2))
    first = run_all(engine, [request("a", PROMPT, max_tokens=4)])["a", 0]
    engine.switch_runner(other._runner)
    hits = []
    for name in ("b", "c"):
        result = run_all(engine, [request(name, PROMPT, max_tokens=4)])[name, 0]
        assert result.token_ids == first.token_ids
        assert result.metrics is not None
        hits.append(result.metrics.cached_tokens)
    assert hits == [0, 48]
    assert_all_free(engine)


# Through the thread, from torch to the kernels, which a test compiles when it likes.


class Compiler:
    """Stands for the child process: the kernels are ready when the test says so."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.error: Exception | None = None
        self.was_asked = threading.Event()

    def __call__(
        self, forms: Any, cache_dir: Any, report: Callable[[int, int], None], **_: object
    ) -> None:
        self.was_asked.set()
        while not self.may_end.wait(0.005):
            report(7, 15)
        if self.error is not None:
            raise self.error
        self.real(forms, cache_dir, report)

    real = staticmethod(preparation.prepare_kernels)


@pytest.fixture(scope="module")
def compiled() -> None:
    """So that what a switch takes is what it takes where kernels have been compiled."""
    folder = kernel_cache.kernel_folder(None)
    assert folder is not None
    preparation.prepare_kernels(["float32"], None, lambda _done, _total: None)


@pytest.fixture
def compiler(compiled: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    compiler = Compiler()
    monkeypatch.setattr(preparation, "prepare_kernels", compiler)
    monkeypatch.setattr(kernel_cache, "missing_parts", lambda _folder, _forms: ["linear"])
    yield compiler
    compiler.may_end.set()


class Running:
    """An engine on its thread, and what it said of itself."""

    def __init__(self, checkpoint: Path) -> None:
        self.progress: list[Progress] = []
        self.reports: list[LoadReport] = []
        self.num_running_at_switch = 0
        config = EngineConfig(device="cpu", cpu_threads=2, waits_for_kernels=False, **BLOCKS)

        def make(control: JobControl) -> tuple[Engine, LoadReport]:
            engine, report = load_engine(checkpoint, config, control)
            switch = engine.switch_runner

            def watched(runner: Any) -> None:
                self.num_running_at_switch = engine.stats().num_running
                switch(runner)

            engine.switch_runner = watched  # type: ignore[method-assign]
            return engine, report

        self.thread = EngineThread(make)

    async def load(self) -> LoadReport:
        return await self.thread.load(JobControl(self.progress.append), self.reports.append)

    async def collect(self, one: GenerationRequest) -> Result:
        result = Result()
        async with contextlib.aclosing(self.thread.generate(one)) as deltas:
            async for delta in deltas:
                result.add(delta)
        return result

    async def until_switched(self) -> LoadReport:
        async with asyncio.timeout(250):
            while not self.reports:  # noqa: ASYNC110  (it is told in this loop)
                await asyncio.sleep(0.01)
        return self.reports[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (the condition lives on another thread)
            await asyncio.sleep(0.002)


def assert_likeliest(checkpoint: Path, one: GenerationRequest, result: Result) -> None:
    """Each token is float32's likeliest after those before it, or as likely within rounding."""
    prompt = [*one.prompt_token_ids, *result.token_ids]
    forced = request("forced", prompt, prompt_logprobs=1, max_tokens=1)
    entries = run_all(make_engine(checkpoint, **BLOCKS), [forced])["forced", 0].prompt_logprobs
    for entry in entries[len(one.prompt_token_ids) :]:
        assert entry is not None
        assert entry.logprob > entry.top[0][1] - 0.02


async def test_streams_go_on_over_the_switch(checkpoint: Path, compiler: Compiler) -> None:
    running = Running(checkpoint)
    report = await running.load()
    assert report.is_temporary
    assert report.executor == "plain torch"
    assert "until" in report.executor_reason
    assert not report.plan.uses_kernels
    results: list[tuple[GenerationRequest, Result]] = []

    async def ask_until_switched(one: GenerationRequest) -> None:
        for turn in range(10_000):
            was_switched = bool(running.reports)
            asked = dataclasses.replace(one, request_id=f"{one.request_id}/{turn}")
            results.append((asked, await running.collect(asked)))
            if was_switched:
                break

    tasks = [asyncio.create_task(ask_until_switched(one)) for one in streams(8, max_tokens=150)]
    await until(lambda: running.thread.stats.output_tokens > 100)
    compiler.may_end.set()
    report = await running.until_switched()
    await asyncio.gather(*tasks)
    assert report.executor == "CPU kernels"
    assert report.plan.uses_kernels
    assert not report.is_temporary
    assert Progress(STAGE, 7, 15, "kernels") in running.progress
    assert running.num_running_at_switch > 0
    for _, result in results:
        assert result.finish_reason is FinishReason.LENGTH
        assert len(result.token_ids) == 150
    for one, result in results[-16:]:  # those that ran over the switch, and those after it
        assert_likeliest(checkpoint, one, result)
    cached = [await running.collect(request(name, PROMPT, max_tokens=3)) for name in "xy"]
    assert [one.metrics.cached_tokens for one in cached if one.metrics] == [0, 48]
    await until(lambda: running.thread.stats.num_used_blocks == 0)
    assert await running.thread.close()


async def test_leaving_streams_about_the_switch_leaks_nothing(
    checkpoint: Path, compiler: Compiler
) -> None:
    running = Running(checkpoint)
    await running.load()
    tasks = [asyncio.create_task(running.collect(one)) for one in streams(8, max_tokens=150, n=2)]
    await until(lambda: running.thread.stats.output_tokens > 20)
    compiler.may_end.set()
    while not running.reports:
        running.thread.abort(str(len(tasks) % 8))
        if len(tasks) > 4:
            tasks.pop().cancel()
        await asyncio.sleep(0.01)
    for task in tasks[:2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: running.thread.stats.num_used_blocks == 0)
    assert running.thread.stats.num_running == running.thread.stats.num_waiting == 0
    assert await running.thread.close()


async def test_unloading_meanwhile_ends_everything(checkpoint: Path, compiler: Compiler) -> None:
    running = Running(checkpoint)
    await running.load()
    task = asyncio.create_task(running.collect(streams(1, max_tokens=150)[0]))
    await asyncio.to_thread(compiler.was_asked.wait)
    assert await running.thread.close()
    with pytest.raises(EngineClosedError):
        await task
    assert not [one for one in threading.enumerate() if one.name == "octavo-upgrade"]
    assert running.reports == []


async def test_kernels_that_fail_leave_torch_and_say_so(
    checkpoint: Path, compiler: Compiler
) -> None:
    running = Running(checkpoint)
    await running.load()
    compiler.error = EngineError("The processor's kernels could not be compiled: no room.")
    compiler.may_end.set()
    report = await running.until_switched()
    assert not report.is_temporary
    assert report.executor == "plain torch"
    assert "no room" in report.executor_reason
    result = await running.collect(streams(1)[0])
    assert len(result.token_ids) == 40
    assert await running.thread.close()


def test_torch_is_planned_beside_the_kernels_or_not_at_all(checkpoint: Path) -> None:
    header = read_checkpoint(checkpoint)
    model = read_model_config(header)
    config = EngineConfig(num_kv_blocks=40)

    def plans(free_bytes: int) -> Any:
        device = Device("cpu", 0, "test CPU", 8 << 30, free_bytes)
        plan = plan_load(header, model, config, device)
        return plan, plan_meanwhile(plan, model, config)

    plan, meanwhile = plans(7 << 30)
    assert meanwhile is not None
    assert meanwhile.total_bytes > plan.total_bytes
    assert meanwhile.num_group_blocks == plan.num_group_blocks
    assert meanwhile.kv_dtype == plan.kv_dtype == "float16"
    assert meanwhile.max_model_len == plan.max_model_len
    assert not meanwhile.uses_kernels
    plan, meanwhile = plans(plan.total_bytes)
    assert plan.fits
    assert meanwhile is None


def test_a_load_that_waits_has_nothing_to_upgrade(checkpoint: Path) -> None:
    started_at = time.monotonic()
    engine, report = load_engine(checkpoint, EngineConfig(device="cpu", **BLOCKS), JobControl())
    assert engine.upgrade is None
    assert report.executor == "CPU kernels", time.monotonic() - started_at
    engine.add_request(streams(1)[0])
    assert len(drain(engine)["0", 0].token_ids) == 40

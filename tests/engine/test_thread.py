"""The engine thread, with a fake engine: streams, aborts, deaths, dead loops, posts."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from octavo.engine.device import Device
from octavo.engine.load_report import LoadReport
from octavo.engine.memory import MemoryPlan
from octavo.engine.request import EngineStats, FinishReason, GenerationDelta, GenerationRequest
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.thread import EngineThread
from octavo.errors import (
    CheckpointError,
    DeviceLostError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
)
from octavo.jobs import JobCancelled, JobControl, Progress

REFUSED = "refused"
POISON = "poison"
FATAL = "fatal"


def make_report() -> LoadReport:
    cpu = Device("cpu", 0, "CPU", 2**34, 2**33, None, True, "")
    plan = MemoryPlan(
        device=cpu,
        dtype="float32",
        items=(),
        num_kv_blocks=8,
        block_size=16,
        max_model_len=112,
    )
    return LoadReport(plan, 0.1, 0, "fake", "", "")


class FakeEngine:
    """Gives each request one letter a step; ends the process's patience on purpose."""

    def __init__(self) -> None:
        self.thread_id = threading.get_ident()
        self.left: dict[str, int] = {}
        self.aborted: list[str] = []
        self.steps_since_abort: list[int] = []
        self.num_steps = 0
        self.is_closed = False

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    def add_request(self, request: GenerationRequest) -> None:
        assert threading.get_ident() == self.thread_id
        if request.request_id.startswith(REFUSED):
            raise InvalidRequestError("No.")
        self.left[request.request_id] = request.sampling_params.max_tokens or 1

    def abort(self, request_id: str) -> list[GenerationDelta]:
        self.aborted.append(request_id)
        if self.left.pop(request_id, None) is None:
            return []
        return [GenerationDelta(request_id, finish_reason=FinishReason.ABORT, index=0)]

    def fail_all(self, error: Exception) -> list[GenerationDelta]:
        failed, self.left = list(self.left), {}
        return [
            GenerationDelta(name, finish_reason=FinishReason.ERROR, error=error, index=0)
            for name in failed
        ]

    def step(self) -> list[GenerationDelta]:
        time.sleep(0.001)
        self.num_steps += 1
        deltas = []
        for name in list(self.left):
            self.left[name] -= 1
            if name.startswith(FATAL) and self.left[name] == 3:
                raise DeviceLostError("The card failed.", hint="Restart the engine.")
            if name.startswith(POISON) and self.left[name] == 3:
                raise RuntimeError("the kernel failed")
            done = self.left[name] == 0
            if done:
                del self.left[name]
            reason = FinishReason.LENGTH if done else None
            deltas.append(GenerationDelta(name, index=0, text="x", finish_reason=reason))
        return deltas

    def close(self) -> None:
        self.is_closed = True

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.left), num_steps=self.num_steps)


def request(name: str, max_tokens: int) -> GenerationRequest:
    return GenerationRequest(name, (1, 2, 3), SamplingParams(max_tokens=max_tokens))


async def collect(thread: EngineThread, name: str, max_tokens: int) -> str:
    text = ""
    async with contextlib.aclosing(thread.generate(request(name, max_tokens))) as deltas:
        async for delta in deltas:
            text += delta.text
    return text


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (the condition lives on another thread)
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running():  # type: ignore[no-untyped-def]
    engines: list[FakeEngine] = []

    def make(control: JobControl) -> tuple[FakeEngine, LoadReport]:
        engines.append(FakeEngine())
        return engines[0], make_report()

    thread = EngineThread(make)
    await thread.load(JobControl())
    try:
        yield thread, engines[0]
    finally:
        assert await thread.close()


async def test_streams_run_together_with_one_post_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    posts = 0
    original = loop.call_soon_threadsafe

    def counted(callback, *arguments, context=None):  # type: ignore[no-untyped-def]
        nonlocal posts
        posts += 1
        return original(callback, *arguments, context=context)

    async with running() as (thread, engine):
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        texts = await asyncio.gather(*(collect(thread, f"r{i}", 40) for i in range(8)))
        monkeypatch.undo()
        assert texts == ["x" * 40] * 8
        assert posts <= engine.num_steps


async def test_leaving_the_stream_aborts_the_request() -> None:
    async with running() as (thread, engine):
        async with contextlib.aclosing(thread.generate(request("a", 10_000))) as deltas:
            async for _ in deltas:
                break
        await until(lambda: engine.aborted == ["a"])
        assert not engine.has_work


async def test_cancelling_the_task_aborts_the_request() -> None:
    async with running() as (thread, engine):
        task = asyncio.create_task(collect(thread, "a", 10_000))
        await until(lambda: engine.has_work)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.aborted == ["a"])


async def test_a_refused_request_raises_and_disturbs_nobody() -> None:
    async with running() as (thread, _):
        other = asyncio.create_task(collect(thread, "a", 30))
        with pytest.raises(InvalidRequestError):
            await collect(thread, REFUSED, 3)
        assert await other == "x" * 30


async def test_an_engine_error_fails_its_requests_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as (thread, _):
        results = await asyncio.gather(
            collect(thread, POISON, 20), collect(thread, "b", 10_000), return_exceptions=True
        )
        for result in results:
            assert isinstance(result, EngineError)
            assert "the kernel failed" in result.message
            assert result.hint
        assert await collect(thread, "c", 5) == "x" * 5
    assert "A step failed" in caplog.text


async def test_a_lost_device_fails_everybody_and_ends_the_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeEngine()
    lost: list[DeviceLostError] = []

    def make(control: JobControl) -> tuple[FakeEngine, LoadReport]:
        engine.thread_id = threading.get_ident()
        return engine, make_report()

    thread = EngineThread(make, on_lost=lost.append)
    await thread.load(JobControl())
    results = await asyncio.gather(
        collect(thread, FATAL, 20), collect(thread, "b", 10_000), return_exceptions=True
    )
    assert [type(one) for one in results] == [DeviceLostError] * 2
    await until(lambda: bool(lost))
    assert lost == [results[0]]
    with pytest.raises(EngineClosedError):
        await collect(thread, "c", 5)
    assert await thread.close()
    assert not engine.is_closed, "nothing of a lost device can be given back"
    assert "The device is lost" in caplog.text


async def test_two_loops_listen_at_once() -> None:
    async with running() as (thread, _):
        texts: list[str] = []
        other = threading.Thread(
            target=lambda: texts.append(asyncio.run(collect(thread, "other", 30)))
        )
        other.start()
        assert await collect(thread, "mine", 30) == "x" * 30
        await asyncio.to_thread(other.join)
        assert texts == ["x" * 30]


async def test_a_closed_loop_does_not_kill_the_engine() -> None:
    async with running() as (thread, engine):

        def die_listening() -> None:
            loop = asyncio.new_event_loop()
            stream = thread.generate(request("orphan", 10_000))
            loop.run_until_complete(anext(stream))
            orphans.append(stream)  # kept alive, so that nobody closes it
            loop.close()

        orphans: list[object] = []
        await asyncio.to_thread(die_listening)
        await until(lambda: "orphan" in engine.aborted)
        assert await collect(thread, "a", 5) == "x" * 5
        assert not engine.has_work


async def test_closing_ends_open_streams_with_a_sentence() -> None:
    async with running() as (thread, engine):
        task = asyncio.create_task(collect(thread, "a", 10_000))
        await until(lambda: engine.has_work)
        assert await thread.close()
        assert engine.is_closed
        with pytest.raises(EngineClosedError):
            await task
        with pytest.raises(EngineClosedError):
            await collect(thread, "b", 1)


async def test_a_failed_load_raises_where_it_was_asked_for() -> None:
    def make(control: JobControl) -> tuple[FakeEngine, LoadReport]:
        raise CheckpointError("The file is damaged.")

    thread = EngineThread(make)
    with pytest.raises(CheckpointError):
        await thread.load(JobControl())
    with pytest.raises(EngineClosedError):
        await collect(thread, "a", 1)
    assert await thread.close()


async def test_a_cancelled_load_ends_the_thread() -> None:
    started = threading.Event()
    ended: list[BaseException] = []

    def make(control: JobControl) -> tuple[FakeEngine, LoadReport]:
        started.set()
        try:
            while True:
                control.report(Progress("Loading"))
                time.sleep(0.001)
        except JobCancelled as error:
            ended.append(error)
            raise

    thread = EngineThread(make)
    task = asyncio.create_task(thread.load(JobControl()))
    await asyncio.to_thread(started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await thread.close()
    assert ended

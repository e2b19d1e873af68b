"""The host: loads, refuses, streams, stops, unloads, and says what it does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octavo.engine.checkpoint_parts import CheckpointParts
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.engine import Engine
from octavo.engine.load_report import LoadReport
from octavo.engine.loading import load_engine
from octavo.engine.request import FinishReason
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.sequence import ScheduledBatch, StepOutput
from octavo.engine.thread import SteppedEngine
from octavo.errors import (
    ChatTemplateError,
    CheckpointError,
    DeviceLostError,
    EngineClosedError,
    InsufficientMemoryError,
    PromptTooLongError,
)
from octavo.host import HostState, HostStatus, ModelHost
from octavo.hub.library import LibraryModel, ModelLibrary
from octavo.jobs import JobControl
from octavo.running import RunningModels, running_models
from tests.support.gguf_files import write_tiny_llama

MESSAGES = [{"role": "user", "content": "hello"}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture
def library(tmp_path: Path) -> ModelLibrary:
    return ModelLibrary(lambda: [tmp_path])


@pytest.fixture
def tiny(tmp_path: Path, library: ModelLibrary) -> LibraryModel:
    write_tiny_llama(tmp_path / "tiny.gguf")
    return library.find("tiny")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[ModelHost]:
    config = EngineConfig(device="cpu", num_kv_blocks=40, block_size=8)
    host = ModelHost(lambda: config, RunningModels(tmp_path / "run"))
    yield host
    assert await host.close()


async def answer(host: ModelHost, params: SamplingParams = GREEDY) -> str:
    async with contextlib.aclosing(host.stream_chat(MESSAGES, params)) as deltas:
        return "".join([delta.text async for delta in deltas])


async def test_load_chat_unload(host: ModelHost, tiny: LibraryModel, tmp_path: Path) -> None:
    states: list[HostState] = []
    host.state_changed.connect(states.append)
    await host.load(tiny)
    assert host.state.status is HostStatus.READY
    report = host.state.report
    assert report is not None
    assert report.plan.num_kv_blocks == 40
    assert "unpacked to float32" in report.weights_note
    assert host.context_limit_tokens == 256
    (record,) = running_models(tmp_path / "run")
    sizes = {item.name: item.num_bytes for item in report.plan.items}
    assert record.model == "tiny"
    assert record.memory_bytes == report.plan.total_bytes - sizes["Reserve"]
    assert await answer(host) == await answer(host)
    assert host.stats.num_running == 0
    assert host.stats.prefix_hit_tokens > 0
    await host.unload()
    assert running_models(tmp_path / "run") == []
    with pytest.raises(EngineClosedError):
        await answer(host)
    statuses = [state.status for state in states]
    assert statuses[0] is HostStatus.LOADING
    assert statuses[-2:] == [HostStatus.UNLOADING, HostStatus.EMPTY]
    assert any(state.progress and state.progress.stage == "Loading weights" for state in states)


async def test_a_lost_device_is_said_until_the_engine_is_restarted(
    tiny: LibraryModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engines: list[Engine] = []

    def make(
        parts: CheckpointParts, config: EngineConfig, control: JobControl
    ) -> tuple[SteppedEngine, LoadReport]:
        engine, report = load_engine(parts, config, control)
        engines.append(engine)
        return engine, report

    def fail(batch: ScheduledBatch) -> StepOutput:
        raise DeviceLostError("The card failed: an ECC error.", hint="Restart the engine.")

    config = EngineConfig(device="cpu", num_kv_blocks=40, block_size=8)
    host = ModelHost(lambda: config, RunningModels(tmp_path / "run"), make_engine=make)
    await host.load(tiny)
    engines[0]._runner.execute = fail  # type: ignore[method-assign]
    with pytest.raises(DeviceLostError):
        await answer(host)
    async with asyncio.timeout(5):
        while host.state.status is not HostStatus.FAILED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "ECC" in str(host.state.error)
    assert host.state.model == tiny
    assert running_models(tmp_path / "run") == []
    with pytest.raises(DeviceLostError, match="ECC"):
        await answer(host)
    states: list[HostStatus] = []
    host.state_changed.connect(lambda state: states.append(state.status))
    await host.load(tiny)
    assert states[-1] is HostStatus.READY
    assert await answer(host)
    assert await host.close()
    assert "The device is lost" in caplog.text


async def test_loading_another_model_replaces_the_first(
    host: ModelHost, tiny: LibraryModel, library: ModelLibrary
) -> None:
    write_tiny_llama(tiny.path.with_name("other.gguf"), seed=5)
    await host.load(tiny)
    first = await answer(host)
    await host.load(library.find("other"))
    assert host.state.model is not None
    assert host.state.model.name == "other"
    assert await answer(host) != first


async def test_count_is_what_the_engine_sees(host: ModelHost, tiny: LibraryModel) -> None:
    await host.load(tiny)
    async with contextlib.aclosing(host.stream_chat(MESSAGES, GREEDY)) as deltas:
        metrics = [delta.metrics async for delta in deltas if delta.metrics]
    assert metrics[0].prompt_tokens == host.count_tokens(MESSAGES)


async def test_unloading_ends_a_running_answer(host: ModelHost, tiny: LibraryModel) -> None:
    await host.load(tiny)
    task = asyncio.create_task(answer(host, SamplingParams(max_tokens=200, ignore_eos=True)))
    async with asyncio.timeout(30):
        while not host.stats.num_running:  # noqa: ASYNC110  (it runs on another thread)
            await asyncio.sleep(0.001)
    await host.unload()
    with pytest.raises(EngineClosedError, match="unloaded"):
        await task


async def test_stopping_frees_the_blocks(host: ModelHost, tiny: LibraryModel) -> None:
    await host.load(tiny)
    params = SamplingParams(max_tokens=230, ignore_eos=True)
    async with contextlib.aclosing(host.stream_chat(MESSAGES, params)) as deltas:
        async for _ in deltas:
            break
    async with asyncio.timeout(30):
        while host.stats.num_used_blocks:  # noqa: ASYNC110  (it runs on another thread)
            await asyncio.sleep(0.001)


async def test_what_does_not_fit_is_refused_before_torch(
    tmp_path: Path, tiny: LibraryModel
) -> None:
    def must_not_load(*_: object) -> None:
        raise AssertionError("the plan comes first")

    small = Device("cpu", 0, "Small CPU", 2**26, 2**20)
    host = ModelHost(
        EngineConfig,
        RunningModels(tmp_path / "run"),
        make_engine=must_not_load,  # type: ignore[arg-type]
        devices=lambda: [small],
    )
    with pytest.raises(InsufficientMemoryError) as caught:
        await host.load(tiny)
    assert caught.value.needed_bytes > caught.value.free_bytes == 2**20
    assert caught.value.hint
    assert host.state.status is HostStatus.FAILED
    assert host.state.error is caught.value


async def test_a_damaged_file_fails_with_its_sentence(host: ModelHost, tiny: LibraryModel) -> None:
    content = tiny.path.read_bytes()
    tiny.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="incomplete"):
        await host.load(tiny)
    assert host.state.status is HostStatus.FAILED
    tiny.path.write_bytes(content)
    await host.load(tiny)
    assert await answer(host)


async def test_a_file_deleted_meanwhile(host: ModelHost, tiny: LibraryModel) -> None:
    tiny.path.unlink()
    with pytest.raises(Exception, match="tiny") as caught:
        await host.load(tiny)
    assert host.state.error is caught.value


async def test_cancelling_a_load_leaves_nothing(host: ModelHost, tiny: LibraryModel) -> None:
    task = asyncio.create_task(host.load(tiny))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.state.status is HostStatus.EMPTY
    await host.load(tiny)
    assert await answer(host)


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{% if %}", "template"), ("{{ raise_exception('Roles must alternate') }}", "alternate")],
)
async def test_a_broken_template_loads_and_says_so_in_chat(
    host: ModelHost, tmp_path: Path, library: ModelLibrary, template: str, reason: str
) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf", chat_template=template)
    await host.load(library.find("tiny"))
    with pytest.raises(ChatTemplateError, match=reason) as caught:
        await answer(host)
    assert caught.value.hint
    raw = host.generate([1, 2, 3], GREEDY)
    assert [delta.finish_reason async for delta in raw][-1] is FinishReason.LENGTH


async def test_a_base_model_says_it_cannot_chat(
    host: ModelHost, tmp_path: Path, library: ModelLibrary
) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf", chat_template=None)
    await host.load(library.find("tiny"))
    with pytest.raises(ChatTemplateError, match="no chat template"):
        await answer(host)


async def test_an_oversize_prompt_is_refused_with_counts(
    host: ModelHost, tiny: LibraryModel
) -> None:
    await host.load(tiny)
    long = [{"role": "user", "content": "hello " * 500}]
    with pytest.raises(PromptTooLongError) as caught:
        async for _ in host.stream_chat(long, GREEDY):
            pass
    assert caught.value.prompt_tokens == host.count_tokens(long)
    assert caught.value.limit_tokens == 255  # one is for the answer

"""`ModelHost`: which model is loaded; load, unload, and messages turned into a stream of deltas."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.checkpoint.identity import identity_of
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device, choose_device, detect_devices
from octavo.engine.freed_memory import return_freed_memory
from octavo.engine.load_report import LoadReport
from octavo.engine.memory import RESERVE, MemoryPlan
from octavo.engine.planning import plan_load
from octavo.engine.request import EngineStats, GenerationDelta, GenerationRequest
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.thread import EngineThread, SteppedEngine
from octavo.errors import ChatTemplateError, DeviceLostError, EngineClosedError, OctavoError
from octavo.events import Event
from octavo.hub.library import LibraryModel
from octavo.jobs import JobControl, Progress
from octavo.running import RunningModels

if TYPE_CHECKING:
    from octavo.engine.chat_template import ChatTemplate
    from octavo.engine.checkpoint_parts import CheckpointParts
    from octavo.engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 1 / 30


class HostStatus(StrEnum):
    """What the host is doing."""

    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class HostState:
    """A snapshot of the host; `model` is the one that is loaded, loading or failed to load.

    A model that is ready has a `progress` while something faster is prepared to compute it.
    """

    status: HostStatus = HostStatus.EMPTY
    model: LibraryModel | None = None
    progress: Progress | None = None
    error: OctavoError | None = None
    report: LoadReport | None = None


@dataclass(frozen=True, slots=True)
class _TextSide:
    """What was read of a model beside its weights, for any thread: messages to token ids."""

    parts: "CheckpointParts"
    chat_template: "ChatTemplate | None"
    chat_template_error: ChatTemplateError | None
    identity: str
    """Of the files that it was read from."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    thread: EngineThread
    text: _TextSide
    report: LoadReport


MakeEngine = Callable[
    ["CheckpointParts", EngineConfig, JobControl], tuple[SteppedEngine, LoadReport]
]


def _load_engine(
    parts: "CheckpointParts", config: EngineConfig, control: JobControl
) -> tuple[SteppedEngine, LoadReport]:
    """Imports torch on the engine thread, at the first load and not before."""
    control.report(Progress("Starting the engine"))
    from octavo.engine.loading import load_engine

    return load_engine(parts, config, control)


def _prepare_environment() -> None:
    """Sets what torch's libraries read once, when they are loaded; a person's own values win."""
    # NVML, which the plan asks, counts GPUs in bus order; CUDA is to mean the same by a number.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # OpenMP threads that wait spin for milliseconds by default: where another program is busy on
    # a core, that costs much of the decode rate (MEASUREMENTS.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


class ModelHost:
    """One model at a time; loading and unloading belong to the event loop that made it.

    What only reads (`state`, `stats`, `tokenizer`, `context_limit_tokens`, `encode_chat`) may be
    called from any thread, and `stream_chat` and `generate` from any event loop.
    """

    def __init__(
        self,
        engine_config: Callable[[], EngineConfig],
        running: RunningModels,
        *,
        make_engine: MakeEngine = _load_engine,
        devices: Callable[[], list[Device]] = detect_devices,
    ) -> None:
        """Args:
        engine_config: asked at each load and plan, so that changed settings count from the next.
        running: where loaded models are written down for `octavo ps`.
        """
        _prepare_environment()
        self._engine_config = engine_config
        self._running = running
        self._make_engine = make_engine
        self._devices = devices
        self._loaded: _Loaded | None = None
        # Of the latest load: who loads a model again does not wait for its vocabulary again.
        self._text: _TextSide | None = None
        self._load_lock = asyncio.Lock()
        self._state = HostState()
        self.state_changed: Event[HostState] = Event()

    @property
    def state(self) -> HostState:
        return self._state

    @property
    def stats(self) -> EngineStats:
        loaded = self._loaded
        return EngineStats() if loaded is None else loaded.thread.stats

    @property
    def tokenizer(self) -> "Tokenizer":
        """Raises EngineClosedError while no model is loaded."""
        return self._require().text.parts.tokenizer

    @property
    def context_limit_tokens(self) -> int:
        """The longest sequence the model and the KV pool allow; 0 while nothing is loaded."""
        loaded = self._loaded
        if loaded is None:
            return 0
        plan = loaded.report.plan
        return min(plan.max_model_len, plan.kv_tokens)

    def plan(self, model: LibraryModel) -> MemoryPlan:
        """Predicts what loading this model takes, from its header alone.

        Raises:
            ModelError: the file is damaged or of a kind Octavo does not run.
        """
        return self.plan_header(read_checkpoint(model.path))

    def plan_header(self, header: CheckpointHeader) -> MemoryPlan:
        """Predicts what loading a model of this header takes, as of one still on the hub.

        Raises:
            ModelError: it is of a kind Octavo does not run.
        """
        config = self._engine_config()
        device = choose_device(config, self._devices())
        from octavo.engine.checkpoint_parts import read_model_config

        return plan_load(header, read_model_config(header), config, device)

    async def load(self, model: LibraryModel) -> None:
        """Unloads what is loaded and loads this model. Cancelling the task cancels the load.

        Raises:
            OctavoError: what stood in the way; `state` holds it, too.
        """
        async with self._load_lock:
            await self._unload()
            self._set_state(
                HostState(HostStatus.LOADING, model, Progress("Reading the model file"))
            )
            try:
                self._loaded = await self._load(model)
            except asyncio.CancelledError:
                self._set_state(HostState())
                raise
            except OctavoError as error:
                self._set_state(HostState(HostStatus.FAILED, model, error=error))
                raise
            report = self._loaded.report
            plan = report.plan
            # The reserve is left to other programs, not taken.
            taken = sum(item.num_bytes for item in plan.items if item.name != RESERVE)
            self._running.add(model.name, plan.device.name, taken)
            self._set_state(HostState(HostStatus.READY, model, report=report))

    async def unload(self) -> None:
        """Ends every request, then frees the model's memory."""
        async with self._load_lock:
            await self._unload()
            self._set_state(HostState())

    async def close(self) -> bool:
        """Unloads for good; False if the engine thread did not come back in time."""
        async with self._load_lock:
            return await self._unload()

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Turns messages into the token ids the model sees, the opening of its answer included.

        Raises:
            EngineClosedError: no model is loaded.
            ChatTemplateError: the model has no chat template, or it fails on these messages.
        """
        text = self._require().text
        if text.chat_template_error is not None:
            raise text.chat_template_error
        if text.chat_template is None:
            raise ChatTemplateError(
                f"{text.parts.model_config.name} has no chat template: it is a base model that only"
                " continues text.",
                hint="Use an instruct version of it to chat.",
            )
        return text.chat_template.encode(text.parts.tokenizer, messages)

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Exact prompt length of these messages; raises as `encode_chat`."""
        return len(self.encode_chat(messages))

    async def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling_params: SamplingParams,
        *,
        request_id: str | None = None,
    ) -> AsyncGenerator[GenerationDelta, None]:
        """Streams the model's answer; leave it through `contextlib.aclosing`, which stops it.

        Raises:
            OctavoError: no model, a prompt that cannot fit, a template or engine error.
        """
        # Long conversations take a while to tokenise; the window must not wait for it.
        prompt_token_ids = await asyncio.to_thread(self.encode_chat, messages)
        deltas = self.generate(prompt_token_ids, sampling_params, request_id=request_id)
        async with contextlib.aclosing(deltas) as stream:
            async for delta in stream:
                yield delta

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        sampling_params: SamplingParams,
        *,
        request_id: str | None = None,
    ) -> AsyncGenerator[GenerationDelta, None]:
        """Continues token ids; otherwise as `stream_chat`."""
        request = GenerationRequest(
            request_id=request_id or uuid.uuid4().hex,
            prompt_token_ids=tuple(prompt_token_ids),
            sampling_params=sampling_params,
        )
        deltas = self._require().thread.generate(request)
        async with contextlib.aclosing(deltas) as stream:
            async for delta in stream:
                yield delta

    def _require(self) -> _Loaded:
        loaded = self._loaded
        if loaded is None:
            if isinstance(self._state.error, DeviceLostError):
                raise self._state.error
            raise EngineClosedError("No model is loaded.", hint="Load one first.")
        return loaded

    async def _load(self, model: LibraryModel) -> _Loaded:
        config = self._engine_config()
        loop = asyncio.get_running_loop()

        shown_at, shown_stage = 0.0, ""

        def on_progress(progress: Progress) -> None:
            """A load reports every tensor; listeners are told as often as an eye can follow."""
            nonlocal shown_at, shown_stage
            now = time.monotonic()
            if progress.stage != shown_stage or now - shown_at >= PROGRESS_INTERVAL_S:
                shown_at, shown_stage = now, progress.stage
                with contextlib.suppress(RuntimeError):  # the loop has closed
                    loop.call_soon_threadsafe(self._show_progress, progress)

        later: list[LoadReport] = []

        def on_report(report: LoadReport) -> None:
            later.append(report)
            if self._loaded is not None and self._loaded.thread is thread:
                self._loaded = dataclasses.replace(self._loaded, report=report)
                self._set_state(dataclasses.replace(self._state, report=report, progress=None))

        control = JobControl(on_progress)
        self._text = text = await asyncio.to_thread(self._read_text_side, model.path)
        thread = EngineThread(
            lambda control: self._make_engine(text.parts, config, control), on_lost=self._lose
        )
        report = await thread.load(control, on_report)
        return _Loaded(thread, text, later[-1] if later else report)

    def _read_text_side(self, path: Path) -> _TextSide:
        """Plans first: what cannot fit is refused before anything large is read or imported."""
        known = self._text
        if known is None or known.parts.header.path != path or not _is_unchanged(known):
            header = read_checkpoint(path)
            self.plan_header(header).require_fit()
            return _read_text_side(header)
        self.plan_header(known.parts.header).require_fit()
        return known

    def _lose(self, error: DeviceLostError) -> None:
        """The engine has ended by itself; whoever asks from now on is told why."""
        if self._loaded is None:  # unloaded meanwhile
            return
        self._loaded = None
        self._running.remove()
        self._set_state(HostState(HostStatus.FAILED, self._state.model, error=error))

    async def _unload(self) -> bool:
        if self._loaded is None:
            return True
        loaded, self._loaded = self._loaded, None
        self._set_state(dataclasses.replace(self._state, status=HostStatus.UNLOADING))
        self._running.remove()
        came_back = await loaded.thread.close()
        if not came_back:
            logger.error("The engine thread did not end within its time")
        del loaded
        await asyncio.to_thread(return_freed_memory)
        return came_back

    def _show_progress(self, progress: Progress) -> None:
        is_shown = self._state.status in (HostStatus.LOADING, HostStatus.READY)
        if is_shown and progress != self._state.progress:
            self._set_state(dataclasses.replace(self._state, progress=progress))

    def _set_state(self, state: HostState) -> None:
        self._state = state
        self.state_changed.emit(state)


def _is_unchanged(text: _TextSide) -> bool:
    try:
        return identity_of(text.parts.header) == text.identity
    except OSError:
        return False


def _read_text_side(header: CheckpointHeader) -> _TextSide:
    """A broken chat template does not stop the load: the error waits until a chat needs it."""
    from octavo.engine.checkpoint_parts import (
        CheckpointParts,
        read_chat_template,
        read_model_config,
        read_tokenizer,
    )

    identity = identity_of(header)
    tokenizer = read_tokenizer(header)
    template, template_error = None, None
    try:
        template = read_chat_template(header, tokenizer)
    except ChatTemplateError as error:
        template_error = error
    parts = CheckpointParts(header, read_model_config(header), tokenizer)
    return _TextSide(parts, template, template_error, identity)

"""The parts of `Core` that the window uses, without engine, network or database."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QLineEdit, QWidget

from octavo.core import Core
from octavo.engine.device import Device
from octavo.engine.load_report import LoadReport
from octavo.engine.memory import MemoryItem, MemoryPlan
from octavo.engine.request import EngineStats
from octavo.engine.tile_store import TileStore
from octavo.errors import ModelNotFoundError, OctavoError, UnsupportedModelError
from octavo.events import Event
from octavo.host import HostState, HostStatus
from octavo.hub.catalog import load_catalog
from octavo.hub.hub_cache import HubCache
from octavo.hub.library import LibraryModel
from octavo.hub.token_store import TokenStore
from octavo.jobs import Progress
from octavo.monitor.readings import (
    CpuReading,
    DiskReading,
    GpuReading,
    MachineReading,
    MemoryReading,
)
from octavo.paths import AppPaths, resources_dir
from octavo.server.address import ServerAddress
from octavo.server.board import RequestRecord, RequestState
from octavo.settings import SettingsStore
from tests.ui.hub_fakes import FakeDownloads, FakeHub

GIB = 2**30
CPU = Device("cpu", 0, "AMD Ryzen 7 7840U", total_bytes=32 * GIB, free_bytes=15 * GIB)


def make_model(name: str = "smollm2-135m-instruct-q4_1", **fields: object) -> LibraryModel:
    model = LibraryModel(
        name=name,
        title="SmolLM2 135M Instruct",
        path=Path("/models") / f"{name}.gguf",
        size_bytes=98_362_432,
        architecture="llama",
        quantization="Q4_1",
        num_parameters=134_515_008,
        context_length=8192,
        license="apache-2.0",
    )
    return dataclasses.replace(model, **fields)  # type: ignore[arg-type]


MODELS = (
    make_model(),
    make_model(
        "meta-llama-3.1-8b-instruct-q4_k_m",
        title="Meta Llama 3.1 8B Instruct",
        size_bytes=4_920_739_232,
        quantization="Q4_K_M",
        num_parameters=8_030_261_312,
        context_length=131_072,
        license="llama3.1",
    ),
    make_model(
        "mistral-large-123b-q4_0",
        title="Mistral Large Instruct 2411",
        size_bytes=69_320_000_000,
        quantization="Q4_0",
        num_parameters=122_610_069_504,
        context_length=131_072,
        license="",
    ),
    make_model(
        "phi-3-mini",
        title="phi-3-mini",
        size_bytes=2_100_000_000,
        architecture="phi3",
        quantization="",
        num_parameters=0,
        context_length=0,
        license="",
        problem="The architecture phi3 is not supported yet. Use a Llama model.",
    ),
)


def make_plan(model: LibraryModel, device: Device = CPU) -> MemoryPlan:
    """A plan in bfloat16 with a small cache, so that the sizes tell what fits."""
    return MemoryPlan(
        device=device,
        dtype="bfloat16",
        items=(
            MemoryItem(
                "Weights",
                2 * model.num_parameters,
                f"{model.num_parameters / 1e6:,.0f} million parameters in bfloat16",
            ),
            MemoryItem("KV cache", GIB // 4, "16,384 tokens in blocks of 16"),
            MemoryItem("Workspace", GIB // 16, "one step of up to 512 tokens and 64 sequences"),
        ),
        num_kv_blocks=1025,
        block_size=16,
        max_model_len=model.context_length,
        remedies=("Use a shorter context or a smaller model.",),
    )


class FakeLibrary:
    def __init__(self, models: Sequence[LibraryModel] = ()) -> None:
        self.changed: Event[None] = Event()
        self.models = list(models)
        self.problems: list[str] = []

    def scan(self) -> list[LibraryModel]:
        return list(self.models)

    def find(self, name: str) -> LibraryModel:
        for model in self.models:
            if name in (model.name, str(model.path), "starter"):
                return model
        raise ModelNotFoundError(f"No model named {name!r} is in the library.")

    def remove(self, model: LibraryModel) -> int:
        self.models.remove(model)
        self.changed.emit(None)
        return model.size_bytes


class FakeHost:
    """Loads at once, unless `gate` is given: then it waits for it."""

    def __init__(self) -> None:
        self.state = HostState()
        self.state_changed: Event[HostState] = Event()
        self.gate: asyncio.Event | None = None
        self.load_error: OctavoError | None = None
        self.is_closed = False
        self.context_limit_tokens = 0
        self.stats = EngineStats()

    def plan(self, model: LibraryModel) -> MemoryPlan:
        if model.architecture != "llama":
            raise UnsupportedModelError(f"The architecture {model.architecture} is not supported.")
        return make_plan(model)

    def plan_header(self, header: LibraryModel) -> MemoryPlan:
        """Plans what a fake inspection has read."""
        return self.plan(header)

    async def load(self, model: LibraryModel) -> None:
        progress = Progress("Loading weights", model.size_bytes // 3, model.size_bytes)
        self.set_state(HostState(HostStatus.LOADING, model, progress))
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.set_state(HostState())
                raise
        if self.load_error is not None:
            self.set_state(HostState(HostStatus.FAILED, model, error=self.load_error))
            raise self.load_error
        self.set_ready(model)

    def set_ready(self, model: LibraryModel) -> None:
        report = LoadReport(
            plan=make_plan(model),
            load_s=0.4,
            resident_growth_bytes=0,
            executor="plain torch",
            executor_reason="",
            weights_note="",
        )
        self.set_state(HostState(HostStatus.READY, model, report=report))

    async def unload(self) -> None:
        self.set_state(HostState())

    async def close(self) -> bool:
        self.is_closed = True
        return True

    def set_state(self, state: HostState) -> None:
        self.state = state
        self.state_changed.emit(state)


def make_gpu(**fields: object) -> GpuReading:
    gpu = GpuReading(
        name="NVIDIA GeForce RTX 4090",
        uuid="GPU-1",
        vram_used_bytes=9 * GIB,
        vram_total_bytes=24 * GIB,
        utilization_percent=87.0,
        temperature_c=61.0,
        power_w=312.0,
        power_limit_w=450.0,
        clock_sm_mhz=2520,
        clock_memory_mhz=10501,
    )
    return dataclasses.replace(gpu, **fields)  # type: ignore[arg-type]


def make_reading(time_s: float = 1.0, gpus: Sequence[GpuReading] = ()) -> MachineReading:
    return MachineReading(
        time_s=time_s,
        cpu=CpuReading(37.0, 16),
        memory=MemoryReading(32 * GIB, 17 * GIB, 15 * GIB, 2 * GIB),
        disk=DiskReading("/models", 900 * GIB, 412 * GIB, 3.0 * 2**20, 1.0 * 2**20),
        gpus=tuple(gpus),
    )


class FakeSampler:
    """Reads when a test says so."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[MachineReading], None]] = []
        self.intervals_s: list[float] = []
        """Of everybody who ever listened."""
        self.is_closed = False

    def listen(
        self, callback: Callable[[MachineReading], None], *, interval_s: float = 0.0
    ) -> Callable[[], None]:
        self.intervals_s.append(interval_s)
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def close(self) -> None:
        self.is_closed = True

    def post(self, reading: MachineReading) -> None:
        for listener in tuple(self.listeners):
            listener(reading)


def make_record(request_id: str = "one", **fields: object) -> RequestRecord:
    record = RequestRecord(
        request_id=request_id,
        client="127.0.0.1:51234",
        route="/v1/chat/completions",
        model="smollm2-135m-instruct-q4_1",
        state=RequestState.RUNNING,
        prompt_tokens=1204,
        cached_tokens=None,
        output_tokens=96,
        started_at=time.time(),
        elapsed_s=2.5,
        tokens_per_second=41.2,
    )
    return dataclasses.replace(record, **fields)  # type: ignore[arg-type]


class FakeBoard:
    def __init__(self) -> None:
        self.live_records: list[RequestRecord] = []
        self.recent_records: list[RequestRecord] = []
        self.cancelled: list[str] = []

    def live(self) -> tuple[RequestRecord, ...]:
        return tuple(self.live_records)

    def recent(self) -> tuple[RequestRecord, ...]:
        return tuple(self.recent_records)

    def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True


class FakeServer:
    def __init__(self) -> None:
        self.board = FakeBoard()
        self.address: ServerAddress | None = None
        self.start_error: OctavoError | None = None


class FakeChats:
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeCore:
    """Stands in for `Core`; `as_core` is the same object for the type checker."""

    def __init__(self, root: Path, models: Sequence[LibraryModel] = ()) -> None:
        self.paths = AppPaths.below(root)
        self.settings = SettingsStore(self.paths.settings_file)
        self.starter = load_catalog(resources_dir())["starter"]
        self.library = FakeLibrary(models)
        self.host = FakeHost()
        self.chats = FakeChats()
        self.sampler = FakeSampler()
        self.server = FakeServer()
        self.server_error: OctavoError | None = None
        self.server_gate: asyncio.Event | None = None
        self.server_note = ""
        self.downloads = FakeDownloads()
        self.fake_hub = FakeHub()
        self.tokens = TokenStore(self.paths.token_file)
        self.tile_store = TileStore(self.paths.tiles_dir)
        self.hub_cache = HubCache(root / "hub-cache")

    def hub(self) -> FakeHub:
        return self.fake_hub

    async def start_server(self) -> ServerAddress:
        if self.server_gate is not None:
            await self.server_gate.wait()
        self.server.start_error = self.server_error
        if self.server_error is not None:
            raise self.server_error
        port = self.settings.value.server.port
        self.server.address = ServerAddress("127.0.0.1", port, self.server_note)
        return self.server.address

    async def stop_server(self) -> bool:
        self.server.address = None
        return True

    @property
    def models_dir(self) -> Path:
        chosen = self.settings.value.storage.models_dir
        return Path(chosen) if chosen else self.paths.models_dir

    async def close(self) -> bool:
        came_back = await self.host.close()
        self.chats.close()
        return came_back

    @property
    def as_core(self) -> Core:
        return cast("Core", self)


class FakeChatPage(QLineEdit):
    """Stands in for the chat page where only the window around it is tested."""

    models_asked = Signal()

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.shown: list[int] = []

    def show_conversation(self, conversation_id: int) -> None:
        self.shown.append(conversation_id)

    def focus_composer(self) -> None:
        self.setFocus()


class FakeConversationList(QWidget):
    conversation_selected = Signal(int)

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.is_searching = False

    def focus_search(self) -> None:
        self.is_searching = True

    def new_conversation(self) -> None:
        self.conversation_selected.emit(0)

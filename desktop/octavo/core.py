"""`Core`: builds every part from the settings and closes them in order; never a global."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.chats.store import ChatStore
from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.tile_store import TileStore
from octavo.errors import OctavoError
from octavo.host import ModelHost
from octavo.hub.catalog import CatalogEntry, load_catalog
from octavo.hub.download_queue import DownloadQueue
from octavo.hub.hub_cache import HubCache, default_hub_cache_dir
from octavo.hub.library import ModelLibrary
from octavo.hub.token_store import TokenStore
from octavo.paths import AppPaths, resources_dir
from octavo.running import RunningModels
from octavo.settings import Settings, SettingsStore

if TYPE_CHECKING:
    # What the first paint can do without is loaded when it is wanted.
    from octavo.checkpoint.header import CheckpointHeader
    from octavo.engine.kernels.cpu.kernel_cache import KernelCompiler
    from octavo.hub.hugging_face import HuggingFace
    from octavo.monitor.sampler import Sampler
    from octavo.server.address import ServerAddress
    from octavo.server.thread import ServerThread


class Core:
    """The parts of one running Octavo, for the window and the command line alike."""

    def __init__(
        self, paths: AppPaths, *, engine_overrides: Mapping[str, Any] | None = None
    ) -> None:
        """Args:
        engine_overrides: fields of EngineConfig that count instead of the settings'.
        """
        self.paths = paths
        self._engine_overrides = engine_overrides or {}
        self.settings = SettingsStore(paths.settings_file)
        self.settings_error: OctavoError | None = None
        """Why the settings file was not read; the defaults hold then, and the file is kept."""
        try:
            self.settings.load()
        except OctavoError as error:
            self.settings_error = error
        self.starter: CatalogEntry = load_catalog(resources_dir())["starter"]
        self.tile_store = TileStore(paths.tiles_dir)
        """Weights kept for the next load; removed with their models."""
        self.library = ModelLibrary(
            self._model_folders,
            hub_caches=self._hub_caches,
            starter=self.starter,
            check=_check_header,
            forget=self.tile_store.remove,
        )
        self.tokens = TokenStore(paths.token_file)
        self.host = ModelHost(self._engine_config, RunningModels(paths.run_dir))
        self._compiler: KernelCompiler | None = None

    @cached_property
    def chats(self) -> ChatStore:
        """Opened at first use: most verbs of the command line never need it."""
        return ChatStore(self.paths.chats_file)

    @cached_property
    def downloads(self) -> DownloadQueue:
        """Models of the hub on their way; nothing runs before its `start`."""
        from octavo.hub.queue_transfer import QueueTransfer

        transfer = QueueTransfer(
            self.hub,
            lambda: self.hub_cache,
            check=_check_header,
            looks_dir=self.paths.cache_dir,
        )
        downloads = DownloadQueue(
            self.paths.downloads_file,
            transfer,
            is_offline=lambda: self.settings.value.hub.is_offline,
        )
        downloads.finished.connect(lambda _: self.library.changed.emit(None))
        hub_before = self.settings.value.hub

        def on_settings(settings: Settings) -> None:
            nonlocal hub_before
            if settings.hub != hub_before:
                hub_before = settings.hub
                downloads.refresh()

        self.settings.changed.connect(on_settings)
        return downloads

    @cached_property
    def server(self) -> "ServerThread":
        """The endpoint for other programs; off until `start_server`."""
        from octavo.server.thread import ServerThread

        return ServerThread(self.host, self.library)

    @cached_property
    def sampler(self) -> "Sampler":
        """Readings of this machine; samples only while somebody listens."""
        from octavo.monitor.machine import MachineProbe
        from octavo.monitor.sampler import Sampler

        return Sampler(MachineProbe(self.models_dir))

    async def start_server(self) -> "ServerAddress":
        """Switches the endpoint on as the settings say; raises as `ServerThread.start`."""
        server = self.settings.value.server
        return await asyncio.to_thread(
            self.server.start,
            port=server.port,
            key=server.api_key,
            allowed_origins=server.allowed_origins,
        )

    async def stop_server(self) -> bool:
        """Switches the endpoint off; False if its thread did not end in time."""
        return await asyncio.to_thread(self.server.stop)

    @property
    def models_dir(self) -> Path:
        """Where downloads go."""
        chosen = self.settings.value.storage.models_dir
        return Path(chosen).expanduser() if chosen else self.paths.models_dir

    @property
    def hub_cache(self) -> HubCache:
        """Where models of the hub go: the cache that other programs share, or the person's own."""
        if self.settings.value.storage.models_dir or self.paths.is_one_folder:
            return HubCache(self.models_dir / "hub")
        return HubCache(default_hub_cache_dir())

    def hub(self, endpoint: str = "") -> "HuggingFace":
        """The hub as the settings say. Waits for the keyring; raises as `make_hub`.

        Args:
            endpoint: goes before the settings'.
        """
        hub = self.settings.value.hub
        from octavo.hub.hub_access import make_hub

        return make_hub(
            self.tokens,
            endpoint=endpoint or hub.endpoint,
            proxy=hub.proxy,
            is_offline=hub.is_offline,
        )

    async def prepare_kernels(self) -> None:
        """Compiles the CPU's kernels in a process of its own, if a first load would have to.

        A first load that comes before it is done compiles what is missing itself.
        """
        config = self._engine_config()
        if config.cpu_kernels != "off":
            self._compiler = await asyncio.to_thread(_start_compiling, config)

    async def close(self) -> bool:
        """Ends downloads, endpoint, engine, then the database; False if the engine is stuck."""
        if "downloads" in self.__dict__:
            await self.downloads.close()
        if "server" in self.__dict__:
            # Before the engine: clients are to hear why their answers end.
            await self.stop_server()
        if "sampler" in self.__dict__:
            await asyncio.to_thread(self.sampler.close)
        if self._compiler is not None:
            self._compiler.close()
        came_back = await self.host.close()
        if "chats" in self.__dict__:
            self.chats.close()
        return came_back

    def _model_folders(self) -> Sequence[Path]:
        extra = self.settings.value.storage.extra_folders
        return [self.models_dir, *(Path(folder).expanduser() for folder in extra)]

    def _hub_caches(self) -> Sequence[Path]:
        caches = [self.hub_cache.root]
        if self.settings.value.storage.shows_hub_cache:
            caches.append(default_hub_cache_dir())
        return caches

    def _engine_config(self) -> EngineConfig:
        """The engine's section of the settings; raises InvalidSettingsError."""
        settings = dataclasses.asdict(self.settings.value.engine)
        settings["kernel_cache_dir"] = str(self.paths.kernels_dir)
        settings["tile_cache_dir"] = str(self.paths.tiles_dir)
        settings["waits_for_kernels"] = False
        settings["gpu_tuning_table"] = str(self.paths.gpu_tuning_table)
        return EngineConfig(**(settings | dict(self._engine_overrides)))


def _check_header(header: "CheckpointHeader") -> None:
    """Raises an OctavoError where the engine cannot run what a header describes."""
    from octavo.engine.checkpoint_parts import read_model_config

    read_model_config(header)


def _start_compiling(config: EngineConfig) -> "KernelCompiler | None":
    """None if there is nothing to compile, or another device would run the models."""
    # Loads llvmlite, which is not needed to paint the window.
    from octavo.engine.kernels.cpu.kernel_cache import (
        USUAL_FORMS,
        KernelCompiler,
        is_cache_given,
        kernel_folder,
        missing_parts,
    )
    from octavo.engine.planning import why_not_on_this_machine

    folder = kernel_folder(config.kernel_cache_dir)
    if (
        folder is None
        or is_cache_given()
        or not missing_parts(folder, USUAL_FORMS)
        or why_not_on_this_machine()
    ):
        return None
    if choose_device(config, detect_devices()).kind != "cpu":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return KernelCompiler(folder, USUAL_FORMS)

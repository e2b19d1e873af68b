"""`Core`: builds every part from the settings and closes them in order; never a global."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from octavo.chats.store import ChatStore
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.config import EngineConfig
from octavo.errors import OctavoError
from octavo.host import ModelHost
from octavo.hub.catalog import CatalogEntry, load_catalog
from octavo.hub.library import ModelLibrary
from octavo.monitor.machine import MachineProbe
from octavo.monitor.sampler import Sampler
from octavo.paths import AppPaths, resources_dir
from octavo.running import RunningModels
from octavo.server.address import ServerAddress
from octavo.server.thread import ServerThread
from octavo.settings import SettingsStore


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
        self.library = ModelLibrary(
            self._model_folders, starter=self.starter, check=read_model_config
        )
        self.host = ModelHost(self._engine_config, RunningModels(paths.run_dir))

    @cached_property
    def chats(self) -> ChatStore:
        """Opened at first use: most verbs of the command line never need it."""
        return ChatStore(self.paths.chats_file)

    @cached_property
    def server(self) -> ServerThread:
        """The endpoint for other programs; off until `start_server`."""
        return ServerThread(self.host, self.library)

    @cached_property
    def sampler(self) -> Sampler:
        """Readings of this machine; samples only while somebody listens."""
        return Sampler(MachineProbe(self.models_dir))

    async def start_server(self) -> ServerAddress:
        """Switches the endpoint on as the settings say; raises as `ServerThread.start`."""
        server = self.settings.value.server
        return await asyncio.to_thread(self.server.start, port=server.port, key=server.api_key)

    async def stop_server(self) -> bool:
        """Switches the endpoint off; False if its thread did not end in time."""
        return await asyncio.to_thread(self.server.stop)

    @property
    def models_dir(self) -> Path:
        """Where downloads go."""
        chosen = self.settings.value.storage.models_dir
        return Path(chosen).expanduser() if chosen else self.paths.models_dir

    async def close(self) -> bool:
        """Ends the endpoint, the engine, then the database; False if the engine thread is stuck."""
        if "server" in self.__dict__:
            # First: clients are to hear why their answers end.
            await self.stop_server()
        if "sampler" in self.__dict__:
            await asyncio.to_thread(self.sampler.close)
        came_back = await self.host.close()
        if "chats" in self.__dict__:
            self.chats.close()
        return came_back

    def _model_folders(self) -> Sequence[Path]:
        extra = self.settings.value.storage.extra_folders
        return [self.models_dir, *(Path(folder).expanduser() for folder in extra)]

    def _engine_config(self) -> EngineConfig:
        """The engine's section of the settings; raises InvalidSettingsError."""
        settings = dataclasses.asdict(self.settings.value.engine)
        return EngineConfig(**(settings | dict(self._engine_overrides)))

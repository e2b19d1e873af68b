"""The window in every state that a page has, for whoever looks whether they are right.

A hub of the tests' own stands in for the real one: nothing here asks the network.
"""

import asyncio
import ctypes
import dataclasses
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from PySide6.QtWidgets import QApplication

import tests
from octavo.core import Core
from octavo.errors import OctavoError
from octavo.hub.download_queue import DownloadState
from octavo.hub.library import LibraryModel
from octavo.paths import AppPaths
from octavo.settings import Hub
from octavo.ui.main_window import MainWindow
from octavo.ui.models.models_page import ModelsPage
from octavo.ui.monitor.monitor_page import MonitorPage
from octavo.ui.pages import CHAT, MODELS, MONITOR, QUANTIZE, SERVER, SETTINGS
from octavo.ui.quantize.quantize_page import QuantizePage
from octavo.ui.server.server_page import ServerPage
from octavo.ui.settings.settings_page import SettingsPage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController, ThemeMode
from tests.hub.hub_server import Fault, HubServer, Repo, serving_hub

SIZES = {"wide": (1120, 760), "narrow": (480, 760)}
MODES: tuple[ThemeMode, ...] = ("light", "dark")
SETTLE_S = 0.5
WATCHED_S = 6.0
TIMEOUT_S = 300.0
MAX_ANSWER_TOKENS = 60
REPOSITORY = "local/SmolLM2-135M-Instruct-GGUF"
NOWHERE = "http://127.0.0.1:9"
"""No hub listens there."""
SLOW_S = 0.002
"""Between two chunks of the local hub: a download that can be watched."""

Save = Callable[[MainWindow, Path], None]


class Stage:
    """One window, and the pictures that are taken of it."""

    def __init__(self, app: QApplication, folder: Path, save: Save) -> None:
        self.core = Core(AppPaths.default())
        chat = self.core.settings.value.chat
        self.core.settings.update(
            chat=dataclasses.replace(chat, temperature=0.0, seed=1, max_tokens=MAX_ANSWER_TOKENS)
        )
        # Before the window, whose widgets listen to it.
        self._themes = ThemeController(app, "light")
        self.window = MainWindow(self.core)
        self._folder = folder
        self._save = save
        self.window.show()

    async def shoot(self, page: str, state: str) -> None:
        """Saves a page in both themes and both widths."""
        self.window.show_page(page)
        for mode in MODES:
            self._themes.set_mode(mode)
            for name, size in SIZES.items():
                self.window.resize(*size)
                await asyncio.sleep(SETTLE_S)
                self._save(self.window, self._folder / f"{page}-{state}-{mode}-{name}.png")

    @property
    def models(self) -> ModelsPage:
        page = self.window.page(MODELS)
        assert isinstance(page, ModelsPage)
        return page

    @property
    def quantize(self) -> QuantizePage:
        page = self.window.page(QUANTIZE)
        assert isinstance(page, QuantizePage)
        return page

    def set_hub(self, **changes: object) -> None:
        hub = dataclasses.replace(Hub(), **changes)  # type: ignore[arg-type]
        self.core.settings.update(hub=hub)


async def take_states(app: QApplication, folder: Path, model: Path, save: Save) -> None:
    """Walks a window of its own through every state.

    Args:
        model: the starter model's file.
        save: writes one picture.
    """
    content = await asyncio.to_thread(model.read_bytes)
    repos = {
        REPOSITORY: Repo({"SmolLM2-135M-Instruct-Q4_1.gguf": content}),
        "local/Gated-GGUF": Repo({"gated-Q4_1.gguf": content}, gated=True),
    }
    stage = Stage(app, folder, save)
    with serving_hub(repos) as hub:
        await _first_start(stage)
        await _finding(stage, hub)
        await _using(stage, model, content)
        await UiTasks.current().cancel_all()
        stage.window.hide()
        await stage.core.close()
    stage.window.deleteLater()


async def _first_start(stage: Stage) -> None:
    """Nothing is here yet."""
    for page in (CHAT, MODELS, QUANTIZE, SERVER, SETTINGS):
        await stage.shoot(page, "empty")


async def _finding(stage: Stage, hub: HubServer) -> None:
    models = stage.models
    finder = models.finder
    models.open_search()
    await stage.shoot(MODELS, "find-start")
    stage.set_hub(is_offline=True)
    finder.search_for("smollm2")
    await stage.shoot(MODELS, "find-offline")
    stage.set_hub(endpoint=NOWHERE)
    finder.search_for("smollm2")
    await until(lambda: finder.error_card.error is not None)
    await stage.shoot(MODELS, "find-unreachable")
    stage.set_hub(endpoint=hub.url)
    stage.core.downloads.start()
    hub.answer_pause_s = TIMEOUT_S
    finder.search_for("local")
    await stage.shoot(MODELS, "find-searching")
    hub.answer_pause_s = 0.0
    finder.go_back()
    finder.search_for("nothing of this name")
    await asyncio.sleep(1.0)
    await stage.shoot(MODELS, "find-nothing")
    finder.search_for("local")
    await until(finder.results.isVisible)
    await stage.shoot(MODELS, "find-results")
    finder.search_for("local/Gated-GGUF")
    await until(finder.repository_view.isVisible)
    await stage.shoot(MODELS, "gated")
    finder.search_for(REPOSITORY)
    await until(finder.repository_view.take_button.isVisible)
    await stage.shoot(MODELS, "repository")
    hub.pause_s = SLOW_S
    finder.repository_view.take_button.click()
    await until(lambda: any(item.done_bytes for item in stage.core.downloads.downloads))
    await stage.shoot(MODELS, "downloading")
    (download,) = stage.core.downloads.downloads
    stage.core.downloads.pause(download.id)
    await stage.shoot(MODELS, "paused")
    stage.core.downloads.cancel(download.id)
    await _download_ends(stage, hub)


async def _download_ends(stage: Stage, hub: HubServer) -> None:
    """One that the hub fails, and one that arrives."""
    downloads = stage.core.downloads
    finder = stage.models.finder
    hub.pause_s = 0.0
    wrong = Fault(content=b"not what was promised" * 100_000)
    hub.faults += [wrong] * 20
    await until(finder.repository_view.take_button.isVisible)
    finder.repository_view.take_button.click()
    await until(lambda: any(one.state is DownloadState.FAILED for one in downloads.downloads))
    await stage.shoot(MODELS, "download-failed")
    hub.faults.clear()
    (download,) = downloads.downloads
    downloads.resume(download.id)
    await until(lambda: any(one.state is DownloadState.DONE for one in downloads.downloads))
    await stage.shoot(MODELS, "download-done")
    model = await asyncio.to_thread(stage.core.library.find, str(downloads.downloads[0].path))
    downloads.clear_done()
    stage.core.library.remove(model)


async def _using(stage: Stage, model: Path, content: bytes) -> None:
    core, window = stage.core, stage.window
    core.models_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, core.models_dir / model.name)
    await asyncio.to_thread((core.models_dir / "broken.gguf").write_bytes, content[:5000])
    core.library.changed.emit(None)
    stage.models.show_view("library")
    await asyncio.sleep(1.0)
    await stage.shoot(MODELS, "library")
    broken = await asyncio.to_thread(core.library.find, "broken")
    await _fail_to_load(core, broken)
    await stage.shoot(CHAT, "error")
    loading = asyncio.create_task(core.host.load(core.library.find(model.stem)))
    await asyncio.sleep(0.2)
    await stage.shoot(CHAT, "loading")
    await loading
    composer = window.chat_page.composer
    composer.set_text("Why is the sky blue?")
    composer.press()
    await until(lambda: not composer.is_busy)
    await stage.shoot(CHAT, "answered")
    quantize = stage.quantize
    await until(quantize.start_button.isVisible)
    await stage.shoot(QUANTIZE, "form")
    quantize.start_button.click()
    await until(lambda: quantize.run.progress.done > 0)
    quantize.cancel_button.click()
    await until(lambda: bool(quantize.interrupted.resume_buttons))
    await stage.shoot(QUANTIZE, "interrupted")
    quantize.interrupted.resume_buttons[0].click()
    await stage.shoot(QUANTIZE, "running")
    await until(lambda: quantize.run.recipe is None and bool(quantize.reports.cards))
    await stage.shoot(QUANTIZE, "reports")
    await _quantize_fails(stage)
    window.show_page(MONITOR)
    await asyncio.sleep(WATCHED_S)
    await stage.shoot(MONITOR, "watching")
    await _with_cards(stage)
    await _serving(stage)
    settings = window.page(SETTINGS)
    assert isinstance(settings, SettingsPage)
    await stage.shoot(SETTINGS, "top")
    bar = settings.scroll_area.verticalScrollBar()
    bar.setValue(bar.maximum())
    await stage.shoot(SETTINGS, "bottom")


async def _quantize_fails(stage: Stage) -> None:
    """The folder for the result cannot be written to."""
    core, quantize = stage.core, stage.quantize
    taken = core.models_dir / "no-folder"
    taken.write_text("a file where the folder should be", encoding="utf-8")
    storage = core.settings.value.storage
    core.settings.update(storage=dataclasses.replace(storage, models_dir=str(taken)))
    quantize.start_button.click()
    await until(lambda: quantize.error_card.error is not None)
    await stage.shoot(QUANTIZE, "error")
    quantize.error_card.clear()
    core.settings.update(storage=storage)
    taken.unlink()


async def _with_cards(stage: Stage) -> None:
    """Two cards, read through NVIDIA's own binding from a driver that the tests pretend."""
    page = stage.window.page(MONITOR)
    assert isinstance(page, MonitorPage)
    await asyncio.to_thread(_pretend_driver)
    page.find_cards()
    await until(lambda: len(page.gpu_groups) == 2)
    await asyncio.sleep(2 * WATCHED_S)
    await stage.shoot(MONITOR, "cards")
    bar = page.scroll_area.verticalScrollBar()
    bar.setValue(bar.maximum())
    await stage.shoot(MONITOR, "cards-below")
    bar.setValue(0)


def _pretend_driver() -> None:
    """Loads the tests' driver under the name by which the binding asks for NVIDIA's."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise OctavoError("The pretended driver needs a C compiler.", hint="Install gcc.")
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "libnvidia-ml.so.1")
        name = "-Wl,-soname,libnvidia-ml.so.1"
        source = str(Path(tests.__path__[0]) / "monitor" / "fake_nvml.c")
        subprocess.run([compiler, "-shared", "-fPIC", name, "-o", target, source], check=True)
        os.environ.update(FAKE_NVML_COUNT="2", FAKE_NVML_VARY="1")
        ctypes.CDLL(target, mode=ctypes.RTLD_GLOBAL)


async def _serving(stage: Stage) -> None:
    """Somebody else holds the port; then programs ask, and some have asked."""
    core, window = stage.core, stage.window
    assert core.host.state.model is not None
    model = core.host.state.model.name
    window.show_page(SERVER)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", core.settings.value.server.port))
        holder.listen()
        await core.start_server()
    await asyncio.sleep(1.0)
    await stage.shoot(SERVER, "port-taken")
    address = core.server.address
    assert address is not None
    ended = await asyncio.to_thread(_ask, address.port, model, 24)
    waiting = [asyncio.create_task(asyncio.to_thread(_ask, address.port, model, 4000))]
    waiting += [asyncio.create_task(asyncio.to_thread(_ask, address.port, "no-such-model", 4))]
    await until(lambda: any(one.output_tokens > 8 for one in core.server.board.live()))
    page = window.page(SERVER)
    assert isinstance(page, ServerPage)
    bar = page.scroll_area.verticalScrollBar()
    # Also where the page is laid out anew: the table stands at its end.
    bar.rangeChanged.connect(lambda _least, most: bar.setValue(most))
    bar.setValue(bar.maximum())
    await stage.shoot(SERVER, "requests")
    for record in core.server.board.live():
        core.server.board.cancel(record.request_id)
    await asyncio.gather(*waiting)
    assert ended == 200, ended
    await stage.shoot(SERVER, "requests-ended")


def _ask(port: int, model: str, max_tokens: int) -> int:
    """Asks the endpoint as another program does; the status of its answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell a story about a lighthouse."}],
        "max_tokens": max_tokens,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    status = connection.getresponse().status
    connection.close()
    return status


async def _fail_to_load(core: Core, model: LibraryModel) -> None:
    try:
        await core.host.load(model)
    except OctavoError:
        return


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what a widget shows."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 (a widget's state has no event to wait for)
            await asyncio.sleep(0.05)

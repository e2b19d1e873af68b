"""`run_desktop`: from an empty process to the window, and back in order."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import cast

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtWidgets import QApplication, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.host import HostState, HostStatus
from octavo.hub.library import LibraryModel
from octavo.paths import AppPaths
from octavo.settings import Settings
from octavo.ui.application import make_application
from octavo.ui.crash_file import CrashFile
from octavo.ui.crash_hooks import CrashHooks
from octavo.ui.crash_watch import CrashWatch
from octavo.ui.event_loop import OctavoLoop
from octavo.ui.main_window import MainWindow
from octavo.ui.models.starter_pull import StarterPull
from octavo.ui.pages import SETTINGS
from octavo.ui.server.restore import restore_server
from octavo.ui.single_instance import SingleInstance
from octavo.ui.tasks import UiTasks, spawn
from octavo.ui.theme import ThemeController, ThemeMode
from octavo.ui.tokens import SPACE_PAGE
from octavo.ui.tray import make_tray
from octavo.ui.widgets.cards import ErrorCard

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
RESTART = 64
"""Exit status of a window that wants to be opened again by a new process."""

MakeCore = Callable[[AppPaths], Core]


def run_desktop(paths: AppPaths, make_core: MakeCore = Core, *, opened: str = "") -> int:
    """Opens the window and returns the process's exit status when it has been closed, or `RESTART`.

    Args:
        opened: a model file or an address of a hub to show; a window that is open already gets it.
    """
    started_at = time.perf_counter()
    app = make_application()
    with asyncio.Runner(loop_factory=lambda: OctavoLoop(app)) as runner:
        return runner.run(_start(app, paths, make_core, opened, started_at))


async def _start(
    app: QApplication, paths: AppPaths, make_core: MakeCore, opened: str, started_at: float
) -> int:
    stop = asyncio.Event()
    status = 0
    hooks = CrashHooks(app)

    def restart() -> None:
        nonlocal status
        status = RESTART
        stop.set()

    with contextlib.ExitStack() as held:
        held.enter_context(_signals_set(stop))
        try:
            instance = held.enter_context(contextlib.closing(SingleInstance(paths.run_dir, app)))
            # Blocks, before there is a window to be held up by it.
            if not instance.claim(opened):
                logger.info("The window that is open already was asked to show itself")
                return 0
            held.enter_context(hooks.installed(asyncio.get_running_loop()))
            crashes = held.enter_context(CrashFile(paths.log_file.parent).lying_ready())
            core = make_core(paths)
            # Opens the database: what is wrong with it is said before a window needs it.
            _ = core.chats
        except OctavoError as error:
            logger.critical("Octavo cannot start: %s", error, exc_info=error.__cause__)
            return await _show_failed_start(error, stop)
        window = _make_window(app, core, stop)
        watch = CrashWatch(window, hooks)
        painted = FirstPaint(window)
        window.show()
        await painted.wait()
        logger.info("First paint after %.2f s", time.perf_counter() - started_at)
        watch.show_last(crashes)
        instance.asked.connect(window.show_asked)
        window.chat_page.picker.restart_asked.connect(restart)
        if opened:
            window.show_asked(opened)
        make_tray(core, window.bring_to_front, stop.set, window)
        if core.settings_error is not None:
            _show_settings_error(window, core.settings_error)
        core.downloads.start()
        spawn(load_last_model(core, window.chat_page.picker.choose))
        spawn(restore_server(core))
        spawn(core.prepare_kernels())
        await stop.wait()
        await _close(core, window)
    return status


def _make_window(app: QApplication, core: Core, stop: asyncio.Event) -> MainWindow:
    themes = ThemeController(app, *_appearance(core.settings.value))
    core.settings.changed.connect(lambda settings: _apply_appearance(themes, settings))
    core.host.state_changed.connect(lambda state: _remember_model(core, state))
    window = MainWindow(core)
    window.closing.connect(stop.set)
    StarterPull.of(core).finished.connect(window.focus_composer)
    return window


def _show_settings_error(window: MainWindow, error: OctavoError) -> None:
    from octavo.ui.settings.settings_page import SettingsPage

    page = window.page(SETTINGS)
    assert isinstance(page, SettingsPage)
    page.show_error(error)


async def _close(core: Core, window: MainWindow) -> None:
    """Ends streams, engine and database in this order; a stuck engine does not keep the process."""
    with contextlib.suppress(OSError):
        window.save_state()
    window.hide()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await UiTasks.current().cancel_all()
            came_back = await core.close()
    except TimeoutError:
        came_back = False
    if not came_back:
        logger.error("The engine did not end within %.0f s; ending the process", CLOSE_TIMEOUT_S)
        core.chats.close()
        logging.shutdown()
        os._exit(0)
    window.deleteLater()


def _appearance(settings: Settings) -> tuple[ThemeMode, float]:
    return cast("ThemeMode", settings.appearance.theme), settings.appearance.font_scale


def _apply_appearance(themes: ThemeController, settings: Settings) -> None:
    mode, scale = _appearance(settings)
    themes.set_mode(mode)
    themes.set_scale(scale)


def _remember_model(core: Core, state: HostState) -> None:
    if state.status is not HostStatus.READY or state.model is None:
        return
    chat = core.settings.value.chat
    if chat.last_model == state.model.name:
        return
    try:
        core.settings.update(chat=dataclasses.replace(chat, last_model=state.model.name))
    except OctavoError as error:
        logger.warning("The model used last is not remembered: %s", error)


async def load_last_model(core: Core, choose: Callable[[LibraryModel], None]) -> None:
    """Loads what was in use when the window was closed; a model that is gone is not missed.

    Args:
        choose: as if the person had chosen it, so that the load can be cancelled as such.
    """
    name = core.settings.value.chat.last_model
    if not name:
        return
    models = await asyncio.to_thread(core.library.scan)
    model = next((model for model in models if model.name == name and not model.problem), None)
    if model is not None and core.host.state.status is HostStatus.EMPTY:
        choose(model)


async def _show_failed_start(error: OctavoError, stop: asyncio.Event) -> int:
    """A small window with the cause and the next step, in place of the app."""
    ThemeController.current()
    window = QWidget()
    window.setWindowTitle("Octavo cannot start")
    window.setProperty("surface", "paper")
    window.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
    window.setMinimumWidth(520)
    column = QVBoxLayout(window)
    column.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
    card = ErrorCard("Quit")
    card.retry.set_icon_name("power")
    card.retry.clicked.connect(stop.set)
    column.addWidget(card)
    card.show_error(error)
    watcher = _CloseWatcher(window, stop)
    window.show()
    await stop.wait()
    window.removeEventFilter(watcher)
    window.close()
    return 1


class FirstPaint(QObject):
    """Tells when a window has been painted for the first time."""

    def __init__(self, window: QWidget) -> None:
        super().__init__(window)
        self._painted = asyncio.Event()
        self._window = window
        window.installEventFilter(self)

    async def wait(self) -> None:
        await self._painted.wait()

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        if event.type() is QEvent.Type.Paint:
            self._window.removeEventFilter(self)
            self._painted.set()
        return False


class _CloseWatcher(QObject):
    def __init__(self, window: QWidget, stop: asyncio.Event) -> None:
        super().__init__(window)
        self._stop = stop
        window.installEventFilter(self)

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        if event.type() is QEvent.Type.Close:
            self._stop.set()
        return False


@contextlib.contextmanager
def _signals_set(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and Ctrl+C close the app as its window does."""
    loop = asyncio.get_running_loop()
    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop.set)
    except (NotImplementedError, RuntimeError):
        # Windows: the window's own close is the only way.
        numbers = ()
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

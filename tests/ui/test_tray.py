"""The tray: only where there is one, and what its menu says and does."""

from PySide6.QtGui import QAction
from PySide6.QtWidgets import QApplication, QMenu, QWidget

from octavo.ui.tasks import UiTasks
from octavo.ui.tray import Tray, make_tray
from tests.ui.conftest import until
from tests.ui.fakes import FakeCore, make_model


class Calls:
    def __init__(self) -> None:
        self.made: list[str] = []

    def show(self) -> None:
        self.made.append("show")

    def quit(self) -> None:
        self.made.append("quit")


def actions(window: QWidget) -> dict[str, QAction]:
    menu = window.findChild(QMenu)
    assert isinstance(menu, QMenu)
    menu.aboutToShow.emit()
    return {action.text(): action for action in menu.actions() if action.text()}


def make(core: FakeCore, window: QWidget, calls: Calls, *, is_available: bool) -> Tray | None:
    return make_tray(
        core.as_core, calls.show, calls.quit, window, is_available=lambda: is_available
    )


async def test_without_a_tray_nothing_is_made(core: FakeCore, app: QApplication) -> None:
    window = QWidget()
    assert make(core, window, Calls(), is_available=False) is None
    assert window.children() == []


async def test_show_and_quit(core: FakeCore, tasks: UiTasks) -> None:
    window, calls = QWidget(), Calls()
    assert make(core, window, calls, is_available=True) is not None
    actions(window)["Show Octavo"].trigger()
    actions(window)["Quit"].trigger()
    assert calls.made == ["show", "quit"]


async def test_the_state_line_follows_the_host(core: FakeCore, tasks: UiTasks) -> None:
    window = QWidget()
    make(core, window, Calls(), is_available=True)
    assert "No model loaded: Choose one under Models" in actions(window)
    core.host.set_ready(make_model())
    line = actions(window)["SmolLM2 135M Instruct · CPU: Ready"]
    assert not line.isEnabled()


async def test_the_server_is_switched_and_seen(core: FakeCore, tasks: UiTasks) -> None:
    window = QWidget()
    make(core, window, Calls(), is_available=True)
    switch = actions(window)["Server"]
    assert not switch.isChecked()
    switch.trigger()
    await until(lambda: core.server.address is not None and switch.isEnabled())
    assert actions(window)["Server on port 8000"].isChecked()
    # As the server page does it, without a word to the tray.
    await core.stop_server()
    assert not actions(window)["Server"].isChecked()


async def test_a_window_that_goes_takes_the_tray_along(core: FakeCore, tasks: UiTasks) -> None:
    window = QWidget()
    make(core, window, Calls(), is_available=True)
    window.deleteLater()
    await until(lambda: core.host.state_changed._callbacks == [])
    core.host.set_ready(make_model())

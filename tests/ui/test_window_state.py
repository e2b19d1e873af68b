"""Place, size, page and sidebar from one start to the next."""

from pathlib import Path

import pytest
from PySide6.QtCore import QRect, QSettings
from PySide6.QtWidgets import QApplication, QWidget

from octavo.ui import main_window, window_state
from octavo.ui.main_window import MainWindow
from octavo.ui.pages import CHAT, SETTINGS
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.window_state import (
    WindowState,
    is_reachable,
    restore_window_state,
    save_window_state,
)
from tests.ui.conftest import until
from tests.ui.fakes import FakeChatPage, FakeConversationList, FakeCore

SCREEN = QRect(0, 0, 1920, 1080)


@pytest.mark.parametrize(
    ("window", "is_there"),
    [
        (QRect(100, 100, 800, 600), True),
        (QRect(-700, 100, 900, 600), True),
        (QRect(-850, 100, 900, 600), False),
        (QRect(1900, 100, 900, 600), False),
        (QRect(100, -500, 800, 600), False),
        (QRect(100, 1079, 800, 600), True),
        (QRect(2400, 100, 800, 600), False),
    ],
)
def test_a_window_is_reachable_by_its_upper_edge(window: QRect, is_there: bool) -> None:
    assert is_reachable(window, [SCREEN]) is is_there


def test_a_window_of_a_monitor_that_vanished_comes_back_in_sight(
    tmp_path: Path, app: QApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = QWidget()
    window.setGeometry(200, 150, 700, 500)
    save_window_state(window, tmp_path / "window.ini", WindowState())
    gone = [QRect(5000, 0, 1920, 1080)]
    monkeypatch.setattr(window_state, "_screens", lambda: gone)
    again = QWidget()
    restore_window_state(again, tmp_path / "window.ini")
    available = app.primaryScreen().availableGeometry()
    assert again.geometry().center() == available.center()
    assert available.contains(again.geometry())


def test_a_maximised_window_comes_back_so(tmp_path: Path, app: QApplication) -> None:
    window = QWidget()
    window.resize(640, 480)
    window.showMaximized()
    save_window_state(window, tmp_path / "window.ini", WindowState())
    again = QWidget()
    restore_window_state(again, tmp_path / "window.ini")
    assert again.isMaximized()


@pytest.mark.parametrize("content", ["", "nonsense", "[General]\ngeometry=3\npage=@Invalid()\n"])
def test_a_broken_file_gives_the_defaults(tmp_path: Path, app: QApplication, content: str) -> None:
    (tmp_path / "window.ini").write_text(content, encoding="utf-8")
    window = QWidget()
    state = restore_window_state(window, tmp_path / "window.ini")
    assert state.is_expanded
    assert window.width() >= window_state.MINIMUM_SIZE.width()


@pytest.fixture
def make_window(
    core: FakeCore, tasks: UiTasks, theme: ThemeController, monkeypatch: pytest.MonkeyPatch
) -> type[MainWindow]:
    monkeypatch.setattr(main_window, "ChatPage", FakeChatPage)
    monkeypatch.setattr(main_window, "ConversationList", FakeConversationList)
    return MainWindow


async def test_page_and_sidebar_are_kept(core: FakeCore, make_window: type[MainWindow]) -> None:
    window = make_window(core.as_core)
    window.resize(1000, 700)
    window.show()
    window.show_page(SETTINGS)
    window._toggle_sidebar()
    window.save_state()
    again = make_window(core.as_core)
    again.show()
    assert again.current_page == SETTINGS
    assert again._sidebar.is_rail
    await UiTasks.current().cancel_all()


async def test_a_narrow_window_keeps_what_was_chosen_for_a_wide_one(
    core: FakeCore, make_window: type[MainWindow]
) -> None:
    window = make_window(core.as_core)
    window.resize(1000, 700)
    window.show()
    window.resize(500, 600)
    assert window._sidebar.is_rail
    window.save_state()
    again = make_window(core.as_core)
    again.show()
    again.resize(1000, 700)
    assert not again._sidebar.is_rail


async def test_a_page_that_is_no_more_becomes_the_chat(
    core: FakeCore, make_window: type[MainWindow]
) -> None:
    path = core.paths.data_dir / "window.ini"
    path.parent.mkdir(parents=True)
    settings = QSettings(str(path), QSettings.Format.IniFormat)
    settings.setValue("page", "teleport")
    settings.sync()
    window = make_window(core.as_core)
    await until(lambda: window.current_page == CHAT)

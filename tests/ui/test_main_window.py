"""The window: pages, rail, shortcuts, and asking to be closed."""

import dataclasses
from collections.abc import AsyncIterator

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLabel

from octavo.errors import StorageError
from octavo.host import HostState, HostStatus
from octavo.jobs import Progress
from octavo.ui import main_window
from octavo.ui.main_window import MainWindow
from octavo.ui.pages import CHAT, MODELS, MONITOR, QUANTIZE, SERVER, SETTINGS
from octavo.ui.shortcuts import ShortcutsDialog
from octavo.ui.sidebar import describe_host
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.fakes import FakeChatPage, FakeConversationList, FakeCore, make_model

CTRL = Qt.KeyboardModifier.ControlModifier


@pytest.fixture
async def window(
    core: FakeCore, tasks: UiTasks, theme: ThemeController, monkeypatch: pytest.MonkeyPatch
) -> MainWindow:
    monkeypatch.setattr(main_window, "ChatPage", FakeChatPage)
    monkeypatch.setattr(main_window, "ConversationList", FakeConversationList)
    return MainWindow(core.as_core)


@pytest.fixture
async def shown(window: MainWindow) -> AsyncIterator[MainWindow]:
    window.resize(1000, 700)
    window.show()
    window.activateWindow()
    yield window
    await end_tasks()
    window.hide()
    window.deleteLater()


async def end_tasks() -> None:
    """As when Octavo is closed: what works for a page ends before the page.

    A test that shows a page ends its work itself, for pytest-qt runs Qt's events once more after
    it, and no asyncio loop runs around them.
    """
    await UiTasks.current().cancel_all()


async def test_chat_comes_first_and_other_pages_are_made_when_needed(shown: MainWindow) -> None:
    assert shown.current_page == CHAT
    assert list(shown._pages) == [CHAT]
    shown.show_page(SETTINGS)
    assert shown.current_page == SETTINGS
    await end_tasks()


@pytest.mark.parametrize(
    ("key", "page"),
    [
        (Qt.Key.Key_1, CHAT),
        (Qt.Key.Key_2, MODELS),
        (Qt.Key.Key_3, QUANTIZE),
        (Qt.Key.Key_4, MONITOR),
        (Qt.Key.Key_5, SERVER),
        (Qt.Key.Key_6, SETTINGS),
        (Qt.Key.Key_Comma, SETTINGS),
    ],
)
async def test_shortcuts_reach_the_pages(shown: MainWindow, key: Qt.Key, page: str) -> None:
    QTest.keyClick(shown, key, CTRL)
    assert shown.current_page == page
    await end_tasks()


async def test_the_chat_page_leads_to_the_models(shown: MainWindow) -> None:
    shown.chat_page.models_asked.emit()
    assert shown.current_page == MODELS
    await end_tasks()


async def test_a_new_chat_and_the_composer_are_one_key_away(shown: MainWindow) -> None:
    shown.show_page(MODELS)
    QTest.keyClick(shown, Qt.Key.Key_N, CTRL)
    assert shown.current_page == CHAT
    assert isinstance(shown.chat_page, FakeChatPage)
    assert shown.chat_page.shown == [0]
    shown.show_page(MODELS)
    QTest.keyClick(shown, Qt.Key.Key_L, CTRL)
    assert QApplication.focusWidget() is shown.chat_page
    await end_tasks()


async def test_a_narrow_window_has_a_rail_and_opens_the_sidebar_over_the_page(
    shown: MainWindow,
) -> None:
    assert not shown._sidebar.is_rail
    shown.resize(500, 600)
    assert shown._sidebar.is_rail
    left = shown._main.x()
    QTest.keyClick(shown, Qt.Key.Key_B, CTRL)
    assert not shown._sidebar.is_rail
    assert shown._main.x() == left
    shown.show_page(MODELS)
    assert shown._sidebar.is_rail
    await end_tasks()


@pytest.mark.parametrize("way", ["escape", "click"])
async def test_a_sidebar_that_lies_over_the_page_is_put_away(shown: MainWindow, way: str) -> None:
    shown.resize(500, 600)
    QTest.keyClick(shown, Qt.Key.Key_B, CTRL)
    shown._sidebar._toggle.setFocus()
    if way == "escape":
        QTest.keyClick(shown._sidebar, Qt.Key.Key_Escape)
    else:
        QTest.mouseClick(shown._veil, Qt.MouseButton.LeftButton)
    assert shown._sidebar.is_rail
    assert QApplication.focusWidget() is shown.chat_page
    assert not shown._veil.isVisible()


async def test_escape_leaves_a_sidebar_beside_the_page_alone(shown: MainWindow) -> None:
    QTest.keyClick(shown, Qt.Key.Key_Escape)
    assert not shown._sidebar.is_rail


async def test_search_is_one_key_away_in_a_narrow_window_too(shown: MainWindow) -> None:
    shown.resize(500, 600)
    QTest.keyClick(shown, Qt.Key.Key_F, CTRL)
    assert not shown._sidebar.is_rail
    assert isinstance(shown._conversations, FakeConversationList)
    assert shown._conversations.is_searching


async def test_closing_is_only_asked_for(shown: MainWindow) -> None:
    asked: list[bool] = []
    shown.closing.connect(lambda: asked.append(True))
    shown.close()
    QTest.keyClick(shown, Qt.Key.Key_Q, CTRL)
    assert asked == [True, True]
    assert shown.isVisible()


async def test_size_is_kept(shown: MainWindow, core: FakeCore) -> None:
    shown.resize(760, 640)
    shown.save_state()
    again = MainWindow(core.as_core)
    assert (again.width(), again.height()) == (760, 640)


async def test_an_error_without_a_place_becomes_a_toast(shown: MainWindow) -> None:
    UiTasks.current().failed.emit(StorageError("The disk is full.", hint="Free some space."))
    assert shown.toast.isVisible()
    assert shown.toast.text == "The disk is full. Free some space."


async def test_shortcuts_are_listed(shown: MainWindow) -> None:
    QTest.keyClick(shown, Qt.Key.Key_F1)
    dialog = shown.findChild(ShortcutsDialog)
    assert isinstance(dialog, ShortcutsDialog)
    assert dialog.isVisible()
    texts = [label.text() for label in dialog.findChildren(QLabel)]
    for text in ("Ctrl+N", "Ctrl+M", "Esc", "Alt+Up, Alt+Down", "Ctrl+C", "F2", "Del"):
        assert text in texts
    dialog.reject()


async def test_status_names_model_device_and_state(core: FakeCore) -> None:
    model = make_model()
    assert describe_host(HostState()) == ("No model loaded", "Choose one under Models", "soft")
    core.host.set_ready(model)
    assert describe_host(core.host.state) == ("SmolLM2 135M Instruct · CPU", "Ready", "good")
    loading = HostState(HostStatus.LOADING, model, Progress("Loading weights", 1, 4))
    assert describe_host(loading)[1:] == ("25 % · Loading weights", "soft")
    compiling = dataclasses.replace(core.host.state, progress=Progress("Compiling", 3, 11))
    assert describe_host(compiling)[1:] == ("Compiling kernels, 3 of 11", "soft")
    failed = HostState(HostStatus.FAILED, model, error=StorageError("Gone."))
    assert describe_host(failed)[1:] == ("Could not be loaded", "bad")

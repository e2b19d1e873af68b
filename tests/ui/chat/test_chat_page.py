"""The chat page as a person uses it: send, stream, stop, answer again, switch, fail, go on."""

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PySide6.QtCore import QPoint, Qt, QUrl
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtTest import QTest
from PySide6.QtWidgets import (
    QAbstractButton,
    QLineEdit,
    QListView,
    QMenu,
    QPlainTextEdit,
    QTextBrowser,
)

from octavo.chats.message import MessageStatus
from octavo.errors import (
    DeviceLostError,
    EngineError,
    InsufficientMemoryError,
    StorageError,
)
from octavo.host import HostState, HostStatus
from octavo.jobs import Progress
from octavo.ui.chat.chat_page import ChatPage
from octavo.ui.chat.code_segment import CodeSegment
from octavo.ui.chat.conversation_list import NEW_CONVERSATION, ConversationList
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.dialogs import ConfirmDialog
from tests.ui.chat.fakes import FakeChatCore
from tests.ui.conftest import settled, until
from tests.ui.fakes import MODELS

MODEL = MODELS[0]
ANSWER = "Because air scatters blue."


@pytest.fixture
async def chat_core(
    tmp_path: Path, theme: ThemeController, tasks: UiTasks
) -> AsyncIterator[FakeChatCore]:
    core = FakeChatCore(tmp_path)
    yield core
    await tasks.cancel_all()
    core.chats.close()


@pytest.fixture
async def page(chat_core: FakeChatCore) -> AsyncIterator[ChatPage]:
    page = ChatPage(chat_core.as_core)
    page.resize(800, 700)
    page.show()
    page.focus_composer()
    await until(lambda: page.picker.models is not None)
    yield page
    await UiTasks.current().cancel_all()
    page.hide()
    page.deleteLater()


def ask(page: ChatPage, text: str) -> None:
    """By keyboard alone."""
    page.composer.editor.setFocus()
    QTest.keyClicks(page.composer.editor, text)
    QTest.keyClick(page.composer.editor, Qt.Key.Key_Return)


def shown(page: ChatPage) -> list[tuple[str, str]]:
    messages = [page.transcript[index] for index in range(len(page.transcript))]
    return [(message.content, message.status.value) for message in messages]


async def test_a_turn_by_keyboard(chat_core: FakeChatCore, page: ChatPage) -> None:
    ask(page, "Why is the sky blue?")
    await until(lambda: not page.composer.is_busy and len(page.transcript) == 2)
    assert shown(page) == [("Why is the sky blue?", "done"), (ANSWER, "done")]
    assert page.composer.text == ""
    assert page.view.isVisible()
    (conversation,) = chat_core.chats.conversations()
    assert conversation.id == page.conversation_id
    assert conversation.model == "smollm2-135m-instruct-q4_1"
    answer = page.view.view_of(1)
    assert answer is not None
    assert "41.8 tok/s" in answer.footer.text
    await until(lambda: page.composer.gauge.text == "9 of 8,192 tokens")


async def test_text_shows_while_it_is_written(chat_core: FakeChatCore, page: ChatPage) -> None:
    chat_core.host.hold_at = 2
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and page.transcript[1].content == "Because air ")
    answer = page.view.view_of(1)
    assert answer is not None
    await until(lambda: len(answer.segments) == 1)
    browser = answer.segments[0]
    assert isinstance(browser, QTextBrowser)
    await until(lambda: browser.toPlainText() == "Because air")
    assert answer.footer.text == "Writing…"
    chat_core.host.held.set()
    await until(lambda: not page.composer.is_busy)
    assert browser.toPlainText() == ANSWER


@pytest.mark.parametrize("way", ["button", "composer", "transcript"])
async def test_stop_keeps_the_text(chat_core: FakeChatCore, page: ChatPage, way: str) -> None:
    chat_core.host.hold_at = 2
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and page.transcript[1].content == "Because air ")
    if way == "button":
        page.composer.send_button.click()
    else:
        QTest.keyClick(page.composer.editor if way == "composer" else page.view, Qt.Key.Key_Escape)
    await until(lambda: not page.composer.is_busy)
    assert shown(page)[1] == ("Because air ", "stopped")
    assert chat_core.host.num_stopped == 1
    answer = page.view.view_of(1)
    assert answer is not None
    assert answer.footer.text.startswith("Stopped")


async def test_answer_again(chat_core: FakeChatCore, page: ChatPage) -> None:
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and not page.composer.is_busy)
    chat_core.host.pieces = ("Another ", "answer.")
    answer = page.view.view_of(1)
    assert answer is not None
    answer.footer.regenerate_button.click()
    await until(lambda: shown(page)[-1] == ("Another answer.", "done"))
    assert len(page.transcript) == 2
    assert len(chat_core.chats.messages(page.conversation_id)) == 2


async def test_a_failed_answer_says_why_and_the_next_turn_goes(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.error = EngineError("The engine failed.", hint="Load the model again.")
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and not page.composer.is_busy)
    answer = page.view.view_of(1)
    assert answer is not None
    assert "The engine failed. Load the model again." in answer.footer.text
    chat_core.host.error = None
    ask(page, "Again?")
    await until(lambda: shown(page)[-1] == (ANSWER, "done") and len(page.transcript) == 4)


@pytest.mark.parametrize("refusing", ["create_conversation", "add_message"])
async def test_refused_text_is_not_lost(
    chat_core: FakeChatCore, page: ChatPage, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    def refuse(*_args: object, **_fields: object) -> None:
        raise StorageError("The disk is full.", hint="Free some space.")

    monkeypatch.setattr(chat_core.chats, refusing, refuse)
    ask(page, "A long thought")
    await until(lambda: page.error_card.error is not None and not page.composer.is_busy)
    assert page.composer.text == "A long thought"
    monkeypatch.undo()
    QTest.keyClick(page.composer.editor, Qt.Key.Key_Return)
    await until(lambda: shown(page)[-1:] == [(ANSWER, "done")])
    assert page.composer.text == ""
    assert page.error_card.error is None
    assert len(chat_core.chats.conversations()) == 1


async def test_a_refused_example_comes_to_the_composer(
    chat_core: FakeChatCore, page: ChatPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_fields: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(chat_core.chats, "add_message", refuse)
    page.welcome.example_buttons[0].click()
    await until(lambda: page.composer.text == "Why is the sky blue?")


async def test_answers_go_on_while_another_conversation_is_shown(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.hold_at = 2
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and page.transcript[1].content == "Because air ")
    first = page.conversation_id
    QTest.keyClicks(page.composer.editor, "a draft")
    page.show_conversation(NEW_CONVERSATION)
    assert page.composer.text == ""
    assert not page.composer.is_busy
    assert page.welcome.isVisible()
    page.show_conversation(first)
    assert page.composer.text == "a draft"
    assert page.composer.is_busy
    assert shown(page)[1] == ("Because air ", "streaming"), "newer than what is saved"
    page.show_conversation(NEW_CONVERSATION)
    chat_core.host.held.set()
    await until(lambda: not page.turns.is_busy(first))
    page.show_conversation(first)
    assert shown(page)[1] == (ANSWER, "done")


async def test_the_gauge_follows_an_answer(chat_core: FakeChatCore, page: ChatPage) -> None:
    gauge = page.composer.gauge
    chat_core.host.hold_at = 0
    page.welcome.example_buttons[0].click()
    await until(lambda: gauge.text == "5 of 8,192 tokens")
    chat_core.host.hold_at = 2
    chat_core.host.held.set()
    chat_core.host.held = asyncio.Event()
    await until(lambda: len(page.transcript) == 2 and page.transcript[1].content == "Because air ")
    await until(lambda: gauge.text == "7 of 8,192 tokens")
    assert page.composer.is_busy
    chat_core.host.held.set()
    await until(lambda: gauge.text == "9 of 8,192 tokens")


async def test_messages_are_reached_from_the_composer(page: ChatPage) -> None:
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and not page.composer.is_busy)
    alt = Qt.KeyboardModifier.AltModifier
    QTest.keyClick(page.composer.editor, Qt.Key.Key_Up, alt)
    assert page.view.current == 1
    QTest.keyClick(page.view, Qt.Key.Key_Up, alt)
    assert page.view.current == 0
    QTest.keyClick(page.view, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    assert QGuiApplication.clipboard().text() == "Why?"


async def test_the_menu_of_models_leads_to_more(page: ChatPage) -> None:
    asked: list[bool] = []
    page.models_asked.connect(lambda: asked.append(True))
    page.picker.open_menu()
    menu = page.picker.findChild(QMenu)
    assert isinstance(menu, QMenu)
    next(action for action in menu.actions() if "Find or add" in action.text()).trigger()
    assert asked == [True]
    menu.close()


async def test_the_model_menu_opens_by_key_once_a_model_is_named(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    page.activateWindow()
    chat_core.host.set_ready(MODEL)
    QTest.keyClick(page.composer.editor, Qt.Key.Key_M, Qt.KeyboardModifier.ControlModifier)
    await until(lambda: page.picker.findChild(QMenu) is not None)
    menu = page.picker.findChild(QMenu)
    assert menu is not None
    menu.close()


async def test_two_conversations_stream_at_once(chat_core: FakeChatCore, page: ChatPage) -> None:
    chat_core.host.hold_at = 1
    ask(page, "One?")
    await until(lambda: len(page.transcript) == 2)
    first = page.conversation_id
    page.show_conversation(NEW_CONVERSATION)
    ask(page, "Two?")
    await until(lambda: chat_core.host.num_streams == 2)
    second = page.conversation_id
    chat_core.host.held.set()
    await until(lambda: not page.turns.is_busy(first) and not page.turns.is_busy(second))
    for conversation_id in (first, second):
        assert chat_core.chats.messages(conversation_id)[-1].content == ANSWER


async def test_deleting_a_conversation_stops_its_answer(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.hold_at = 1
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2)
    conversation_id = page.conversation_id
    chat_core.chats.delete(conversation_id)
    await until(lambda: not page.turns.is_busy(conversation_id))
    chat_core.chats.restore(conversation_id)
    assert chat_core.chats.messages(conversation_id)[-1].status is MessageStatus.STOPPED


async def test_without_a_model_the_page_says_what_to_do(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.set_state(HostState())
    assert page.welcome.text.startswith("No model is loaded")
    ask(page, "Hello")
    assert page.composer.text == "Hello"
    assert len(page.transcript) == 0
    page.welcome.load_button.click()
    await until(lambda: chat_core.host.state.status is HostStatus.READY)
    QTest.keyClick(page.composer.editor, Qt.Key.Key_Return)
    await until(lambda: shown(page)[-1:] == [(ANSWER, "done")])


async def test_an_empty_library_offers_the_starter_model(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.set_state(HostState())
    chat_core.library.models = []
    chat_core.library.changed.emit(None)
    await until(lambda: page.welcome.offers_starter)
    chat_core.host.set_ready(MODEL)
    assert not page.welcome.offers_starter


async def test_load_shows_progress_and_can_be_cancelled(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.set_state(HostState())
    chat_core.host.gate = asyncio.Event()
    page.picker.choose(MODEL)
    await until(lambda: chat_core.host.state.status is HostStatus.LOADING)
    assert page.picker.progress.isVisible()
    assert page.composer.editor.placeholderText() == "The model is still loading."
    page.picker.cancel_button.click()
    await until(lambda: chat_core.host.state.status is HostStatus.EMPTY)
    assert not page.picker.progress.isVisible()


async def test_the_progress_of_a_load_costs_the_window_nothing_to_speak_of(
    chat_core: FakeChatCore, page: ChatPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(page.welcome, "show_state", lambda *state: shown.append(state))
    monkeypatch.setattr(page.composer, "set_unavailable", shown.append)
    for done in range(200):
        progress = Progress("Loading weights", done, 200)
        chat_core.host.set_state(HostState(HostStatus.LOADING, MODEL, progress))
    assert len(shown) == 2, "once each: a load reports every tensor, and all of them in a second"


async def test_a_load_begun_elsewhere_is_not_cancelled_here(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    page.picker.choose(MODEL)
    await until(lambda: page.picker._task is not None and page.picker._task.done())
    chat_core.host.set_state(HostState(HostStatus.LOADING, MODEL))
    assert page.picker.progress.isVisible()
    assert not page.picker.cancel_button.isVisible()


async def test_a_failed_load_says_why_and_can_be_tried_again(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.set_state(HostState())
    chat_core.host.load_error = InsufficientMemoryError(
        "Needs 17.2 GiB, 15.4 GiB are free.", hint="Use Q4.", needed_bytes=17, free_bytes=15
    )
    page.picker.choose(MODEL)
    await until(lambda: page.picker.error_card.error is not None)
    chat_core.host.load_error = None
    page.picker.error_card.retry.click()
    await until(lambda: chat_core.host.state.status is HostStatus.READY)
    assert page.picker.error_card.error is None
    assert page.picker.button.text().strip() == "SmolLM2 135M Instruct · Q4_1"


async def test_theme_changes_while_an_answer_is_written(
    chat_core: FakeChatCore, page: ChatPage, theme: ThemeController
) -> None:
    chat_core.host.hold_at = 2
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and page.transcript[1].content == "Because air ")
    theme.set_mode("dark")
    theme.set_scale(1.3)
    chat_core.host.held.set()
    await until(lambda: shown(page)[-1] == (ANSWER, "done"))
    assert page.view.is_at_end


async def test_code_that_fits_a_narrower_window_gets_no_scroll_bar(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.pieces = ("```python\nreturn word == word[::-1]\n```\n",)
    ask(page, "How?")
    await until(lambda: len(page.transcript) == 2 and not page.composer.is_busy)
    for width, policy in (
        (424, Qt.ScrollBarPolicy.ScrollBarAlwaysOff),
        (200, Qt.ScrollBarPolicy.ScrollBarAlwaysOn),
        (424, Qt.ScrollBarPolicy.ScrollBarAlwaysOff),
    ):
        page.view.resize(width, 500)
        answer = page.view.view_of(1)
        assert answer is not None
        (code,) = answer.segments
        assert isinstance(code, CodeSegment)
        find = code.editor.horizontalScrollBarPolicy
        await until(functools.partial(lambda find, wanted: find() is wanted, find, policy))
        await settled()
        assert code.editor.horizontalScrollBarPolicy() is policy, width


async def test_the_composer_stands_under_the_text_when_a_scroll_bar_comes(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    chat_core.host.pieces = ("One paragraph.\n\n" * 60,)
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and not page.composer.is_busy)
    long = page.conversation_id
    page.show_conversation(NEW_CONVERSATION)
    await until(lambda: not page.view.verticalScrollBar().isVisible())
    page.show_conversation(long)
    await until(page.view.verticalScrollBar().isVisible)
    await settled()
    answer = page.view.view_of(1)
    assert answer is not None
    text_left = answer.mapTo(page, QPoint(0, 0)).x()
    assert abs(page.composer.mapTo(page, QPoint(0, 0)).x() - text_left) <= 1


async def test_links_open_only_after_a_yes(page: ChatPage, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[QUrl] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", opened.append)
    page.view.link_activated.emit(QUrl("https://example.org/a"))
    await until(lambda: page.findChild(ConfirmDialog) is not None)
    dialog = page.findChild(ConfirmDialog)
    assert dialog is not None
    assert opened == []
    dialog.confirm.click()
    await until(lambda: opened == [QUrl("https://example.org/a")])
    page.view.link_activated.emit(QUrl("file:///etc/passwd"))
    await until(lambda: page.error_card.error is not None)
    assert len(opened) == 1


async def test_everything_has_a_name(chat_core: FakeChatCore, page: ChatPage) -> None:
    chat_core.host.pieces = ("[Link](http://a)\n\n```python\nx = 1\n```\n",)
    ask(page, "Why?")
    await until(lambda: len(page.transcript) == 2 and not page.composer.is_busy)
    listed = ConversationList(chat_core.as_core)
    for root in (page, listed):
        for kind in (QAbstractButton, QPlainTextEdit, QTextBrowser, QLineEdit, QListView):
            for widget in root.findChildren(kind):
                if widget.objectName().startswith("qt_") or isinstance(widget.parent(), QLineEdit):
                    continue
                name = widget.accessibleName()
                if not name and isinstance(widget, QAbstractButton):
                    name = widget.text()
                assert name.strip(), f"{type(widget).__name__} in {type(widget.parent()).__name__}"
    for index, name in ((0, "Your message"), (1, "Answer of smollm2-135m-instruct-q4_1")):
        message_view = page.view.view_of(index)
        assert message_view is not None
        assert message_view.accessibleName() == name
    listed.deleteLater()


async def test_a_lost_card_offers_a_restart_of_the_engine_where_it_is_said(
    chat_core: FakeChatCore, page: ChatPage
) -> None:
    error = DeviceLostError("NVIDIA H200 failed: CUDA error.", hint="Restart the engine.")
    chat_core.host.set_state(HostState(HostStatus.FAILED, MODEL, error=error))
    card = page.picker.error_card
    await until(card.isVisible)
    assert card.retry.text().strip() == "Restart the engine"
    card.retry.click()
    await until(lambda: chat_core.host.state.status is HostStatus.READY)
    assert not card.isVisible()
    chat_core.host.set_state(HostState(HostStatus.FAILED, MODEL, error=error))
    assert card.retry.text().strip() == "Restart the engine", "a model was loaded since"
    restarts: list[None] = []
    page.picker.restart_asked.connect(lambda: restarts.append(None))
    chat_core.host.load_error = error
    card.retry.click()
    await until(lambda: card.retry.text().strip() == "Restart Octavo")
    assert not restarts
    card.retry.click()
    assert len(restarts) == 1
    chat_core.host.load_error = None
    other = InsufficientMemoryError("Needs more.", needed_bytes=2, free_bytes=1)
    chat_core.host.set_state(HostState(HostStatus.FAILED, MODEL, error=other))
    assert card.retry.text().strip() == "Try again"

"""The list of conversations: search, select, rename, delete and undo, all by keyboard."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLineEdit, QWidget

from octavo.chats.message import Role
from octavo.ui.chat.conversation_list import NEW_CONVERSATION, ConversationList
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.toast import Toast
from tests.ui.chat.fakes import FakeChatCore
from tests.ui.conftest import until


@pytest.fixture
def chat_core(tmp_path: Path, theme: ThemeController) -> Iterator[FakeChatCore]:
    core = FakeChatCore(tmp_path)
    for title, text in (("Trees", "oak"), ("Sky", "blue"), ("Attention", "softmax")):
        conversation = core.chats.create_conversation(title=title)
        core.chats.add_message(conversation.id, Role.USER, text)
    yield core
    core.chats.close()


@pytest.fixture
def window(chat_core: FakeChatCore) -> Iterator[QWidget]:
    window = QWidget()
    window.resize(300, 400)
    yield window
    window.hide()
    window.deleteLater()


@pytest.fixture
async def listed(chat_core: FakeChatCore, window: QWidget) -> ConversationList:
    listed = ConversationList(chat_core.as_core, window)
    listed.resize(300, 400)
    window.show()
    window.activateWindow()
    await until(window.isActiveWindow)
    return listed


def titles(listed: ConversationList) -> list[str]:
    model = listed.model
    return [str(model.data(model.index(row))) for row in range(model.rowCount())]


def id_of(chat_core: FakeChatCore, title: str) -> int:
    return next(c.id for c in chat_core.chats.conversations() if c.title == title)


async def test_newest_first_and_one_that_changes_moves_up(
    chat_core: FakeChatCore, listed: ConversationList
) -> None:
    assert titles(listed) == ["Attention", "Sky", "Trees"]
    listed.select(id_of(chat_core, "Sky"))
    await asyncio.sleep(0.01)
    chat_core.chats.add_message(id_of(chat_core, "Trees"), Role.USER, "beech")
    await until(lambda: titles(listed) == ["Trees", "Attention", "Sky"])
    assert listed.view.currentIndex().data() == "Sky", "the selection stays with its conversation"


async def test_search_finds_words_in_messages(listed: ConversationList) -> None:
    QTest.keyClicks(listed.search, "softm")
    await until(lambda: titles(listed) == ["Attention"])
    listed.search.setText("nowhere")
    await until(lambda: listed.note == "Nothing found.")
    listed.search.clear()
    await until(lambda: len(titles(listed)) == 3)


async def test_arrow_keys_show_conversations(
    chat_core: FakeChatCore, listed: ConversationList
) -> None:
    shown: list[int] = []
    listed.conversation_selected.connect(shown.append)
    listed.view.setFocus()
    QTest.keyClick(listed.view, Qt.Key.Key_Down)
    QTest.keyClick(listed.view, Qt.Key.Key_Down)
    assert shown[-1] == listed.selected
    assert len(shown) == 2


async def test_who_walks_through_the_list_stays_in_it(
    listed: ConversationList, window: QWidget
) -> None:
    composer = QLineEdit(window)
    composer.show()
    listed.conversation_selected.connect(lambda _id: composer.setFocus())
    listed.view.setFocus()
    QTest.keyClick(listed.view, Qt.Key.Key_Down)
    assert listed.view.hasFocus()
    QTest.keyClick(listed.view, Qt.Key.Key_Return)
    assert composer.hasFocus()
    listed.select(listed.model.conversation(1).id)
    listed.view.setFocus()
    listed.delete_action.trigger()
    assert listed.view.hasFocus()


async def test_f2_renames_from_wherever_the_keyboard_is(
    chat_core: FakeChatCore, listed: ConversationList, window: QWidget
) -> None:
    composer = QLineEdit(window)
    composer.show()
    window.activateWindow()
    listed.select(id_of(chat_core, "Sky"))
    composer.setFocus()
    QTest.keyClick(composer, Qt.Key.Key_F2)
    editor = listed.view.findChild(QLineEdit)
    assert editor is not None
    assert editor.text() == "Sky"


async def test_escape_clears_the_search_and_then_is_the_windows(listed: ConversationList) -> None:
    listed.search.setText("softm")
    assert listed._clear_action.isVisible()
    listed.focus_search()
    QTest.keyClick(listed.search, Qt.Key.Key_Escape)
    assert listed.search.text() == ""
    assert not listed._clear_action.isVisible()
    await until(lambda: len(titles(listed)) == 3)


async def test_return_in_the_search_shows_the_first_found(
    chat_core: FakeChatCore, listed: ConversationList
) -> None:
    listed.search.setText("oak")
    QTest.keyClick(listed.search, Qt.Key.Key_Return)
    assert listed.selected == id_of(chat_core, "Trees")


async def test_f2_renames(chat_core: FakeChatCore, listed: ConversationList) -> None:
    listed.select(id_of(chat_core, "Sky"))
    listed.view.setFocus()
    QTest.keyClick(listed.view, Qt.Key.Key_F2)
    editor = listed.view.findChild(QLineEdit)
    assert editor is not None
    assert editor.geometry().right() <= listed.view.viewport().rect().right()
    opened: list[bool] = []
    listed.view.opened.connect(lambda: opened.append(True))
    editor.setText("Why blue?")
    QTest.keyClick(editor, Qt.Key.Key_Return)
    assert opened == [], "Return ends the writing and no more"
    await until(lambda: chat_core.chats.conversation(listed.selected).title == "Why blue?")
    await until(lambda: "Why blue?" in titles(listed))


async def test_delete_selects_the_next_and_can_be_undone(
    chat_core: FakeChatCore, listed: ConversationList, window: QWidget
) -> None:
    toast = Toast(window)
    deleted = id_of(chat_core, "Sky")
    listed.select(deleted)
    shown: list[int] = []
    listed.conversation_selected.connect(shown.append)
    listed.delete_action.trigger()
    assert titles(listed) == ["Attention", "Trees"]
    assert shown == [id_of(chat_core, "Trees")]
    assert toast.text == "Deleted “Sky”"
    toast.action_button.click()
    assert titles(listed) == ["Attention", "Sky", "Trees"]
    assert shown[-1] == deleted


async def test_deleting_the_last_one_shows_an_empty_conversation(
    chat_core: FakeChatCore, listed: ConversationList
) -> None:
    shown: list[int] = []
    listed.conversation_selected.connect(shown.append)
    for title in ("Sky", "Trees", "Attention"):
        listed.select(id_of(chat_core, title))
        listed.delete_current()
    assert shown[-1] == NEW_CONVERSATION
    assert listed.note


async def test_a_new_conversation_joins_with_its_first_message(
    chat_core: FakeChatCore, listed: ConversationList
) -> None:
    listed.select(id_of(chat_core, "Sky"))
    listed.new_button.click()
    assert listed.selected == NEW_CONVERSATION
    assert not listed.view.currentIndex().isValid()
    assert len(chat_core.chats.conversations()) == 3, "nothing is saved before it is used"
    created = chat_core.chats.create_conversation(title="New one")
    await until(lambda: "New one" in titles(listed))
    assert listed.selected == created.id


async def test_a_change_just_before_the_store_closes_is_harmless(
    chat_core: FakeChatCore, listed: ConversationList
) -> None:
    chat_core.chats.create_conversation(title="Last words")
    chat_core.chats.close()
    await until(lambda: "closed" in listed.note)

"""The transcript: few widgets, the place that is read stays, one repaint a frame."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QGuiApplication, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractScrollArea, QApplication

from octavo.chats.message import Message, MessageStatus, Role
from octavo.ui.chat.chat_style import ChatStyle
from octavo.ui.chat.code_segment import CodeSegment
from octavo.ui.chat.message_view import MessageView
from octavo.ui.chat.text_segment import TextSegment
from octavo.ui.chat.transcript_model import FRAME_MS, TranscriptModel
from octavo.ui.chat.transcript_view import TranscriptView
from octavo.ui.tokens import DARK, LIGHT
from tests.ui.chat.fakes import METRICS, make_message, make_messages

MAX_WIDGETS = 30


@pytest.fixture
def model(app: QApplication) -> TranscriptModel:
    return TranscriptModel()


@pytest.fixture
def view(model: TranscriptModel) -> Iterator[TranscriptView]:
    view = TranscriptView(model, ChatStyle(LIGHT))
    view.resize(800, 700)
    view.show()
    yield view
    view.hide()
    view.deleteLater()


def growing(message_id: int, text: str) -> Message:
    return make_message(message_id, Role.ASSISTANT, text, MessageStatus.STREAMING)


def top_of(view: TranscriptView, index: int) -> int:
    message_view = view.view_of(index)
    assert message_view is not None
    return message_view.y()


def test_thousand_messages_have_few_widgets(model: TranscriptModel, view: TranscriptView) -> None:
    messages = make_messages(1000)
    model.set_messages(make_messages(20))
    began = time.process_time()
    model.set_messages(messages)
    assert time.process_time() - began < 1.5, "0.3 s where nothing else runs"
    assert view.is_at_end
    bar = view.verticalScrollBar()
    for value in range(bar.maximum(), 0, -bar.maximum() // 20):
        bar.setValue(value)
    assert view.num_widgets <= MAX_WIDGETS
    view.resize(500, 700)
    assert view.num_widgets <= MAX_WIDGETS


def test_messages_stand_below_each_other_without_gaps(
    model: TranscriptModel, view: TranscriptView
) -> None:
    model.set_messages(make_messages(40))
    bar = view.verticalScrollBar()
    for value in (0, bar.maximum() // 2, bar.maximum()):
        bar.setValue(value)
        shown = [v for i in range(40) if (v := view.view_of(i)) is not None]
        for above, below in itertools.pairwise(shown):
            assert below.y() == above.geometry().bottom() + 1 + 24
        for message_view in shown:
            for segment in message_view.segments:
                if isinstance(segment, TextSegment):
                    assert segment.verticalScrollBar().maximum() == 0


def test_scrolls_along_at_the_end(model: TranscriptModel, view: TranscriptView) -> None:
    model.set_messages([*make_messages(10), growing(11, "")])
    for length in range(0, 4000, 400):
        model.show_snapshot(growing(11, "word " * length))
        model.flush()
        bar = view.verticalScrollBar()
        assert bar.value() == bar.maximum()
    assert view.jump_button.isHidden()


def test_stays_where_the_person_reads(model: TranscriptModel, view: TranscriptView) -> None:
    model.set_messages([*make_messages(20), growing(21, "Once")])
    view.verticalScrollBar().setValue(view.verticalScrollBar().maximum() // 2)
    assert not view.is_at_end
    index = next(i for i in range(21) if view.view_of(i) is not None and top_of(view, i) > 0)
    before = top_of(view, index)
    for length in (10, 100, 1000):
        model.show_snapshot(growing(21, "Once more " * length))
        model.flush()
    assert top_of(view, index) == before
    assert view.jump_button.isVisible()
    view.jump_button.click()
    assert view.is_at_end
    assert view.verticalScrollBar().value() == view.verticalScrollBar().maximum()
    assert view.jump_button.isHidden()


def test_scrolling_up_over_unmeasured_messages_does_not_jump(
    model: TranscriptModel, view: TranscriptView
) -> None:
    model.set_messages(make_messages(200))
    bar = view.verticalScrollBar()
    for _ in range(30):
        index = next(i for i in range(200) if view.view_of(i) is not None and top_of(view, i) > -50)
        before = top_of(view, index)
        bar.setValue(bar.value() - 100)
        assert abs(top_of(view, index) - (before + 100)) <= 1


async def test_snapshots_are_painted_once_a_frame(
    model: TranscriptModel, view: TranscriptView
) -> None:
    """5,000 tokens as fast as they come: frames, not tokens, are paid for."""
    model.set_messages([make_message(1, Role.USER, "Go"), growing(2, "")])
    frames: list[int] = []
    model.changed.connect(frames.append)
    paragraph = "word " * 40 + "\n\n"
    text = ""
    began = time.perf_counter()
    for number in range(5000):
        text += paragraph[(number * 5) % len(paragraph) :][:5]
        model.show_snapshot(growing(2, text))
        if number % 50 == 0:
            await asyncio.sleep(0.004)
    elapsed_ms = (time.perf_counter() - began) * 1000
    model.show_snapshot(make_message(2, Role.ASSISTANT, text, metrics=METRICS))
    assert 2 <= len(frames) <= elapsed_ms / FRAME_MS + 2
    message_view = view.view_of(1)
    assert message_view is not None
    assert "tok/s" in message_view.footer.text


def test_a_frame_costs_the_tail_not_the_answer(
    model: TranscriptModel, view: TranscriptView
) -> None:
    """Rendered characters per frame stay bounded while the answer grows."""
    model.set_messages([growing(2, "")])
    rendered: list[int] = []
    original = TextSegment.set_html

    def counting(self: TextSegment, html: str) -> None:
        rendered[-1] += len(html)
        original(self, html)

    paragraph = "word " * 30 + "\n\n"
    with patch.object(TextSegment, "set_html", counting):
        for number in range(1, 160):
            rendered.append(0)
            model.show_snapshot(growing(2, paragraph * number))
            model.flush()
    assert max(rendered[-20:]) <= 2 * max(rendered[20:40])


def test_growing_code_keeps_its_widget(model: TranscriptModel, view: TranscriptView) -> None:
    model.set_messages([growing(2, "```pyth")])
    message_view = view.view_of(0)
    assert message_view is not None
    assert not message_view.segments
    model.show_snapshot(growing(2, "```python\nx"))
    model.flush()
    segment = message_view.findChild(CodeSegment)
    assert segment is not None
    assert segment.language == "python"
    model.show_snapshot(growing(2, "```python\nx = 1\n```\nDone"))
    model.flush()
    assert message_view.segments[0] is segment
    assert segment.code == "x = 1"
    assert segment.editor.verticalScrollBar().maximum() == 0


def test_a_recycled_widget_shows_only_its_message(
    model: TranscriptModel, view: TranscriptView
) -> None:
    def texts(message_view: MessageView) -> list[str]:
        return [
            segment.code if isinstance(segment, CodeSegment) else segment.toPlainText()
            for segment in message_view.segments
        ]

    model.set_messages(make_messages(60))
    bar = view.verticalScrollBar()
    bar.setValue(0)
    first = view.view_of(1)
    assert first is not None
    expected = texts(first)
    for value in (bar.maximum(), bar.maximum() // 2, 0):
        bar.setValue(value)
    again = view.view_of(1)
    assert again is not None
    assert texts(again) == expected


def test_theme_and_scale_set_everything_anew(model: TranscriptModel, view: TranscriptView) -> None:
    model.set_messages(make_messages(10))
    before = view.verticalScrollBar().maximum()
    view.set_style(ChatStyle(DARK, 1.4))
    assert view.verticalScrollBar().maximum() > before
    assert view.is_at_end


def test_keyboard_reaches_a_message_and_copies_its_source(
    model: TranscriptModel, view: TranscriptView
) -> None:
    messages = make_messages(6)
    model.set_messages(messages)
    view.setFocus()
    alt, control = Qt.KeyboardModifier.AltModifier, Qt.KeyboardModifier.ControlModifier
    QTest.keyClick(view, Qt.Key.Key_Up, alt)
    QTest.keyClick(view, Qt.Key.Key_Up, alt)
    assert view.current == 4
    QTest.keyClick(view, Qt.Key.Key_Down, alt)
    QTest.keyClick(view, Qt.Key.Key_C, control)
    assert QGuiApplication.clipboard().text() == messages[5].content
    message_view = view.view_of(5)
    assert message_view is not None
    assert message_view.footer.copy_button.is_revealed


def test_actions_show_under_the_pointer_and_only_the_last_answer_is_written_again(
    model: TranscriptModel, view: TranscriptView
) -> None:
    model.set_messages(make_messages(4))
    old, last = view.view_of(1), view.view_of(3)
    assert old is not None
    assert last is not None
    assert not old.footer.copy_button.is_revealed
    assert old.footer.regenerate_button.isHidden()
    assert last.footer.regenerate_button.is_revealed
    old.footer.copy_button.setFocus(Qt.FocusReason.TabFocusReason)
    asked: list[bool] = []
    view.regenerate_requested.connect(lambda: asked.append(True))
    last.footer.regenerate_button.click()
    assert asked == [True]


def test_wheel_over_a_message_is_left_to_the_transcript(
    model: TranscriptModel, view: TranscriptView
) -> None:
    model.set_messages(make_messages(10))
    message_view = view.view_of(9)
    assert message_view is not None
    for editor in message_view.findChildren(QAbstractScrollArea):
        event = QWheelEvent(
            QPointF(5, 5),
            QPointF(editor.mapToGlobal(QPoint(5, 5))),
            QPoint(),
            QPoint(0, 120),
            Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(editor.viewport(), event)
        assert not event.isAccepted()


@pytest.mark.parametrize("step", [7, 61, 500])
def test_growing_ends_in_the_same_places_as_finished(
    model: TranscriptModel, view: TranscriptView, step: int
) -> None:
    text = (make_messages(2)[1].content + "\n\n") * 4
    model.set_messages([growing(2, "")])
    for length in range(0, len(text), step):
        model.show_snapshot(growing(2, text[:length]))
        model.flush()
    done = make_message(2, Role.ASSISTANT, text, metrics=METRICS)
    model.show_snapshot(done)
    grown = view.view_of(0)
    assert grown is not None
    fresh = MessageView(view.viewport(), ChatStyle(LIGHT))
    fresh.show_message(done, is_last=True)
    assert fresh.height_for(grown.width()) == grown.height()
    assert [s.geometry() for s in fresh.segments] == [s.geometry() for s in grown.segments]


def test_walking_from_the_end_does_not_jump_to_the_beginning(
    model: TranscriptModel, view: TranscriptView
) -> None:
    model.set_messages(make_messages(40))
    view.setFocus()
    before = view.verticalScrollBar().value()
    QTest.keyClick(view, Qt.Key.Key_Up, Qt.KeyboardModifier.AltModifier)
    assert view.current == 39
    assert abs(view.verticalScrollBar().value() - before) < view.viewport().height()

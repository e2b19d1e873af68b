"""The composer by keyboard, its growth and its gauge."""

from collections.abc import Mapping, Sequence

import pytest
from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QWidget

from octavo.chats.message import MessageStatus, Role
from octavo.ui.chat.composer import MAX_LINES, Composer
from octavo.ui.chat.context_gauge import ContextGauge, count_context
from octavo.ui.theme import ThemeController
from tests.ui.chat.fakes import make_message


@pytest.fixture
def composer(theme: ThemeController) -> Composer:
    composer = Composer()
    composer.resize(500, 100)
    composer.show()
    return composer


def test_enter_sends_and_shift_enter_breaks_the_line(composer: Composer) -> None:
    sent: list[str] = []
    composer.submitted.connect(sent.append)
    QTest.keyClicks(composer.editor, "One")
    QTest.keyClick(composer.editor, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(composer.editor, "two")
    QTest.keyClick(composer.editor, Qt.Key.Key_Return)
    assert sent == ["One\ntwo"]
    assert composer.text == "One\ntwo", "only who takes it clears it"


@pytest.mark.parametrize("text", ["", "   ", "\n\n"])
def test_nothing_is_not_sent(composer: Composer, text: str) -> None:
    sent: list[str] = []
    composer.submitted.connect(sent.append)
    composer.set_text(text)
    QTest.keyClick(composer.editor, Qt.Key.Key_Return)
    assert sent == []
    assert not composer.send_button.isEnabled()


def test_without_a_model_text_can_be_written_but_not_sent(composer: Composer) -> None:
    sent: list[str] = []
    composer.submitted.connect(sent.append)
    composer.set_unavailable("No model is loaded.")
    assert composer.editor.placeholderText() == "No model is loaded."
    QTest.keyClicks(composer.editor, "Hello")
    QTest.keyClick(composer.editor, Qt.Key.Key_Return)
    assert sent == []
    assert composer.text == "Hello"
    assert composer.gauge.text == "No model is loaded."
    assert composer.send_button.toolTip() == "No model is loaded."


def test_while_busy_the_button_and_escape_stop(composer: Composer) -> None:
    stops: list[bool] = []
    composer.stop_requested.connect(lambda: stops.append(True))
    composer.set_text("Next question")
    composer.set_busy(True)
    assert composer.send_button.accessibleName() == "Stop the answer"
    composer.send_button.click()
    QTest.keyClick(composer.editor, Qt.Key.Key_Escape)
    assert len(stops) == 2
    QTest.keyClick(composer.editor, Qt.Key.Key_Return)
    assert len(stops) == 2
    assert composer.text == "Next question"


def test_grows_with_its_lines_up_to_a_limit(composer: Composer) -> None:
    heights = []
    for count in (1, 3, MAX_LINES, 40):
        composer.set_text("line\n" * (count - 1) + "line")
        heights.append(composer.editor.height())
    assert heights[0] < heights[1] < heights[2] == heights[3]
    line = composer.editor.fontMetrics().lineSpacing()
    assert heights[1] - heights[0] == 2 * line


@pytest.mark.parametrize(
    ("used", "limit", "text", "tone"),
    [
        (1204, 8192, "1,204 of 8,192 tokens", "soft"),
        (6963, 8192, "6,963 of 8,192 tokens", "soft"),
        (6964, 8192, "6,964 of 8,192 tokens", "caution"),
        (
            9000,
            8192,
            "9,000 of 8,192 tokens: the oldest messages will be left out",
            "bad",
        ),
        (0, 0, "", "soft"),
    ],
)
def test_gauge(theme: ThemeController, used: int, limit: int, text: str, tone: str) -> None:
    gauge = ContextGauge()
    gauge.set_counts(used, limit)
    assert (gauge.text, gauge.tone) == (text, tone)


def test_counted_is_what_would_be_sent() -> None:
    messages = [
        make_message(1, Role.USER, "one"),
        make_message(2, Role.ASSISTANT, "two"),
        make_message(3, Role.USER, "never answered"),
        make_message(4, Role.ASSISTANT, "", MessageStatus.FAILED),
        make_message(5, Role.USER, "stopped before the first word"),
        make_message(6, Role.ASSISTANT, "", MessageStatus.STOPPED),
    ]
    counted: list[list[str]] = []

    def count(prompt: Sequence[Mapping[str, str]]) -> int:
        counted.append([message["content"] for message in prompt])
        return 42

    assert count_context(messages, "system", "draft", count) == 42
    assert counted == [["system", "one", "two", "stopped before the first word\n\ndraft"]]


def test_a_system_prompt_alone_is_no_prompt() -> None:
    assert count_context([], "system", " ", lambda _: 42) == 0


def test_a_new_reason_is_painted_at_once(composer: Composer) -> None:
    composer.set_unavailable("No model is loaded.")
    QTest.qWait(50)
    watcher = PaintWatcher(composer.editor.viewport())
    composer.set_unavailable("")
    QTest.qWait(50)
    assert watcher.num_paints >= 1
    assert composer.editor.placeholderText() == "Write a message"


class PaintWatcher(QObject):
    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        self.num_paints = 0
        widget.installEventFilter(self)

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        self.num_paints += event.type() is QEvent.Type.Paint
        return False

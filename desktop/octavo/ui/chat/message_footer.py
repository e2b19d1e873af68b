"""`MessageFooter`: what is known about an answer in one quiet row, and what to do with it."""

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QFocusEvent, QPaintEvent
from PySide6.QtWidgets import QToolButton, QWidget

from octavo.chats.message import Message, MessageStatus
from octavo.engine.request import FinishReason, RequestMetrics
from octavo.ui.chat.chat_style import ChatStyle
from octavo.ui.icons import icon
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.cards import IconLabel
from octavo.ui.widgets.labels import label, set_tone
from octavo.units import format_seconds

ACTION_PIXELS = 24


def describe_metrics(metrics: RequestMetrics) -> str:
    """Speed, wait, length and what the prefix cache saved."""
    parts = []
    rate = metrics.tokens_per_second
    if rate is not None:
        parts.append(f"{rate:.1f} tok/s")
    parts.append(f"first token {format_seconds(metrics.time_to_first_token_s)}")
    parts.append(count_tokens(metrics.output_tokens))
    if metrics.cached_tokens:
        parts.append(f"{metrics.cached_tokens:,} of {metrics.prompt_tokens:,} prompt tokens reused")
    return " · ".join(parts)


def describe_answer(message: Message) -> str:
    """The row under an answer: its state, as far as it is not simply done, and its numbers."""
    if message.status is MessageStatus.STREAMING:
        return "Writing…" if message.content else "Reading the prompt…"
    parts = ["Stopped"] if message.status is MessageStatus.STOPPED else []
    if message.metrics is not None:
        parts.append(describe_metrics(message.metrics))
    return " · ".join(parts)


def describe_problem(message: Message) -> str:
    """The sentences about what went wrong with an answer; empty if nothing did."""
    sentences = []
    if message.status is MessageStatus.FAILED:
        sentences.append(message.error)
    elif message.status is MessageStatus.INTERRUPTED:
        sentences.append("Octavo was closed during this answer.")
    elif message.finish_reason is FinishReason.LENGTH:
        sentences.append("The answer was cut off: it reached its longest length.")
    if message.dropped_messages:
        count = message.dropped_messages
        subject = "1 older message was" if count == 1 else f"{count:,} older messages were"
        sentences.append(f"{subject} left out to fit the context.")
    return " ".join(sentences)


def count_tokens(count: int) -> str:
    """`1,204 tokens`."""
    return "1 token" if count == 1 else f"{count:,} tokens"


class ActionButton(QToolButton):
    """An icon that shows while its message is under the pointer or it has the focus itself.

    It keeps its place while it cannot be seen, and the Tab key always reaches it.
    """

    def __init__(self, icon_name: str, name: str, style: ChatStyle, parent: QWidget) -> None:
        super().__init__(parent)
        self._icon_name = icon_name
        self._is_revealed = False
        self.setObjectName("action")
        self.setAccessibleName(name)
        self.setToolTip(name)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.set_style(style)

    @property
    def is_revealed(self) -> bool:
        return self._is_revealed or self.hasFocus()

    def set_style(self, style: ChatStyle) -> None:
        theme = style.theme
        size = scaled(14, style.scale)
        tinted = icon(self._icon_name, theme.ink_soft, size, disabled_color=theme.ink_faint)
        self.setIcon(tinted)
        self.setIconSize(QSize(size, size))
        pixels = scaled(ACTION_PIXELS, style.scale)
        self.setFixedSize(pixels, pixels)

    def set_revealed(self, revealed: bool) -> None:
        self._is_revealed = revealed
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        if self.is_revealed:
            super().paintEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)
        self.update()

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        self.update()


class MessageFooter(QWidget):
    """Under each answer: its problem, if it had one, then numbers and actions."""

    copy_requested = Signal()
    regenerate_requested = Signal()

    def __init__(self, parent: QWidget, style: ChatStyle) -> None:
        super().__init__(parent)
        self._problem_icon = IconLabel("circle-alert", "bad", parent=self)
        self._problem = label("", wrap=True)
        self._problem.setParent(self)
        self._problem.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._numbers = label("", "caption", wrap=True)
        self._numbers.setParent(self)
        self.copy_button = ActionButton("copy", "Copy this answer", style, self)
        self.copy_button.clicked.connect(self.copy_requested)
        self.regenerate_button = ActionButton("refresh-cw", "Answer again", style, self)
        self.regenerate_button.clicked.connect(self.regenerate_requested)
        self.regenerate_button.setToolTip("Drops this answer and writes a new one")

    @property
    def text(self) -> str:
        """Everything the footer says."""
        return f"{self._problem.text()} {self._numbers.text()}".strip()

    def set_style(self, style: ChatStyle) -> None:
        self.copy_button.set_style(style)
        self.regenerate_button.set_style(style)

    def show_message(self, message: Message, *, is_last: bool) -> None:
        problem = describe_problem(message)
        is_bad = message.status is MessageStatus.FAILED
        self._problem.setText(problem)
        self._problem.setVisible(bool(problem))
        self._problem_icon.setVisible(is_bad)
        set_tone(self._problem, "bad" if is_bad else "soft")
        self._numbers.setText(describe_answer(message))
        is_done = message.status is not MessageStatus.STREAMING
        self.copy_button.setVisible(is_done and bool(message.content))
        self.regenerate_button.setVisible(is_done and is_last)

    def set_revealed(self, revealed: bool) -> None:
        self.copy_button.set_revealed(revealed)
        self.regenerate_button.set_revealed(revealed)

    def height_for(self, width: int) -> int:
        """Lays the footer out at this width and returns its height."""
        top = 0
        if not self._problem.isHidden():
            is_marked = not self._problem_icon.isHidden()
            left = self._problem_icon.width() + SPACE_WITHIN if is_marked else 0
            height = self._problem.heightForWidth(width - left)
            self._problem_icon.move(0, 0)
            self._problem.setGeometry(left, 0, width - left, height)
            top = height + SPACE_TIGHT
        right = width
        row_height = self.copy_button.height()
        for button in (self.regenerate_button, self.copy_button):
            if not button.isHidden():
                right -= button.width()
                button.move(right, top)
        text_width = max(0, right - SPACE_WITHIN)
        text_height = self._numbers.heightForWidth(text_width)
        # One line of numbers stands on the middle of the buttons, more begin beside them.
        text_top = top + max(0, (row_height - text_height) // 2)
        self._numbers.setGeometry(0, text_top, text_width, text_height)
        return top + max(row_height, text_height)

"""`ContextGauge`: how much of the context the conversation and the draft fill, in exact tokens."""

import sys
from collections.abc import Callable, Sequence

from PySide6.QtCore import QRectF
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QWidget

from octavo.chats.context_window import ChatMessage, fit_messages
from octavo.chats.message import Message, Role
from octavo.chats.session import prompt_messages
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_WITHIN, scaled
from octavo.ui.widgets.labels import ElidedLabel, set_tone

CAUTION_SHARE = 0.85
BAR_WIDTH = 72
BAR_HEIGHT = 4


class ContextGauge(QWidget):
    """A thin bar and the numbers: `1,204 of 8,192 tokens`."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._used = 0
        self._limit = 0
        self._reason = ""
        self._bar = _Bar()
        self._text = ElidedLabel("", "caption")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACE_WITHIN)
        row.addWidget(self._bar)
        row.addWidget(self._text, 1)
        ThemeController.current().changed.connect(self._refresh)
        self._refresh()

    @property
    def text(self) -> str:
        return self._text.text()

    @property
    def tone(self) -> str:
        """`caution` where little room is left, `bad` where there is none."""
        if not self._limit or self._used <= CAUTION_SHARE * self._limit:
            return "soft"
        return "caution" if self._used < self._limit else "bad"

    def set_counts(self, used_tokens: int, limit_tokens: int) -> None:
        """Shows exact counts; a limit of 0 hides them."""
        self._used = used_tokens
        self._limit = limit_tokens
        self._refresh()

    def set_reason(self, reason: str) -> None:
        """Says instead why nothing can be sent; "" for the counts."""
        self._reason = reason
        self._refresh()

    def _refresh(self) -> None:
        counts = f"{self._used:,} of {self._limit:,} tokens" if self._limit else ""
        is_full = bool(self._limit) and self._used >= self._limit
        if is_full:
            counts += ": the oldest messages will be left out"
        self._text.setText(self._reason or counts)
        set_tone(self._text, "caution" if self._reason else self.tone)
        self._bar.show_share(self._used / self._limit if self._limit else 0.0, self.tone)
        self._bar.setVisible(bool(self._limit) and not self._reason)
        self.setAccessibleName(f"Context: {counts}" if counts else "Context")
        self._bar.setToolTip("How much of the model's context this conversation and your text fill")


class _Bar(QWidget):
    def __init__(self) -> None:
        super().__init__()
        self._share = 0.0
        self._tone = "soft"
        self.setFixedSize(scaled(BAR_WIDTH, ThemeController.current().scale), BAR_HEIGHT)

    def show_share(self, share: float, tone: str) -> None:
        self._share = min(1.0, share)
        self._tone = tone
        self.setFixedWidth(scaled(BAR_WIDTH, ThemeController.current().scale))
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        theme = ThemeController.current().theme
        colors = {"soft": theme.accent, "caution": theme.caution, "bad": theme.bad}
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(0, 0, 0, 0))
        radius = BAR_HEIGHT / 2
        painter.setBrush(QColor(theme.rule))
        painter.drawRoundedRect(self.rect().toRectF(), radius, radius)
        painter.setBrush(QColor(colors[self._tone]))
        filled = QRectF(0, 0, self.width() * self._share, self.height())
        if filled.width() >= 1:
            painter.drawRoundedRect(filled, radius, radius)
        painter.end()


def count_context(
    messages: Sequence[Message],
    system_prompt: str,
    draft: str,
    count_tokens: Callable[[Sequence[ChatMessage]], int],
) -> int:
    """Tokens of the prompt if the draft were sent now and everything fitted; for a worker thread.

    An answer that is being written counts with the text it has.
    """
    prompt = prompt_messages(messages, system_prompt)
    if draft.strip():
        prompt.append({"role": Role.USER.value, "content": draft})
    if all(message["role"] == Role.SYSTEM for message in prompt):
        return 0
    return fit_messages(prompt, count_tokens, sys.maxsize).prompt_tokens

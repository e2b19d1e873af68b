"""`Composer`: where a message is written; it grows with the text, sends it and stops answers."""

from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QColor, QKeyEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QPlainTextEdit, QVBoxLayout, QWidget

from octavo.ui.chat.context_gauge import ContextGauge
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import (
    FONT_READING,
    RADIUS_CARD,
    SPACE_INSET,
    SPACE_TIGHT,
    SPACE_WITHIN,
    scaled,
)
from octavo.ui.widgets.buttons import Button

MAX_LINES = 8


class Composer(QFrame):
    """Enter sends, Shift+Enter begins a new line, Esc stops the answer.

    The text is only cleared by whoever takes it: what could not be sent is never lost.
    """

    submitted = Signal(str)
    stop_requested = Signal()
    text_changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._is_busy = False
        self._reason = ""
        self.editor = _Editor(self)
        self.editor.textChanged.connect(self._on_text_changed)
        self.editor.installEventFilter(self)
        self.gauge = ContextGauge()
        self.send_button = Button("Send", variant="primary", icon_name="arrow-up")
        self.send_button.clicked.connect(self.press)
        row = QHBoxLayout()
        row.setContentsMargins(SPACE_TIGHT, 0, 0, 0)
        row.setSpacing(SPACE_INSET)
        row.addWidget(self.gauge, 1)
        row.addWidget(self.send_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_INSET, SPACE_WITHIN, SPACE_WITHIN, SPACE_WITHIN)
        column.setSpacing(SPACE_WITHIN)
        column.addWidget(self.editor)
        column.addLayout(row)
        ThemeController.current().changed.connect(self._apply_theme)
        self._apply_theme()
        self._refresh()

    @property
    def text(self) -> str:
        return self.editor.toPlainText()

    @property
    def is_busy(self) -> bool:
        return self._is_busy

    def set_text(self, text: str) -> None:
        """Puts a draft there, with the cursor at its end."""
        self.editor.setPlainText(text)
        cursor = self.editor.textCursor()
        cursor.movePosition(cursor.MoveOperation.End)
        self.editor.setTextCursor(cursor)

    def clear(self) -> None:
        self.editor.clear()

    def set_busy(self, busy: bool) -> None:
        """While an answer is written the button stops it."""
        self._is_busy = busy
        self._refresh()

    def set_unavailable(self, reason: str) -> None:
        """Nothing can be sent, and why; "" if it can. Writing is always possible."""
        self._reason = reason
        self._refresh()

    def press(self) -> None:
        """What the button does now: sends or stops."""
        if self._is_busy:
            self.stop_requested.emit()
        elif self.send_button.isEnabled():
            self.submitted.emit(self.text)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.editor:
            if event.type() in (QEvent.Type.FocusIn, QEvent.Type.FocusOut):
                self.update()
            if isinstance(event, QKeyEvent) and event.type() is QEvent.Type.KeyPress:
                return self._take_key(event)
        return super().eventFilter(watched, event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        theme = ThemeController.current().theme
        has_focus = self.editor.hasFocus()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = painter.pen()
        pen.setColor(QColor(theme.accent if has_focus else theme.edge))
        pen.setWidthF(1.5 if has_focus else 1.0)
        painter.setPen(pen)
        painter.setBrush(QColor(theme.sheet))
        area = self.rect().toRectF().adjusted(1, 1, -1, -1)
        painter.drawRoundedRect(area, RADIUS_CARD, RADIUS_CARD)
        painter.end()

    def _take_key(self, event: QKeyEvent) -> bool:
        is_return = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if is_return and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            # While an answer is written, Enter must neither stop it nor break the line.
            if not self._is_busy:
                self.press()
            return True
        if event.key() == Qt.Key.Key_Escape and self._is_busy:
            self.stop_requested.emit()
            return True
        return False

    def _on_text_changed(self) -> None:
        self._refresh()
        self.text_changed.emit()

    def _refresh(self) -> None:
        button = self.send_button
        button.setText("Stop" if self._is_busy else "Send")
        button.set_icon_name("square" if self._is_busy else "arrow-up")
        button.set_variant("" if self._is_busy else "primary")
        button.setEnabled(self._is_busy or (not self._reason and bool(self.text.strip())))
        tip = "Stop the answer (Esc)" if self._is_busy else "Send the message (Enter)"
        button.setToolTip(tip if self._is_busy or not self._reason else self._reason)
        button.setAccessibleName("Stop the answer" if self._is_busy else "Send the message")
        button.setAccessibleDescription("" if self._is_busy else self._reason)
        self.editor.setPlaceholderText(self._reason or "Write a message")
        # Qt paints another placeholder only once something else changes.
        self.editor.viewport().update()
        self.gauge.set_reason("" if not self.text.strip() else self._reason)

    def _apply_theme(self) -> None:
        controller = ThemeController.current()
        theme, size = controller.theme, scaled(FONT_READING, controller.scale)
        self.setStyleSheet(
            "QPlainTextEdit, QPlainTextEdit:hover, QPlainTextEdit:focus {"
            f" background: transparent; border: none; padding: 0px; color: {theme.ink};"
            f" font-size: {size}px; }}"
        )
        self.editor.fit_height()
        self.update()


class _Editor(QPlainTextEdit):
    """Plain text that is as high as its lines, up to a limit; then it scrolls."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAccessibleName("Message")
        self.setToolTip("Enter sends, Shift+Enter begins a new line")
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setTabChangesFocus(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.document().setDocumentMargin(SPACE_TIGHT)
        self.viewport().setAutoFillBackground(False)
        self.document().documentLayout().documentSizeChanged.connect(self.fit_height)

    def fit_height(self) -> None:
        """Takes the height of the text; the layout counts it in lines, wrapped ones included."""
        lines = int(self.document().documentLayout().documentSize().height())
        shown = min(MAX_LINES, max(1, lines))
        margin = 2 * int(self.document().documentMargin())
        self.setFixedHeight(shown * self.fontMetrics().lineSpacing() + margin + 2)
        is_long = lines > MAX_LINES
        policy = Qt.ScrollBarPolicy
        self.setVerticalScrollBarPolicy(
            policy.ScrollBarAsNeeded if is_long else policy.ScrollBarAlwaysOff
        )

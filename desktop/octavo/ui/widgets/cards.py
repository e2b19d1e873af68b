"""Cards, empty states, notices and error cards: the frames that hold a sentence and its action."""

import asyncio

from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.errors import OctavoError
from octavo.ui.icons import icon_pixmap
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import (
    SPACE_GROUP,
    SPACE_INSET,
    SPACE_PAGE,
    SPACE_TIGHT,
    SPACE_WITHIN,
    scaled,
)
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.toast import find_toast


class Card(QFrame):
    """A sheet with a hairline around it; put things into `body`."""

    def __init__(self, surface: str = "card", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("surface", surface)
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(SPACE_GROUP, SPACE_GROUP, SPACE_GROUP, SPACE_GROUP)
        self.body.setSpacing(SPACE_WITHIN)


class IconLabel(QLabel):
    """An icon that stands beside words and is not itself read aloud."""

    def __init__(
        self,
        icon_name: str,
        tone: str = "ink_soft",
        pixels: int = 16,
        parent: QWidget | None = None,
    ) -> None:
        """Args:
        tone: name of a colour of `Theme`.
        """
        super().__init__(parent)
        self._icon_name = icon_name
        self._tone = tone
        self._pixels = pixels
        ThemeController.current().changed.connect(self._tint)
        self._tint()

    def _tint(self) -> None:
        controller = ThemeController.current()
        pixels = scaled(self._pixels, controller.scale)
        ratio = self.devicePixelRatioF()
        color = str(getattr(controller.theme, self._tone))
        pixmap = icon_pixmap(self._icon_name, color, round(pixels * ratio))
        pixmap.setDevicePixelRatio(ratio)
        self.setPixmap(pixmap)
        self.setFixedSize(pixels, pixels)


class EmptyState(QWidget):
    """What a page shows when it has nothing yet: one sentence and, perhaps, one action."""

    def __init__(
        self,
        icon_name: str,
        title: str,
        sentence: str,
        action: Button | None = None,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        column.setSpacing(SPACE_WITHIN)
        column.addStretch(2)
        column.addWidget(IconLabel(icon_name, "ink_faint", 32), 0, Qt.AlignmentFlag.AlignHCenter)
        column.addSpacing(SPACE_TIGHT)
        self._title = label(title, "heading", wrap=True)
        self._sentence = label(sentence, "soft", wrap=True)
        for text in (self._title, self._sentence):
            text.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            column.addWidget(text)
        if action is not None:
            column.addSpacing(SPACE_WITHIN)
            column.addWidget(action, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addStretch(3)

    def set_text(self, title: str, sentence: str) -> None:
        self._title.setText(title)
        self._sentence.setText(sentence)


class Notice(QFrame):
    """A quiet sentence about something that is not as it should be; hidden while there is none."""

    def __init__(self, icon_name: str = "info", tone: str = "ink_soft") -> None:
        super().__init__()
        self.setProperty("surface", "notice")
        row = QHBoxLayout(self)
        row.setContentsMargins(SPACE_INSET, SPACE_WITHIN, SPACE_INSET, SPACE_WITHIN)
        row.setSpacing(SPACE_WITHIN)
        self._text = label("", wrap=True)
        row.addWidget(IconLabel(icon_name, tone), 0, Qt.AlignmentFlag.AlignTop)
        row.addWidget(self._text, 1)
        self.hide()

    @property
    def text(self) -> str:
        return self._text.text()

    def set_text(self, text: str) -> None:
        self._text.setText(text)
        self.setVisible(bool(text))


class ErrorCard(QFrame):
    """Cause, numbers and next step of an error, with a retry where that makes sense."""

    def __init__(self, retry_text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("surface", "error")
        self._error: OctavoError | None = None
        row = QHBoxLayout(self)
        row.setContentsMargins(SPACE_INSET, SPACE_INSET, SPACE_INSET, SPACE_INSET)
        row.setSpacing(SPACE_INSET)
        row.addWidget(IconLabel("circle-alert", "bad"), 0, Qt.AlignmentFlag.AlignTop)
        column = QVBoxLayout()
        column.setSpacing(SPACE_TIGHT)
        self._message = label("", wrap=True)
        self._hint = label("", "soft", wrap=True)
        for text in (self._message, self._hint):
            text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            column.addWidget(text)
        self.retry = Button(retry_text or "Try again", icon_name="rotate-ccw")
        self.retry.setVisible(bool(retry_text))
        self.copy_button = copy = IconButton("clipboard-copy", "Copy report")
        copy.clicked.connect(self._copy_report)
        close = IconButton("x", "Close this message")
        close.clicked.connect(self.clear)
        buttons = QHBoxLayout()
        buttons.setSpacing(SPACE_WITHIN)
        buttons.addWidget(self.retry)
        buttons.addStretch(1)
        if retry_text:
            column.addSpacing(SPACE_TIGHT)
        column.addLayout(buttons)
        row.addLayout(column, 1)
        row.addWidget(copy, 0, Qt.AlignmentFlag.AlignTop)
        row.addWidget(close, 0, Qt.AlignmentFlag.AlignTop)
        self.hide()

    @property
    def error(self) -> OctavoError | None:
        return self._error

    def show_error(self, error: OctavoError) -> None:
        self._error = error
        self._message.setText(error.message)
        self._hint.setText(error.hint)
        self._hint.setVisible(bool(error.hint))
        self.setAccessibleName(f"Error: {error}")
        self.show()

    def clear(self) -> None:
        self._error = None
        self.hide()

    def _copy_report(self) -> None:
        if self._error is not None:
            spawn(self._copy(self._error))

    async def _copy(self, error: OctavoError) -> None:
        """The report asks the driver and reads the log, so a worker makes it."""
        from octavo.ui.error_report import make_error_report

        QGuiApplication.clipboard().setText(await asyncio.to_thread(make_error_report, error))
        if (toast := find_toast(self)) is not None:
            toast.show_message("The report is in the clipboard.")

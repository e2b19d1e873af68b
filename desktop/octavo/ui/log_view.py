"""`LogWindow`: the end of the log file, followed while somebody looks."""

import asyncio
import re
from collections import deque
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, QUrl
from PySide6.QtGui import (
    QDesktopServices,
    QGuiApplication,
    QHideEvent,
    QKeySequence,
    QShortcut,
    QShowEvent,
)
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from octavo.log import LogTail
from octavo.ui.crash_report import redact
from octavo.ui.tasks import spawn
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_WITHIN, scaled
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.inputs import ChoiceBox
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.ui.widgets.mono_text import MonoText

MAX_READ_BYTES = 256 * 1024
MAX_LINES = 4_000
FOLLOW_MS = 500
SIZE = (880, 560)
FILTER_WIDTH = 200

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FILTERS = (
    ("DEBUG", "Everything"),
    ("WARNING", "Warnings and errors"),
    ("ERROR", "Errors"),
)
_RECORD = re.compile(rf"\d{{4}}-\d\d-\d\d [\d:,]+ ({'|'.join(LEVELS)}) \[")


class LogWindow(QWidget):
    """A window beside the main one; hidden, it reads nothing."""

    def __init__(self, path: Path, parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Window)
        self.setWindowTitle("The log of Octavo")
        self.setProperty("surface", "paper")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        scale = ThemeController.current().scale
        self.resize(scaled(SIZE[0], scale), scaled(SIZE[1], scale))
        self._path = path
        self._tail = LogTail(path, MAX_READ_BYTES)
        self._lines: deque[tuple[str, str]] = deque(maxlen=MAX_LINES)
        self._level = "INFO"
        self._is_reading = False
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(FOLLOW_MS)
        self._timer.timeout.connect(self._follow)
        QShortcut(QKeySequence("Esc"), self).activated.connect(self.hide)

    @property
    def text(self) -> str:
        return self._text.toPlainText()

    @property
    def is_following(self) -> bool:
        return self._timer.isActive()

    def bring_to_front(self) -> None:
        """Shows the window, wherever it was."""
        self.setWindowState(self.windowState() & ~Qt.WindowState.WindowMinimized)
        self.show()
        self.raise_()
        self.activateWindow()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self._timer.start()
        self._follow()

    def hideEvent(self, event: QHideEvent) -> None:
        self._timer.stop()
        super().hideEvent(event)

    def _build(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_GROUP, SPACE_GROUP, SPACE_GROUP, SPACE_GROUP)
        column.setSpacing(SPACE_WITHIN)
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        self.filter = ChoiceBox("Which records", FILTERS)
        self.filter.setFixedWidth(scaled(FILTER_WIDTH, ThemeController.current().scale))
        self.filter.chosen.connect(lambda _value: self._render())
        head.addWidget(self.filter)
        head.addStretch(1)
        self.copy_button = Button("Copy", icon_name="clipboard-copy")
        self.copy_button.setToolTip("Copy what is shown, with the home folder and keys shortened")
        self.copy_button.clicked.connect(self._copy)
        head.addWidget(self.copy_button)
        folder = IconButton("folder-open", "Open the folder of the log file")
        folder.clicked.connect(
            lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._path.parent)))
        )
        head.addWidget(folder)
        column.addLayout(head)
        self._text = MonoText("Log")
        self._text.setMaximumBlockCount(MAX_LINES)
        self._text.setPlaceholderText("Nothing has been logged.")
        column.addWidget(self._text, 1)
        foot = QHBoxLayout()
        foot.addWidget(ElidedLabel(str(self._path), "caption"), 1)
        foot.addWidget(label("Never holds what you or a model wrote.", "caption"))
        column.addLayout(foot)

    def _follow(self) -> None:
        if self.window().isMinimized() or self._is_reading:
            return
        self._is_reading = True
        spawn(self._read())

    async def _read(self) -> None:
        """A worker reads; one at a time, for the tail remembers how far it came."""
        try:
            lines = await asyncio.to_thread(self._tail.read)
        finally:
            self._is_reading = False
        new = [(self._level_of(line), line) for line in lines]
        self._lines.extend(new)
        shown = [line for level, line in new if self._is_shown(level)]
        if shown:
            self._append(shown[-MAX_LINES:])

    def _level_of(self, line: str) -> str:
        """Of a traceback's lines: that of the record they belong to."""
        match = _RECORD.match(line)
        if match is not None:
            self._level = match[1]
        return self._level

    def _is_shown(self, level: str) -> bool:
        return LEVELS.index(level) >= LEVELS.index(self.filter.value)

    def _append(self, lines: list[str]) -> None:
        """Stays at the end where the reader is at the end, and else where the reader is."""
        bar = self._text.verticalScrollBar()
        place, was_at_end = bar.value(), bar.value() == bar.maximum()
        self._text.appendPlainText("\n".join(lines))
        bar.setValue(bar.maximum() if was_at_end else place)

    def _render(self) -> None:
        self._text.setPlainText(
            "\n".join(line for level, line in self._lines if self._is_shown(level))
        )
        self._text.verticalScrollBar().setValue(self._text.verticalScrollBar().maximum())

    def _copy(self) -> None:
        selected = self._text.textCursor().selection().toPlainText()
        QGuiApplication.clipboard().setText(redact(selected or self.text))
        self.copy_button.setText("Copied")
        QTimer.singleShot(2_000, self, lambda: self.copy_button.setText("Copy"))


def show_log(near: QWidget, path: Path) -> None:
    """Opens the log beside the window that holds a widget; one log a window."""
    window = near.window()
    log = window.findChild(LogWindow) or LogWindow(path, window)
    log.bring_to_front()

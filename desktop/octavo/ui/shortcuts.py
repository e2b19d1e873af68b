"""The window's shortcuts and the small dialog that lists them."""

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from octavo.ui.tokens import SPACE_GROUP, SPACE_PAGE, SPACE_SECTION, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.labels import label


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What the keys do, and the keys; the first are the ones shown."""

    action: str
    keys: tuple[str, ...]


class ShortcutsDialog(QDialog):
    """All shortcuts on one sheet."""

    def __init__(self, shortcuts: Sequence[Shortcut], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Keyboard shortcuts")
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        column.setSpacing(SPACE_GROUP)
        column.addWidget(label("Keyboard shortcuts", "heading"))
        grid = QGridLayout()
        grid.setHorizontalSpacing(SPACE_SECTION)
        grid.setVerticalSpacing(SPACE_WITHIN)
        for row, shortcut in enumerate(shortcuts):
            keys = QKeySequence(shortcut.keys[0])
            text = keys.toString(QKeySequence.SequenceFormat.NativeText)
            grid.addWidget(label(shortcut.action), row, 0)
            grid.addWidget(label(text, "figure"), row, 1, Qt.AlignmentFlag.AlignRight)
        column.addLayout(grid)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        close = Button("Close")
        close.clicked.connect(self.accept)
        buttons.addWidget(close)
        column.addLayout(buttons)
        close.setFocus()

"""The window's shortcuts and the small dialog that lists them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeySequence
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from octavo.ui.tokens import SPACE_GROUP, SPACE_PAGE, SPACE_SECTION, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.labels import label


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What the keys do, and the keys, any of which does it."""

    action: str
    keys: tuple[str, ...]
    shown: int = 1
    """How many of the keys the list names."""

    @property
    def text(self) -> str:
        """The keys as this system writes them."""
        native = QKeySequence.SequenceFormat.NativeText
        return ", ".join(QKeySequence(keys).toString(native) for keys in self.keys[: self.shown])


class ShortcutsDialog(QDialog):
    """All shortcuts on one sheet, in groups."""

    def __init__(
        self, groups: Mapping[str, Sequence[Shortcut]], parent: QWidget | None = None
    ) -> None:
        """Args:
        groups: shortcuts by the place where they work.
        """
        super().__init__(parent)
        self.setWindowTitle("Keyboard shortcuts")
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_PAGE, SPACE_PAGE, SPACE_PAGE, SPACE_PAGE)
        column.setSpacing(SPACE_GROUP)
        column.addWidget(label("Keyboard shortcuts", "heading"))
        columns = QHBoxLayout()
        columns.setSpacing(SPACE_SECTION)
        sides = [QVBoxLayout(), QVBoxLayout()]
        for side in sides:
            side.setSpacing(SPACE_GROUP)
            columns.addLayout(side)
        for number, (place, shortcuts) in enumerate(groups.items()):
            sides[min(number, 1)].addLayout(_group(place, shortcuts))
        for side in sides:
            side.addStretch(1)
        column.addLayout(columns)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        close = Button("Close")
        close.clicked.connect(self.accept)
        buttons.addWidget(close)
        column.addLayout(buttons)
        close.setFocus()


def _group(place: str, shortcuts: Sequence[Shortcut]) -> QGridLayout:
    grid = QGridLayout()
    grid.setHorizontalSpacing(SPACE_PAGE)
    grid.setVerticalSpacing(SPACE_WITHIN)
    grid.addWidget(label(place, "strong"), 0, 0, 1, 2)
    for row, shortcut in enumerate(shortcuts, start=1):
        grid.addWidget(label(shortcut.action), row, 0)
        grid.addWidget(label(shortcut.text, "figure"), row, 1, Qt.AlignmentFlag.AlignRight)
    grid.setColumnStretch(0, 1)
    return grid

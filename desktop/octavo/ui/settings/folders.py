"""Folders in the settings: the one that downloads go to, and further ones to search."""

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.paths import short_path
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button, IconButton
from octavo.ui.widgets.labels import ElidedLabel, label, set_tone


class FolderLine(QWidget):
    """A path and the buttons that belong to it."""

    def __init__(self, path: str, buttons: Sequence[QWidget]) -> None:
        super().__init__()
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACE_WITHIN)
        self._path = ElidedLabel(short_path(path), "figure", mode=Qt.TextElideMode.ElideMiddle)
        row.addWidget(self._path, 1)
        for button in buttons:
            row.addWidget(button)

    def set_path(self, path: str) -> None:
        self._path.setText(short_path(path))


class FolderList(QWidget):
    """Folders that can be taken away and added to."""

    add_asked = Signal()
    remove_asked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(SPACE_TIGHT)
        self._lines: list[QWidget] = []
        self.missing: list[str] = []
        """Folders that were not there when they were shown."""
        self.add_button = Button("Add folder…", icon_name="folder-plus")
        self.add_button.clicked.connect(self.add_asked)
        self._column.addWidget(self.add_button, 0, Qt.AlignmentFlag.AlignLeft)

    def show_folders(self, folders: Sequence[str]) -> None:
        for line in self._lines:
            line.hide()
            line.deleteLater()
        self._lines = []
        self.missing = [folder for folder in folders if not Path(folder).expanduser().is_dir()]
        for index, folder in enumerate(folders):
            remove = IconButton("x", f"Stop searching {folder}")
            remove.clicked.connect(lambda _=False, folder=folder: self.remove_asked.emit(folder))
            is_missing = folder in self.missing
            line = FolderLine(folder, [*([_not_there()] if is_missing else []), remove])
            self._lines.append(line)
            self._column.insertWidget(index, line)


def _not_there() -> QLabel:
    note = label("not there now", "caption")
    set_tone(note, "caution")
    return note

"""Building blocks of the settings page: a group with a heading, and a line of label and control."""

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.ui.tokens import SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.labels import hairline, label


class SettingRow(QWidget):
    """A name and a sentence on the left, the control on the right; below it where it is narrow."""

    def __init__(
        self, name: str, sentence: str, control: QWidget, *, is_below: bool = False
    ) -> None:
        """Args:
        is_below: the control needs the whole width, always.
        """
        super().__init__()
        self._is_below = is_below
        self._box = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._box.setContentsMargins(0, SPACE_INSET, 0, SPACE_INSET)
        self._box.setSpacing(SPACE_WITHIN if is_below else SPACE_GROUP)
        texts = QVBoxLayout()
        texts.setSpacing(2)
        title = label(name)
        title.setBuddy(control)
        texts.addWidget(title)
        self.sentence: QLabel = label(sentence, "caption", wrap=True)
        self.sentence.setVisible(bool(sentence))
        texts.addWidget(self.sentence)
        texts.addStretch(1)
        self._box.addLayout(texts, 1)
        alignment = Qt.AlignmentFlag(0) if is_below else Qt.AlignmentFlag.AlignTop
        self._box.addWidget(control, 0, alignment)
        self.set_wide(True)

    def set_wide(self, is_wide: bool) -> None:
        is_beside = is_wide and not self._is_below
        direction = QBoxLayout.Direction
        self._box.setDirection(direction.LeftToRight if is_beside else direction.TopToBottom)


class SettingGroup(QWidget):
    """A heading and rows with hairlines between them."""

    def __init__(self, title: str, note: str = "") -> None:
        super().__init__()
        self.rows: list[SettingRow] = []
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, SPACE_GROUP)
        self._column.setSpacing(0)
        self._column.addWidget(label(title, "heading"))
        if note:
            self._column.addWidget(label(note, "caption", wrap=True))
        self._column.addSpacing(SPACE_TIGHT)

    def add_row(self, row: SettingRow) -> None:
        self._column.addWidget(hairline())
        self._column.addWidget(row)
        self.rows.append(row)

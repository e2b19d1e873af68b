"""`NoticeBar`: one sentence above the pages about the app as a whole, with what can be done."""

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from octavo.ui.tokens import SPACE_GROUP, SPACE_WITHIN
from octavo.ui.widgets.buttons import Button
from octavo.ui.widgets.cards import IconLabel
from octavo.ui.widgets.labels import hairline, label


class NoticeBar(QWidget):
    """Hidden until there is something to say; stays until the person has answered."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("surface", "well")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        row = QHBoxLayout()
        column.addLayout(row)
        column.addWidget(hairline())
        row.setContentsMargins(SPACE_GROUP, SPACE_WITHIN, SPACE_GROUP, SPACE_WITHIN)
        row.setSpacing(SPACE_WITHIN)
        row.addWidget(IconLabel("triangle-alert", "caution"))
        self._text = label("", wrap=True)
        row.addWidget(self._text, 1)
        self._row = row
        self._buttons: list[Button] = []
        self.hide()

    @property
    def text(self) -> str:
        return self._text.text()

    @property
    def buttons(self) -> tuple[Button, ...]:
        return tuple(self._buttons)

    def show_notice(
        self,
        text: str,
        action_text: str,
        action: Callable[[], object],
        dismiss: Callable[[], object],
    ) -> None:
        """Shows a sentence with an action and a way to put it away for good."""
        for old in self._buttons:
            old.deleteLater()
        self._text.setText(text)
        act, put_away = Button(action_text), Button("Dismiss", variant="quiet")
        act.clicked.connect(action)
        put_away.clicked.connect(dismiss)
        put_away.clicked.connect(self.hide)
        self._buttons = [act, put_away]
        for button in self._buttons:
            self._row.addWidget(button)
        self.show()

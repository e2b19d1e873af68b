"""The repositories that a search has found, under column heads where there is room."""

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QVBoxLayout, QWidget

from octavo.hub.hugging_face import HubModel
from octavo.ui.models.result_row import COLUMNS, ResultRow
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_GROUP, SPACE_WITHIN, scaled
from octavo.ui.widgets.labels import hairline, label


class ResultList(QWidget):
    """Results as buttons; the one that was opened gets the keyboard back."""

    chosen = Signal(str)
    """The name of a repository."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._is_wide = True
        self._chosen: ResultRow | None = None
        self.rows: list[ResultRow] = []
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self._header = QWidget()
        row = QHBoxLayout(self._header)
        row.setContentsMargins(SPACE_WITHIN, 0, SPACE_WITHIN, SPACE_WITHIN)
        row.setSpacing(SPACE_GROUP)
        row.addWidget(label("Repository", "caption"), 1)
        self._titles: list[tuple[QLabel, int]] = []
        for title, width in COLUMNS:
            text = label(title, "caption")
            text.setAlignment(Qt.AlignmentFlag.AlignRight)
            self._titles.append((text, width))
            row.addWidget(text)
        column.addWidget(self._header)
        self._row_column = QVBoxLayout()
        self._row_column.setSpacing(0)
        column.addLayout(self._row_column)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()

    @property
    def models(self) -> list[HubModel]:
        return [row.model for row in self.rows]

    def show_models(self, models: Sequence[HubModel]) -> None:
        """Shows the results of a search instead of those before."""
        while (item := self._row_column.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        self._chosen = None
        self.rows = []
        for model in models:
            row = ResultRow(model)
            row.clicked.connect(lambda _=False, row=row: self._choose(row))
            row.set_layout(is_wide=self._is_wide)
            self.rows.append(row)
            self._row_column.addWidget(hairline())
            self._row_column.addWidget(row)

    def set_wide(self, is_wide: bool) -> None:
        self._is_wide = is_wide
        self._header.setVisible(is_wide)
        for row in self.rows:
            row.set_layout(is_wide=is_wide)

    def focus_chosen(self) -> None:
        """Gives the keyboard back to the result that was opened last."""
        if self._chosen is not None:
            self._chosen.setFocus()

    def _choose(self, row: ResultRow) -> None:
        self._chosen = row
        self.chosen.emit(row.model.repository)

    def _apply_scale(self) -> None:
        scale = ThemeController.current().scale
        for text, width in self._titles:
            text.setFixedWidth(scaled(width, scale))

"""The cards of the monitor page: a figure with its line, and a grid that reflows."""

import math
from collections.abc import Iterable, Sequence

from PySide6.QtCore import QRect, QSize, Qt
from PySide6.QtGui import QPainter, QRegion
from PySide6.QtWidgets import QGridLayout, QVBoxLayout, QWidget

from octavo.monitor.history import DEFAULT_CAPACITY, Series
from octavo.monitor.sampler import DEFAULT_INTERVAL_S
from octavo.ui.monitor.painted_card import PaintedCard
from octavo.ui.tokens import SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN, scaled
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.sparkline import HEIGHT as LINE_HEIGHT
from octavo.ui.widgets.sparkline import Sparkline

SPAN_S = 120.0
HISTORY_CAPACITY = min(DEFAULT_CAPACITY, int(SPAN_S / DEFAULT_INTERVAL_S) + 1)
UNKNOWN = "–"
LEAST_LINE_WIDTH = 60


def rounded_top(highest: float) -> float:
    """1, 2 or 5 times a power of ten: an upper edge that stays while the highest value wanders."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if highest <= factor * power)


class Tile(PaintedCard):
    """One figure: its name, what it is now, what that is part of, and its last two minutes."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        self._name = name
        self.figure = UNKNOWN
        self.detail = ""
        self._line = Sparkline(SPAN_S)
        super().__init__(parent)

    def show_reading(self, figure: str, detail: str) -> None:
        if (figure, detail) == (self.figure, self.detail):
            return
        if figure != self.figure:
            self.figure = figure
            self.update(self._head)
        if detail != self.detail:
            self.detail = detail
            self.update(self._foot)
            self._cut_detail()
        self.setAccessibleName(f"{self._name}: {figure}. {detail}")

    def show_history(self, times_s: Series, values: Series, top: float) -> None:
        """Draws a series that was read at these times, or at the last of them."""
        self._line.show_values(times_s, values, top)
        if self._line.is_due:
            self.update(self._middle)

    def sizeHint(self) -> QSize:
        texts = self.strong.height + self.small.height
        line_height = scaled(LINE_HEIGHT, self.themes.scale)
        return QSize(2 * SPACE_INSET + 160, 2 * SPACE_INSET + texts + line_height + 2 * SPACE_TIGHT)

    def minimumSizeHint(self) -> QSize:
        return QSize(2 * SPACE_INSET + LEAST_LINE_WIDTH, self.sizeHint().height())

    def place(self) -> None:
        """Figure, line and detail lie one below the other."""
        inner = self.rect().adjusted(SPACE_INSET, SPACE_INSET, -SPACE_INSET, -SPACE_INSET)
        self._head = QRect(inner.topLeft(), QSize(inner.width(), self.strong.height))
        self._middle = QRect(self._head)
        self._middle.moveTop(self._head.bottom() + 1 + SPACE_TIGHT)
        self._middle.setHeight(scaled(LINE_HEIGHT, self.themes.scale))
        self._foot = QRect(self._head)
        self._foot.moveTop(self._middle.bottom() + 1 + SPACE_TIGHT)
        self._foot.setHeight(self.small.height)
        self._cut_detail()

    def paint_still(self, painter: QPainter) -> None:
        painter.setFont(self.small.font)
        painter.setPen(self.ink_soft)
        painter.drawText(
            self._head, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), self._name
        )

    def paint_changed(self, painter: QPainter, changed: QRegion) -> None:
        if changed.intersects(self._head):
            painter.setFont(self.strong.font)
            painter.setPen(self.ink)
            right = self._head.right() + 1 - self.strong.width(self.figure)
            painter.drawText(right, self._head.top() + self.strong.ascent, self.figure)
        if changed.intersects(self._middle):
            self._line.paint(painter, self._middle, self.devicePixelRatioF(), self.theme)
        if self.detail and changed.intersects(self._foot):
            painter.setFont(self.small.font)
            painter.setPen(self.ink_soft)
            painter.drawText(self._foot.left(), self._foot.top() + self.small.ascent, self._cut)

    def _cut_detail(self) -> None:
        """The tool tip has the whole where it is cut."""
        self._cut = self.small.cut(self.detail, self._foot.width())
        tool_tip = self.detail if self._cut != self.detail else ""
        if tool_tip != self.toolTip():
            self.setToolTip(tool_tip)


class TileGrid(QWidget):
    """Tiles of equal width in as many columns as there is room for."""

    def __init__(self, tiles: Sequence[QWidget], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._tiles = tuple(tiles)
        self._num_columns = 0
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(SPACE_WITHIN)
        self.set_columns(len(tiles))

    def set_columns(self, num_columns: int) -> None:
        if num_columns == self._num_columns:
            return
        for tile in self._tiles:
            self._grid.removeWidget(tile)
        for column in range(max(num_columns, self._num_columns)):
            self._grid.setColumnStretch(column, 1 if column < num_columns else 0)
        self._num_columns = num_columns
        for number, tile in enumerate(self._tiles):
            self._grid.addWidget(tile, number // num_columns, number % num_columns)


def titled(title: str, widgets: Iterable[QWidget]) -> QWidget:
    """A heading and what belongs under it."""
    section = QWidget()
    column = QVBoxLayout(section)
    column.setContentsMargins(0, 0, 0, SPACE_WITHIN)
    column.setSpacing(SPACE_WITHIN)
    column.addWidget(label(title, "heading"))
    for widget in widgets:
        column.addWidget(widget)
    return section

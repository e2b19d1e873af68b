"""The cards of the monitor page: a figure with its line, and a grid that reflows."""

from collections.abc import Iterable, Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from octavo.monitor.history import DEFAULT_CAPACITY, Series
from octavo.monitor.sampler import DEFAULT_INTERVAL_S
from octavo.ui.tokens import SPACE_INSET, SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.cards import Card
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.ui.widgets.sparkline import Sparkline
from octavo.ui.widgets.stacked_bar import StackedBar, Swatch

SPAN_S = 120.0
HISTORY_CAPACITY = min(DEFAULT_CAPACITY, int(SPAN_S / DEFAULT_INTERVAL_S) + 1)
UNKNOWN = "–"


class Tile(Card):
    """One figure: its name, what it is now, what that is part of, and its last two minutes."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self._name = name
        self.body.setContentsMargins(SPACE_INSET, SPACE_INSET, SPACE_INSET, SPACE_INSET)
        self.body.setSpacing(SPACE_TIGHT)
        first = QHBoxLayout()
        first.setSpacing(SPACE_WITHIN)
        first.addWidget(label(name, "caption"))
        self._figure = label(UNKNOWN, "strong")
        self._figure.setAlignment(Qt.AlignmentFlag.AlignRight)
        first.addWidget(self._figure, 1)
        self.body.addLayout(first)
        self._line = Sparkline(SPAN_S)
        self.body.addWidget(self._line)
        self._detail = ElidedLabel("", "caption")
        self.body.addWidget(self._detail)

    @property
    def figure(self) -> str:
        return self._figure.text()

    @property
    def detail(self) -> str:
        return self._detail.text()

    def show_reading(self, figure: str, detail: str) -> None:
        if (figure, detail) != (self.figure, self.detail):
            self._figure.setText(figure)
            self._detail.setText(detail)
            self.setAccessibleName(f"{self._name}: {figure}. {detail}")

    def show_history(self, times_s: Series, values: Series, top: float) -> None:
        """Draws a series that was read at these times, or at the last of them."""
        ends = [time_s for time_s in times_s if time_s is not None]
        self._line.show_values(ends[len(ends) - len(values) :], tuple(values), top)


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


class BlocksCard(Card):
    """The KV cache as a bar of used, cached and empty blocks, with the numbers below."""

    NAMES = ("Used", "Cached", "Empty")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self.body.setContentsMargins(SPACE_INSET, SPACE_INSET, SPACE_INSET, SPACE_INSET)
        head = QHBoxLayout()
        head.setSpacing(SPACE_WITHIN)
        head.addWidget(label("KV cache", "caption"))
        self._total = label("", "caption")
        self._total.setAlignment(Qt.AlignmentFlag.AlignRight)
        head.addWidget(self._total, 1)
        self.body.addLayout(head)
        series = (0, 1, None)
        self._bar = StackedBar(series)
        self.body.addWidget(self._bar)
        self._figures = [ElidedLabel("", "figure") for _ in self.NAMES]
        cells = []
        for index, name, figure in zip(series, self.NAMES, self._figures, strict=True):
            cells.append(_legend_cell(index, name, figure))
        self.legend = TileGrid(cells)
        self.body.addWidget(self.legend)

    @property
    def figures(self) -> list[str]:
        return [figure.text() for figure in self._figures]

    def show_blocks(self, amounts: Sequence[int], block_size: int) -> None:
        """Args:
        amounts: used, cached and empty blocks.
        block_size: tokens in one.
        """
        self._bar.show_amounts(amounts)
        total = sum(amounts)
        self._total.setText(f"{total:,} blocks of {block_size} tokens" if total else "")
        for figure, amount in zip(self._figures, amounts, strict=True):
            figure.setText(f"{amount:,} blocks" if total else UNKNOWN)
        parts = [f"{n.lower()} {a:,}" for n, a in zip(self.NAMES, amounts, strict=True)]
        self.setAccessibleName(f"KV cache in blocks: {', '.join(parts)}")


def _legend_cell(series: int | None, name: str, figure: ElidedLabel) -> QWidget:
    cell = QWidget()
    row = QHBoxLayout(cell)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACE_WITHIN)
    row.addWidget(Swatch(series))
    row.addWidget(label(name, "caption"))
    row.addWidget(figure, 1)
    return cell


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

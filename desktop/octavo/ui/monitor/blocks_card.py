"""The KV cache of the loaded model: a bar of used, cached and empty blocks, with the numbers."""

from collections.abc import Sequence

from PySide6.QtCore import QPoint, QRect, QSize
from PySide6.QtGui import QPainter, QRegion
from PySide6.QtWidgets import QWidget

from octavo.ui.fonts import mono_font
from octavo.ui.monitor.painted_card import PaintedCard, Type
from octavo.ui.tokens import FONT_SMALL, SPACE_INSET, SPACE_WITHIN, scaled
from octavo.ui.widgets.stacked_bar import BAR_HEIGHT, SWATCH_PIXELS, paint_bar, paint_swatch

NAMES = ("Used", "Cached", "Empty")
SERIES = (0, 1, None)
UNKNOWN = "–"


class BlocksCard(PaintedCard):
    """Numbers stand beside the squares that name their part of the bar."""

    def __init__(self, parent: QWidget | None = None) -> None:
        self._num_columns = len(NAMES)
        self._amounts: tuple[int, ...] = (0,) * len(NAMES)
        self._block_size = 0
        self._total = ""
        self.figures = [UNKNOWN] * len(NAMES)
        super().__init__(parent)
        self._take_mono()
        self.themes.changed.connect(self._take_mono)

    def set_columns(self, num_columns: int) -> None:
        if num_columns != self._num_columns:
            self._num_columns = num_columns
            self.place_anew()
            self.updateGeometry()

    def show_blocks(self, amounts: Sequence[int], block_size: int) -> None:
        """Args:
        amounts: used, cached and empty blocks.
        block_size: tokens in one.
        """
        if (tuple(amounts), block_size) == (self._amounts, self._block_size):
            return
        self._amounts, self._block_size = tuple(amounts), block_size
        total = sum(amounts)
        total_text = f"{total:,} blocks of {block_size} tokens" if total else ""
        if total_text != self._total:
            self._total = total_text
            self.place_anew()
        figures = [f"{amount:,} blocks" if total else UNKNOWN for amount in amounts]
        for index, (before, figure) in enumerate(zip(self.figures, figures, strict=True)):
            if figure != before:
                self.update(self._figure_places[index])
        self.figures = figures
        self.update(self._bar)
        parts = [f"{n.lower()} {a:,}" for n, a in zip(NAMES, amounts, strict=True)]
        self.setAccessibleName(f"KV cache in blocks: {', '.join(parts)}")

    def sizeHint(self) -> QSize:
        num_rows = -(-len(NAMES) // self._num_columns)
        rows = num_rows * self.small.height + (num_rows - 1) * SPACE_WITHIN
        bar = scaled(BAR_HEIGHT, self.themes.scale)
        return QSize(
            2 * SPACE_INSET + 240,
            2 * SPACE_INSET + self.small.height + bar + rows + 2 * SPACE_WITHIN,
        )

    def minimumSizeHint(self) -> QSize:
        return QSize(2 * SPACE_INSET + 120, self.sizeHint().height())

    def place(self) -> None:
        inner = self.rect().adjusted(SPACE_INSET, SPACE_INSET, -SPACE_INSET, -SPACE_INSET)
        self._head = QRect(inner.topLeft(), QSize(inner.width(), self.small.height))
        self._bar = QRect(self._head)
        self._bar.moveTop(self._head.bottom() + 1 + SPACE_WITHIN)
        self._bar.setHeight(scaled(BAR_HEIGHT, self.themes.scale))
        top = self._bar.bottom() + 1 + SPACE_WITHIN
        width = (inner.width() - (self._num_columns - 1) * SPACE_WITHIN) // self._num_columns
        swatch = scaled(SWATCH_PIXELS, self.themes.scale)
        self._cells: list[QRect] = []
        self._figure_places: list[QRect] = []
        for index, name in enumerate(NAMES):
            row, column = divmod(index, self._num_columns)
            left = inner.left() + column * (width + SPACE_WITHIN)
            cell_top = top + row * (self.small.height + SPACE_WITHIN)
            cell = QRect(left, cell_top, width, self.small.height)
            self._cells.append(cell)
            before_figure = swatch + SPACE_WITHIN + self.small.width(name) + SPACE_WITHIN
            self._figure_places.append(cell.adjusted(before_figure, 0, 0, 0))

    def paint_still(self, painter: QPainter) -> None:
        painter.setFont(self.small.font)
        painter.setPen(self.ink_soft)
        baseline = self._head.top() + self.small.ascent
        painter.drawText(self._head.left(), baseline, "KV cache")
        room = self._head.width() - self.small.width("KV cache") - SPACE_WITHIN
        total = self.small.cut(self._total, room)
        painter.drawText(self._head.right() + 1 - self.small.width(total), baseline, total)
        pixels = scaled(SWATCH_PIXELS, self.themes.scale)
        for series, name, cell in zip(SERIES, NAMES, self._cells, strict=True):
            painter.setPen(self.ink_soft)
            painter.drawText(
                cell.left() + pixels + SPACE_WITHIN, cell.top() + self.small.ascent, name
            )
            corner = QPoint(cell.left(), cell.top() + (cell.height() - pixels) // 2)
            paint_swatch(painter, QRect(corner, QSize(pixels, pixels)), series, self.theme)

    def paint_changed(self, painter: QPainter, changed: QRegion) -> None:
        painter.setFont(self._mono.font)
        painter.setPen(self.ink_soft)
        for figure, place in zip(self.figures, self._figure_places, strict=True):
            if changed.intersects(place):
                baseline = place.top() + self.small.ascent
                painter.drawText(place.left(), baseline, self._mono.cut(figure, place.width()))
        if changed.intersects(self._bar):
            paint_bar(painter, self._bar, SERIES, self._amounts, self.theme)

    def _take_mono(self) -> None:
        self._mono = Type(mono_font(self.themes.scale, FONT_SMALL + 1))

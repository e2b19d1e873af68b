"""The cards of the monitor page: a figure with its line, and a grid that reflows."""

import math
from collections.abc import Iterable, Sequence

from PySide6.QtCore import QEvent, QRect, QRectF, QSize, Qt
from PySide6.QtGui import (
    QColor,
    QFont,
    QFontMetrics,
    QPainter,
    QPaintEvent,
    QPen,
    QPixmap,
    QResizeEvent,
)
from PySide6.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from octavo.monitor.history import DEFAULT_CAPACITY, Series
from octavo.monitor.sampler import DEFAULT_INTERVAL_S
from octavo.ui.fonts import mono_font, ui_font
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import (
    FONT_SMALL,
    RADIUS_CARD,
    SPACE_INSET,
    SPACE_TIGHT,
    SPACE_WITHIN,
    Theme,
    scaled,
)
from octavo.ui.widgets.cards import Card
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.sparkline import HEIGHT as LINE_HEIGHT
from octavo.ui.widgets.sparkline import Sparkline
from octavo.ui.widgets.stacked_bar import StackedBar, Swatch

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


class Tile(QWidget):
    """One figure: its name, what it is now, what that is part of, and its last two minutes.

    It paints itself in one go: labels would have the page laid out anew with each reading, and
    every part is one more thing to paint, twice a second and four times a card.
    """

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._name = name
        self.figure = UNKNOWN
        self.detail = ""
        self._line = Sparkline(SPAN_S)
        self._ground: QPixmap | None = None
        self._themes = ThemeController.current()
        self.setAttribute(Qt.WidgetAttribute.WA_OpaquePaintEvent)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._themes.changed.connect(self._apply_theme)
        self._apply_theme()

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
        line_height = scaled(LINE_HEIGHT, ThemeController.current().scale)
        texts = self._strong.height() + self._small.height()
        return QSize(2 * SPACE_INSET + 160, 2 * SPACE_INSET + texts + line_height + 2 * SPACE_TIGHT)

    def minimumSizeHint(self) -> QSize:
        return QSize(2 * SPACE_INSET + LEAST_LINE_WIDTH, self.sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._place()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() is QEvent.Type.DevicePixelRatioChange:
            self._ground = None

    def paintEvent(self, event: QPaintEvent) -> None:
        """Paints the parts that have changed, each of which is an area of its own."""
        theme = self._themes.theme
        ratio = self.devicePixelRatioF()
        if self._ground is None:
            self._ground = self._draw_ground(theme, ratio)
        painter = QPainter(self)
        painter.drawPixmap(0, 0, self._ground)  # clipped to what has changed
        changed = event.region()
        if changed.intersects(self._head):
            painter.setFont(self._strong_font)
            painter.setPen(QColor(theme.ink))
            right = self._head.right() + 1 - self._strong.horizontalAdvance(self.figure)
            painter.drawText(right, self._head.top() + self._strong.ascent(), self.figure)
        if changed.intersects(self._middle):
            self._line.paint(painter, self._middle, ratio, theme)
        if self.detail and changed.intersects(self._foot):
            painter.setFont(self._small_font)
            painter.setPen(QColor(theme.ink_soft))
            foot = self._foot.top() + self._small.ascent()
            painter.drawText(self._foot.left(), foot, self._cut)

    def _draw_ground(self, theme: Theme, ratio: float) -> QPixmap:
        """What stays: the card's frame and the name."""
        ground = QPixmap(self.size() * ratio)
        ground.setDevicePixelRatio(ratio)
        ground.fill(QColor(theme.paper))
        painter = QPainter(ground)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor(theme.rule), 1))
        painter.setBrush(QColor(theme.sheet))
        frame = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        painter.drawRoundedRect(frame, RADIUS_CARD, RADIUS_CARD)
        painter.setFont(self._small_font)
        painter.setPen(QColor(theme.ink_soft))
        painter.drawText(
            self._head, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), self._name
        )
        painter.end()
        return ground

    def _place(self) -> None:
        """Where the parts lie: figure, line and detail, one below the other."""
        inner = self.rect().adjusted(SPACE_INSET, SPACE_INSET, -SPACE_INSET, -SPACE_INSET)
        self._head = QRect(inner.topLeft(), QSize(inner.width(), self._strong.height()))
        self._middle = QRect(self._head)
        self._middle.moveTop(self._head.bottom() + 1 + SPACE_TIGHT)
        self._middle.setHeight(scaled(LINE_HEIGHT, self._themes.scale))
        self._foot = QRect(self._head)
        self._foot.moveTop(self._middle.bottom() + 1 + SPACE_TIGHT)
        self._foot.setHeight(self._small.height())
        self._ground = None
        self._cut_detail()
        self.update()

    def _cut_detail(self) -> None:
        """The tool tip has the whole where it is cut."""
        elide = Qt.TextElideMode.ElideRight
        self._cut = self._small.elidedText(self.detail, elide, self._foot.width())
        tool_tip = self.detail if self._cut != self.detail else ""
        if tool_tip != self.toolTip():
            self.setToolTip(tool_tip)

    def _apply_theme(self) -> None:
        scale = ThemeController.current().scale
        self._strong_font = ui_font(scale)
        self._strong_font.setWeight(QFont.Weight.DemiBold)
        self._small_font = ui_font(scale, FONT_SMALL)
        self._strong = QFontMetrics(self._strong_font)
        self._small = QFontMetrics(self._small_font)
        self._place()
        self.updateGeometry()


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
        self._shown: tuple[tuple[int, ...], int] | None = None
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
        self._figures = [_Figure() for _ in self.NAMES]
        cells = []
        for index, name, figure in zip(series, self.NAMES, self._figures, strict=True):
            cells.append(_legend_cell(index, name, figure))
        self.legend = TileGrid(cells)
        self.body.addWidget(self.legend)

    @property
    def figures(self) -> list[str]:
        return [figure.text for figure in self._figures]

    def show_blocks(self, amounts: Sequence[int], block_size: int) -> None:
        """Args:
        amounts: used, cached and empty blocks.
        block_size: tokens in one.
        """
        shown = (tuple(amounts), block_size)
        if shown == self._shown:
            return
        self._shown = shown
        self._bar.show_amounts(amounts)
        total = sum(amounts)
        self._total.setText(f"{total:,} blocks of {block_size} tokens" if total else "")
        for figure, amount in zip(self._figures, amounts, strict=True):
            figure.show_text(f"{amount:,} blocks" if total else UNKNOWN)
        parts = [f"{n.lower()} {a:,}" for n, a in zip(self.NAMES, amounts, strict=True)]
        self.setAccessibleName(f"KV cache in blocks: {', '.join(parts)}")


class _Figure(QWidget):
    """A text that changes all the time: unlike a label, it does not have the page laid out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        ThemeController.current().changed.connect(self._apply_theme)
        self._apply_theme()

    def show_text(self, text: str) -> None:
        if text != self.text:
            self.text = text
            self.update()

    def sizeHint(self) -> QSize:
        return QSize(self._metrics.averageCharWidth() * 4, self._metrics.height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setFont(self._font)
        painter.setPen(QColor(ThemeController.current().theme.ink_soft))
        flags = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        text = self._metrics.elidedText(self.text, Qt.TextElideMode.ElideRight, self.width())
        painter.drawText(self.rect(), int(flags), text)

    def _apply_theme(self) -> None:
        self._font = mono_font(ThemeController.current().scale, FONT_SMALL + 1)
        self._metrics = QFontMetrics(self._font)
        self.updateGeometry()
        self.update()


def _legend_cell(series: int | None, name: str, figure: QWidget) -> QWidget:
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

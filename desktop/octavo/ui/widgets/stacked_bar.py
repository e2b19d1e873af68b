"""A thin bar of parts that make up a whole, and the little squares that name them in a legend."""

from collections.abc import Sequence

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPainterPath, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from octavo.ui.theme import ThemeController
from octavo.ui.tokens import Theme, scaled

BAR_HEIGHT = 8
SWATCH_PIXELS = 9
RADIUS = 2


def series_color(theme: Theme, index: int | None) -> QColor:
    """The colour of a data series; None is what is left over."""
    return QColor(theme.rule if index is None else theme.series[index])


class StackedBar(QWidget):
    """Parts side by side, with one pixel between them; the numbers stand in words beside it."""

    def __init__(self, series: Sequence[int | None], parent: QWidget | None = None) -> None:
        """Args:
        series: which colour of the theme each part has.
        """
        super().__init__(parent)
        self._series = tuple(series)
        self._amounts: tuple[float, ...] = (0.0,) * len(self._series)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        ThemeController.current().changed.connect(self._apply_theme)

    def show_amounts(self, amounts: Sequence[float]) -> None:
        if tuple(amounts) != self._amounts:
            self._amounts = tuple(amounts)
            self.update()

    def sizeHint(self) -> QSize:
        return QSize(160, scaled(BAR_HEIGHT, ThemeController.current().scale))

    def minimumSizeHint(self) -> QSize:
        return QSize(60, self.sizeHint().height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        theme = ThemeController.current().theme
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        outline = QPainterPath()
        outline.addRoundedRect(QRectF(self.rect()), RADIUS, RADIUS)
        painter.setClipPath(outline)
        painter.fillRect(self.rect(), series_color(theme, None))
        whole = sum(self._amounts)
        left = 0.0
        for index, amount in zip(self._series, self._amounts, strict=True):
            if whole <= 0 or amount <= 0:
                continue
            # A part that is there is seen, however small.
            width = max(2.0, self.width() * amount / whole)
            painter.fillRect(QRectF(left, 0, width - 1, self.height()), series_color(theme, index))
            left += width

    def _apply_theme(self) -> None:
        self.updateGeometry()
        self.update()


class Swatch(QWidget):
    """A little square in the colour of one part."""

    def __init__(self, series: int | None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._series = series
        ThemeController.current().changed.connect(self._apply_theme)
        self._apply_theme()

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(series_color(ThemeController.current().theme, self._series))
        painter.drawRoundedRect(QRectF(self.rect()), RADIUS, RADIUS)

    def _apply_theme(self) -> None:
        pixels = scaled(SWATCH_PIXELS, ThemeController.current().scale)
        self.setFixedSize(pixels, pixels)
        self.update()

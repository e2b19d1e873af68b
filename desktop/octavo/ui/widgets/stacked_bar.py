"""A thin bar of parts that make up a whole, and the little squares that name them in a legend.

No widgets: whoever owns them paints them, and stands the numbers in words beside them.
"""

from collections.abc import Sequence

from PySide6.QtCore import QRect, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPainterPath

from octavo.ui.tokens import Theme

BAR_HEIGHT = 8
SWATCH_PIXELS = 9
RADIUS = 2


def series_color(theme: Theme, index: int | None) -> QColor:
    """The colour of a data series; None is what is left over."""
    return QColor(theme.rule if index is None else theme.series[index])


def paint_bar(
    painter: QPainter,
    area: QRect,
    series: Sequence[int | None],
    amounts: Sequence[float],
    theme: Theme,
) -> None:
    """Paints parts side by side, with one pixel between them.

    Args:
        series: which colour of the theme each part has.
        amounts: how much each part is.
    """
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    outline = QPainterPath()
    outline.addRoundedRect(QRectF(area), RADIUS, RADIUS)
    painter.setClipPath(outline, Qt.ClipOperation.IntersectClip)
    painter.fillRect(area, series_color(theme, None))
    whole = sum(amounts)
    left = float(area.left())
    for index, amount in zip(series, amounts, strict=True):
        if whole <= 0 or amount <= 0:
            continue
        # A part that is there is seen, however small.
        width = max(2.0, area.width() * amount / whole)
        part = QRectF(left, area.top(), width - 1, area.height())
        painter.fillRect(part, series_color(theme, index))
        left += width
    painter.restore()


def paint_swatch(painter: QPainter, area: QRect, series: int | None, theme: Theme) -> None:
    """Paints the little square in the colour of one part."""
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(series_color(theme, series))
    painter.drawRoundedRect(QRectF(area), RADIUS, RADIUS)
    painter.restore()

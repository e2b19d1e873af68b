"""A line of the last minutes without axes: what a figure did before it became what it is."""

from collections.abc import Iterator, Sequence

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QLinearGradient, QPainter, QPainterPath, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from octavo.ui.theme import ThemeController
from octavo.ui.tokens import scaled

HEIGHT = 40
MINIMUM_WIDTH = 60
LINE_WIDTH = 1.5
FILL_ALPHA = 0.28
GAP_S = 2.0
"""Readings further apart are not joined: nobody looked in between."""


class Sparkline(QWidget):
    """Draws values over time, the newest at the right edge; None and pauses leave gaps."""

    def __init__(self, span_s: float, parent: QWidget | None = None) -> None:
        """Args:
        span_s: seconds from the left edge to the right.
        """
        super().__init__(parent)
        self._span_s = span_s
        self._times_s: tuple[float, ...] = ()
        self._values: tuple[float | None, ...] = ()
        self._top = 1.0
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        ThemeController.current().changed.connect(self._apply_theme)

    def show_values(
        self, times_s: Sequence[float], values: Sequence[float | None], top: float
    ) -> None:
        """Shows a history.

        Args:
            times_s: when each value was read, rising; as many as there are values.
            values: what was read; None where nothing could be.
            top: the value at the upper edge; higher ones are drawn there.
        """
        assert len(times_s) == len(values)
        self._times_s = tuple(times_s)
        self._values = tuple(values)
        self._top = max(top, 1e-9)
        self.update()

    def stretches(self) -> Iterator[list[QPointF]]:
        """The points of each unbroken piece of the line, in the widget's pixels."""
        if not self._times_s:
            return
        newest_s = self._times_s[-1]
        room = self.height() - 2 * LINE_WIDTH
        points: list[QPointF] = []
        before_s = None
        for time_s, value in zip(self._times_s, self._values, strict=True):
            is_joined = before_s is not None and time_s - before_s <= GAP_S
            before_s = time_s
            if points and (value is None or not is_joined):
                yield points
                points = []
            if value is None or newest_s - time_s > self._span_s:
                continue
            x = self.width() * (1 - (newest_s - time_s) / self._span_s)
            share = min(1.0, max(0.0, value / self._top))
            points.append(QPointF(x, LINE_WIDTH + room * (1 - share)))
        if points:
            yield points

    def sizeHint(self) -> QSize:
        return QSize(160, scaled(HEIGHT, ThemeController.current().scale))

    def minimumSizeHint(self) -> QSize:
        return QSize(MINIMUM_WIDTH, self.sizeHint().height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        theme = ThemeController.current().theme
        color = QColor(theme.series[0])
        fill = QLinearGradient(0, 0, 0, self.height())
        for position, alpha in ((0.0, FILL_ALPHA), (1.0, 0.0)):
            shade = QColor(color)
            shade.setAlphaF(alpha)
            fill.setColorAt(position, shade)
        painter = QPainter(self)
        foot = self.height() - 0.5
        painter.fillRect(QRectF(0, foot - 0.5, self.width(), 1), QColor(theme.rule))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = QPen(color, LINE_WIDTH)
        pen.setJoinStyle(Qt.PenJoinStyle.RoundJoin)
        for points in self.stretches():
            line = QPainterPath(points[0])
            for point in points[1:]:
                line.lineTo(point)
            area = QPainterPath(line)
            area.lineTo(points[-1].x(), foot)
            area.lineTo(points[0].x(), foot)
            painter.fillPath(area, fill)
            painter.strokePath(line, pen)

    def _apply_theme(self) -> None:
        self.updateGeometry()
        self.update()

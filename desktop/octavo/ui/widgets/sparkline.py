"""A line of the last minutes without axes: what a figure did before it became what it is."""

import math
from collections.abc import Sequence
from typing import Protocol

from PySide6.QtCore import QPointF, QRect, QSize, Qt
from PySide6.QtGui import QColor, QLinearGradient, QPainter, QPainterPath, QPen, QPixmap

from octavo.ui.tokens import Theme

HEIGHT = 40
"""In pixels at 100 %."""
LINE_WIDTH = 1.5
FILL_ALPHA = 0.28
REDRAW_S = 0.9
"""A picture that is younger is usually not moved on: that would be a pixel or so."""
NUM_CORNERS = 2
"""Readings before the newest piece that are drawn again, so that the line's corners stay."""
GAP_S = 2.0
"""Readings further apart are not joined: nobody looked in between."""


class History(Protocol):
    """Numbers in the order they were read; a long one is looked at from its end."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> float | None: ...


class Sparkline:
    """Draws values over time, the newest at the right edge; None and pauses leave gaps.

    No widget: whoever owns it paints it, on a sheet. What was drawn before is moved to the left,
    and only the newest piece is drawn, because a whole line takes a millisecond.
    """

    def __init__(self, span_s: float) -> None:
        """Args:
        span_s: seconds from the left edge to the right.
        """
        self._span_s = span_s
        self._times_s: History = ()
        self._values: History = ()
        self._top = 1.0
        self._drawn: _Drawing | None = None
        self.num_whole_drawings = 0
        """How often nothing of an earlier picture could be used."""

    def show_values(self, times_s: History, values: History, top: float) -> None:
        """Takes over a history; it may go on growing and is looked at when it is painted.

        Args:
            times_s: when each value was read, rising; the last one belongs to the last value.
            values: what was read; None where nothing could be.
            top: the value at the upper edge; higher ones are drawn there.
        """
        assert len(times_s) >= len(values)
        self._times_s = times_s
        self._values = values
        self._top = max(top, 1e-9)

    def paint(self, painter: QPainter, area: QRect, ratio: float, theme: Theme) -> None:
        """Draws into an area of a widget.

        Args:
            ratio: device pixels in a pixel of the widget.
        """
        size = QSize(math.ceil(area.width() * ratio), math.ceil(area.height() * ratio))
        if size.isEmpty():
            return
        before, self._drawn = self._drawn, None
        if before is None or not before.is_of(self._values, size, self._top, theme):
            before = _Drawing(self._values, size, self._top, theme, LINE_WIDTH * ratio)
        newest_s = self._newest_s()
        if newest_s is not None and before.is_behind(newest_s):
            self._advance(before, newest_s)
        self._drawn = before
        painter.drawPixmap(area, before.pixmap)

    @property
    def is_due(self) -> bool:
        """Whether painting it now would show something new."""
        newest_s = self._newest_s()
        return newest_s is not None and (self._drawn is None or self._drawn.is_behind(newest_s))

    def stretches(self, size: QSize, line_width: float = LINE_WIDTH) -> list[list[QPointF]]:
        """The points of each unbroken piece of the line, in a picture of that size."""
        newest_s = self._newest_s()
        if newest_s is None:
            return []
        per_second = size.width() / self._span_s
        return self._find_stretches(
            size, line_width, newest_s - self._span_s, newest_s * per_second - size.width()
        )

    def _newest_s(self) -> float | None:
        return self._times_s[-1] if len(self._values) else None

    def _advance(self, drawing: "_Drawing", newest_s: float) -> None:
        """Moves the picture on to the newest reading.

        Places are counted in whole pixels since time 0, so that what is moved stays exact.
        """
        width = drawing.pixmap.width()
        per_second = width / self._span_s
        right_edge = math.ceil(newest_s * per_second)
        left_edge = right_edge - width
        shift = right_edge - drawing.right_edge
        clear_from = 0
        if drawing.newest_s is not None and 0 <= shift < width:
            margin = math.ceil(drawing.line_width) + 1
            clear_from = math.floor(drawing.newest_s * per_second) - left_edge - margin
        if clear_from > 0:
            drawing.scroll(shift)
        else:
            clear_from = 0
            self.num_whole_drawings += 1
        from_s = newest_s - self._span_s - GAP_S  # so that the line comes in at the left edge
        if clear_from:
            from_s = max(from_s, self._before_s(drawing.newest_s or 0.0))
        stretches = self._find_stretches(
            drawing.pixmap.size(), drawing.line_width, from_s, left_edge
        )
        drawing.draw(stretches, clear_from)
        drawing.newest_s, drawing.right_edge = newest_s, right_edge

    def _before_s(self, time_s: float) -> float:
        """When the last reading but `NUM_CORNERS` before a time was read."""
        num_before = 0
        before_s = time_s
        for index in range(-1, -len(self._values) - 1, -1):
            read_s = self._times_s[index]
            if read_s is not None and read_s <= time_s:
                before_s = read_s
                num_before += 1
                if num_before > NUM_CORNERS:
                    break
        return before_s

    def _find_stretches(
        self, size: QSize, line_width: float, from_s: float, left_edge: float
    ) -> list[list[QPointF]]:
        """The pieces since a time, oldest first; walks back from the newest reading."""
        per_second = size.width() / self._span_s
        room = size.height() - 2 * line_width
        found: list[list[QPointF]] = []
        points: list[QPointF] = []
        later_s: float | None = None
        for index in range(-1, -len(self._values) - 1, -1):
            time_s, value = self._times_s[index], self._values[index]
            if time_s is None or time_s < from_s:
                break
            is_joined = later_s is not None and later_s - time_s <= GAP_S
            later_s = time_s
            if points and (value is None or not is_joined):
                found.append(points[::-1])
                points = []
            if value is None:
                continue
            share = min(1.0, max(0.0, value / self._top))
            y = line_width + room * (1 - share)
            points.append(QPointF(time_s * per_second - left_edge, y))
        if points:
            found.append(points[::-1])
        return found[::-1]


class _Drawing:
    """A picture of the line, and what it shows."""

    def __init__(
        self, values: History, size: QSize, top: float, theme: Theme, line_width: float
    ) -> None:
        self.pixmap = QPixmap(size)
        # A ground of its own: what is opaque is copied, and need not be mixed pixel by pixel.
        self._ground = QColor(theme.sheet)
        self._rule = QColor(theme.rule)
        self.pixmap.fill(self._ground)
        self.line_width = line_width
        self.newest_s: float | None = None
        self.right_edge = 0
        self._values = values
        self._top = top
        self._theme = theme
        self._pen = QPen(QColor(theme.series[0]), line_width)
        self._pen.setJoinStyle(Qt.PenJoinStyle.RoundJoin)
        self._fill = QLinearGradient(0, 0, 0, size.height())
        for position, alpha in ((0.0, FILL_ALPHA), (1.0, 0.0)):
            shade = QColor(theme.series[0])
            shade.setAlphaF(alpha)
            self._fill.setColorAt(position, shade)

    def is_of(self, values: History, size: QSize, top: float, theme: Theme) -> bool:
        """Whether it can go on being the picture of this."""
        return (
            values is self._values
            and size == self.pixmap.size()
            and top == self._top
            and theme is self._theme
        )

    def is_behind(self, newest_s: float) -> bool:
        return self.newest_s is None or not 0 <= newest_s - self.newest_s < REDRAW_S

    def scroll(self, num_pixels: int) -> None:
        if num_pixels:
            self.pixmap.scroll(-num_pixels, 0, self.pixmap.rect())

    def draw(self, stretches: Sequence[Sequence[QPointF]], clear_from: int) -> None:
        """Draws what lies right of a column anew."""
        size = self.pixmap.size()
        right = QRect(clear_from, 0, size.width() - clear_from, size.height())
        foot = size.height() - 0.5
        painter = QPainter(self.pixmap)
        painter.fillRect(right, self._ground)
        painter.fillRect(clear_from, size.height() - 1, right.width(), 1, self._rule)
        painter.setClipRect(right)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for points in stretches:
            line = QPainterPath(points[0])
            for point in points[1:]:
                line.lineTo(point)
            area = QPainterPath(line)
            area.lineTo(points[-1].x(), foot)
            area.lineTo(points[0].x(), foot)
            painter.fillPath(area, self._fill)
            painter.strokePath(line, self._pen)
        painter.end()

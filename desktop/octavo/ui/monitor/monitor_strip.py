"""The monitor strip: memory, load and rate in one quiet line at the window's lower edge."""

from collections.abc import Callable, Sequence

from PySide6.QtCore import QEvent, QRect, QSize, Qt, QTimer
from PySide6.QtGui import (
    QColor,
    QFont,
    QFontMetrics,
    QHelpEvent,
    QHideEvent,
    QPainter,
    QPaintEvent,
    QResizeEvent,
    QShowEvent,
)
from PySide6.QtWidgets import QAbstractButton, QSizePolicy, QToolTip, QWidget

from octavo.core import Core
from octavo.engine.request import EngineStats
from octavo.monitor.engine_rate import EngineRate, EngineRateMeter
from octavo.monitor.readings import MachineReading
from octavo.ui.fonts import ui_font
from octavo.ui.monitor.strip_parts import StripPart, editions
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import FONT_SMALL, SPACE_GROUP, SPACE_INSET, SPACE_TIGHT, scaled

HEIGHT = 26
LISTEN_AFTER_MS = 100
"""Who waits for the window's first paint comes first."""
INTERVAL_S = 1.0
LEAST_WIDTH = 120
TOOL_TIP_REACH = SPACE_GROUP // 2
"""How far beside a figure its tool tip still opens."""


class MonitorStrip(QAbstractButton):
    """A click asks for the monitor page (`clicked`). Unseen, it reads nothing and costs nothing."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._meter = EngineRateMeter()
        self._stop_listening: Callable[[], None] | None = None
        self._is_painted = False
        self._latest: tuple[MachineReading, EngineStats, EngineRate] | None = None
        self.parts: tuple[StripPart, ...] = ()
        """What is shown now, from left to right."""
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAccessibleName("Monitor")
        self.destroyed.connect(lambda _=None: self._stop())
        ThemeController.current().changed.connect(self._apply_theme)
        self._apply_theme()

    @property
    def is_listening(self) -> bool:
        return self._stop_listening is not None

    def sizeHint(self) -> QSize:
        return QSize(LEAST_WIDTH, scaled(HEIGHT, ThemeController.current().scale))

    def minimumSizeHint(self) -> QSize:
        return self.sizeHint()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._is_painted:
            self._listen()

    def hideEvent(self, event: QHideEvent) -> None:
        """Qt sends it for a minimised window, too."""
        self._stop()
        super().hideEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._choose_edition()

    def event(self, event: QEvent) -> bool:
        if event.type() is QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            part = self._part_at(event.pos().x())
            QToolTip.showText(event.globalPos(), "" if part is None else part.exact, self)
            return True
        return super().event(event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        if not self._is_painted:
            # What reads the machine is loaded after the window's first paint, not before it.
            self._is_painted = True
            QTimer.singleShot(LISTEN_AFTER_MS, self, self._listen)
        theme = ThemeController.current().theme
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor(theme.hover if self.underMouse() else theme.well))
        painter.fillRect(0, 0, self.width(), 1, QColor(theme.rule))
        painter.setFont(self._font)
        alignment = int(Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft)
        soft, ink = QColor(theme.ink_soft), QColor(theme.ink)
        for part, (left, width) in zip(self.parts, self._places(self.parts), strict=True):
            name_width = self._name_width(part)
            if part.name:
                painter.setPen(soft)
                painter.drawText(QRect(left, 1, width, self.height() - 1), alignment, part.name)
            painter.setPen(ink)
            figure_area = QRect(left + name_width, 1, width - name_width, self.height() - 1)
            painter.drawText(figure_area, alignment, part.figure)
        if self.hasFocus():
            painter.setPen(QColor(theme.accent))
            painter.drawRect(self.rect().adjusted(1, 1, -2, -2))

    def _listen(self) -> None:
        is_seen = self.isVisible() and not self.window().isMinimized()
        if self._stop_listening is None and is_seen:
            listen = self._core.sampler.listen
            self._stop_listening = listen(self._show_reading, interval_s=INTERVAL_S)

    def _stop(self) -> None:
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _show_reading(self, reading: MachineReading) -> None:
        stats = self._core.host.stats
        self._latest = (reading, stats, self._meter.measure(reading.time_s, stats))
        self._choose_edition()

    def _choose_edition(self) -> None:
        if self._latest is None:
            return
        parts: tuple[StripPart, ...] = ()
        for parts in editions(*self._latest):
            left, width = self._places(parts)[-1]
            if left + width <= self.width() - SPACE_INSET:
                break
        if parts == self.parts:
            return
        is_news = [(one.name, one.figure) for one in parts] != [
            (one.name, one.figure) for one in self.parts
        ]
        self.parts = parts
        # A screen reader that stands here is told; it is not called at every reading.
        self.setAccessibleDescription(" ".join(part.exact for part in parts))
        if is_news:
            self.update()

    def _places(self, parts: Sequence[StripPart]) -> list[tuple[int, int]]:
        """Left edge and width of each part."""
        places = []
        left = SPACE_INSET
        for part in parts:
            width = self._name_width(part) + self._metrics.horizontalAdvance(part.figure)
            places.append((left, width))
            left += width + SPACE_GROUP
        return places

    def _name_width(self, part: StripPart) -> int:
        return self._metrics.horizontalAdvance(part.name) + SPACE_TIGHT if part.name else 0

    def _part_at(self, x: int) -> StripPart | None:
        for part, (left, width) in zip(self.parts, self._places(self.parts), strict=True):
            if left - TOOL_TIP_REACH <= x < left + width + TOOL_TIP_REACH:
                return part
        return None

    def _apply_theme(self) -> None:
        scale = ThemeController.current().scale
        self._font = QFont(ui_font(scale))
        self._font.setPixelSize(scaled(FONT_SMALL, scale))
        self._metrics = QFontMetrics(self._font)
        self.setFixedHeight(scaled(HEIGHT, scale))
        self._choose_edition()
        self.update()

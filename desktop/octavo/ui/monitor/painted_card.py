"""`PaintedCard`: a card that paints itself, and of that only what has changed.

Labels would have the page laid out anew with each reading, and every widget without a ground of its
own has all below it painted as well; twice a second, for ten cards and more, that is what costs.
"""

import math

from PySide6.QtCore import QEvent, QRectF, Qt
from PySide6.QtGui import (
    QColor,
    QFont,
    QFontMetrics,
    QFontMetricsF,
    QPainter,
    QPaintEvent,
    QPen,
    QPixmap,
    QRegion,
    QResizeEvent,
)
from PySide6.QtWidgets import QSizePolicy, QWidget

from octavo.ui.fonts import ui_font
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import FONT_SMALL, RADIUS_CARD


class Type:
    """A font, and how wide texts are in it: as their letters side by side, each measured once.

    Kerning would only move them together; to ask for it takes longer than to paint the text.
    """

    def __init__(self, font: QFont) -> None:
        self.font = font
        metrics = QFontMetrics(font)
        self.height, self.ascent = metrics.height(), metrics.ascent()
        self.average_width = metrics.averageCharWidth()
        self._metrics = metrics
        self._letter_widths: dict[str, float] = {}

    def width(self, text: str) -> int:
        widths = self._letter_widths
        for letter in text:
            if letter not in widths:
                widths[letter] = QFontMetricsF(self.font).horizontalAdvance(letter)
        return math.ceil(sum(map(widths.__getitem__, text)))

    def cut(self, text: str, room: int) -> str:
        """The text, or its beginning where there is no room for it."""
        if self.width(text) <= room:
            return text
        return self._metrics.elidedText(text, Qt.TextElideMode.ElideRight, room)


class PaintedCard(QWidget):
    """A frame with what stays painted once, and with what changes painted over it.

    A subclass places its parts in `place`, paints what stays in `paint_still` and what changes in
    `paint_changed`; `strong` and `small` are the two types.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.themes = ThemeController.current()
        self._ground: QPixmap | None = None
        self.setAttribute(Qt.WidgetAttribute.WA_OpaquePaintEvent)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.themes.changed.connect(self._apply_theme)
        self._take_theme()
        self.place()

    def place(self) -> None:
        """Works out where the parts lie in the widget's size."""
        raise NotImplementedError

    def paint_still(self, painter: QPainter) -> None:
        """Paints what stays while theme and size stay."""
        raise NotImplementedError

    def paint_changed(self, painter: QPainter, changed: QRegion) -> None:
        """Paints the parts that lie in a region, on fresh ground."""
        raise NotImplementedError

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.place_anew()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() is QEvent.Type.DevicePixelRatioChange:
            self._ground = None

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._ground is None:
            self._ground = self._draw_ground(self.devicePixelRatioF())
        painter = QPainter(self)
        painter.drawPixmap(0, 0, self._ground)  # clipped to what has changed
        self.paint_changed(painter, event.region())

    def place_anew(self) -> None:
        """After a change of size or of what the card consists of."""
        self._ground = None
        self.place()
        self.update()

    def _draw_ground(self, ratio: float) -> QPixmap:
        theme = self.theme
        ground = QPixmap(self.size() * ratio)
        ground.setDevicePixelRatio(ratio)
        ground.fill(QColor(theme.paper))
        painter = QPainter(ground)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor(theme.rule), 1))
        painter.setBrush(QColor(theme.sheet))
        frame = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        painter.drawRoundedRect(frame, RADIUS_CARD, RADIUS_CARD)
        self.paint_still(painter)
        painter.end()
        return ground

    def _take_theme(self) -> None:
        self.theme = self.themes.theme
        scale = self.themes.scale
        strong = ui_font(scale)
        strong.setWeight(QFont.Weight.DemiBold)
        self.strong = Type(strong)
        self.small = Type(ui_font(scale, FONT_SMALL))
        self.ink, self.ink_soft = QColor(self.theme.ink), QColor(self.theme.ink_soft)

    def _apply_theme(self) -> None:
        self._take_theme()
        self.place_anew()
        self.updateGeometry()

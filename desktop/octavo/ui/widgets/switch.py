"""A switch: on or off, at once."""

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractButton, QSizePolicy, QWidget

from octavo.ui.theme import ThemeController
from octavo.ui.tokens import scaled

TRACK = QSize(36, 20)
RING = 3
"""Room around the track for the focus ring."""


class Switch(QAbstractButton):
    """A checkable button; Space turns it, the knob's place says how it stands."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.setAccessibleName(name)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        ThemeController.current().changed.connect(self._apply_theme)

    def sizeHint(self) -> QSize:
        scale = ThemeController.current().scale
        ring = 2 * RING
        return QSize(scaled(TRACK.width(), scale) + ring, scaled(TRACK.height(), scale) + ring)

    def minimumSizeHint(self) -> QSize:
        return self.sizeHint()

    def paintEvent(self, _event: QPaintEvent) -> None:
        theme = ThemeController.current().theme
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        track = QRectF(self.rect()).adjusted(RING, RING, -RING, -RING)
        radius = track.height() / 2
        if self.hasFocus():
            painter.setPen(QPen(QColor(theme.accent), 2))
            ring = QRectF(self.rect()).adjusted(1, 1, -1, -1)
            painter.drawRoundedRect(ring, ring.height() / 2, ring.height() / 2)
        track.adjust(0.5, 0.5, -0.5, -0.5)
        is_on = self.isChecked() and self.isEnabled()
        painter.setPen(QPen(QColor(theme.accent if is_on else theme.ink_faint), 1))
        painter.setBrush(QColor(theme.accent if is_on else theme.well))
        painter.drawRoundedRect(track, radius, radius)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.accent_on if is_on else theme.ink_faint))
        x = track.right() - radius if self.isChecked() else track.left() + radius
        painter.drawEllipse(QPointF(x, track.center().y()), radius - 4, radius - 4)

    def _apply_theme(self) -> None:
        self.updateGeometry()
        self.update()

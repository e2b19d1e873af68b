"""Labels: by role, elided to their width, and the hairline."""

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QFontMetrics, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QFrame, QLabel, QSizePolicy, QWidget

from octavo.ui.fonts import without_ligatures
from octavo.ui.widgets.buttons import set_property


def label(text: str = "", role: str = "", *, wrap: bool = False) -> QLabel:
    """A plain-text label in a role of the style sheet; texts from files are never read as HTML."""
    result = QLabel(text)
    result.setTextFormat(Qt.TextFormat.PlainText)
    result.setWordWrap(wrap)
    _set_role(result, role)
    if wrap:
        result.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return result


def _set_role(target: QLabel, role: str) -> None:
    if role:
        target.setProperty("role", role)
    if role == "figure":
        # The style sheet names the typeface and leaves the font's features alone.
        target.setFont(without_ligatures(target.font()))


def set_tone(target: QLabel, tone: str) -> None:
    """Colours a label `good`, `caution`, `bad`, `soft`, `accent` or, with "", as ink."""
    set_property(target, "tone", tone)


def hairline(*, vertical: bool = False) -> QFrame:
    """One pixel between things."""
    line = QFrame()
    line.setProperty("surface", "rule")
    if vertical:
        line.setFixedWidth(1)
    else:
        line.setFixedHeight(1)
    return line


class ElidedLabel(QLabel):
    """One line that ends in an ellipsis where it does not fit; the tool tip has the whole."""

    def __init__(
        self,
        text: str = "",
        role: str = "",
        *,
        mode: Qt.TextElideMode = Qt.TextElideMode.ElideRight,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._mode = mode
        self.setTextFormat(Qt.TextFormat.PlainText)
        _set_role(self, role)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setText(text)

    def setText(self, text: str) -> None:  # noqa: N802 (Qt's name)
        super().setText(text)
        self._update_tool_tip()

    def sizeHint(self) -> QSize:
        return QSize(
            self.fontMetrics().horizontalAdvance(self.text()) + 2, super().sizeHint().height()
        )

    def minimumSizeHint(self) -> QSize:
        return QSize(self.fontMetrics().averageCharWidth() * 4, super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._update_tool_tip()

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        area = self.contentsRect()
        metrics = QFontMetrics(self.font())
        text = metrics.elidedText(self.text(), self._mode, area.width())
        painter.drawText(area, int(self.alignment() | Qt.AlignmentFlag.AlignVCenter), text)

    def _update_tool_tip(self) -> None:
        is_cut = self.fontMetrics().horizontalAdvance(self.text()) > self.contentsRect().width()
        self.setToolTip(self.text() if is_cut else "")

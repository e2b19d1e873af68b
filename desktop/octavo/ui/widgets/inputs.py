"""Inputs whose native parts do not follow a style sheet: the choice box with its own arrow."""

from collections.abc import Sequence

from PySide6.QtCore import Signal
from PySide6.QtGui import QPainter, QPaintEvent, QWheelEvent
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QSpinBox, QWidget

from octavo.ui.icons import icon_pixmap
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_WITHIN, scaled


class ChoiceBox(QComboBox):
    """A combo box of value and label pairs, with an arrow in the theme's ink."""

    chosen = Signal(str)
    """The value, when the person picks one."""

    def __init__(
        self, name: str, choices: Sequence[tuple[str, str]], parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setAccessibleName(name)
        self.view().setAccessibleName(name)
        for value, text in choices:
            self.addItem(text, value)
        self.activated.connect(lambda _index: self.chosen.emit(self.value))

    @property
    def value(self) -> str:
        return str(self.currentData() or "")

    def set_value(self, value: str) -> None:
        """Shows a value; one that is not among the choices is added, as the file may hold it."""
        if self.findData(value) < 0:
            self.addItem(value, value)
        self.setCurrentIndex(self.findData(value))

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Scrolls the page instead of changing a value the pointer happens to cross."""
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        controller = ThemeController.current()
        pixels = scaled(16, controller.scale)
        ratio = self.devicePixelRatioF()
        theme = controller.theme
        color = theme.ink_soft if self.isEnabled() else theme.ink_faint
        pixmap = icon_pixmap("chevron-down", color, round(pixels * ratio))
        pixmap.setDevicePixelRatio(ratio)
        painter = QPainter(self)
        left = self.width() - pixels - SPACE_WITHIN
        painter.drawPixmap(left, (self.height() - pixels) // 2, pixmap)


class NumberBox(QSpinBox):
    """A whole number that the mouse wheel does not change; the arrow keys do."""

    def __init__(
        self, name: str, minimum: int, maximum: int, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setAccessibleName(name)
        self.setRange(minimum, maximum)
        self.setKeyboardTracking(False)
        self.lineEdit().setTextMargins(SPACE_WITHIN, 0, SPACE_WITHIN, 0)

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class DecimalBox(QDoubleSpinBox):
    """A decimal number that the mouse wheel does not change; the arrow keys do."""

    def __init__(
        self, name: str, minimum: float, maximum: float, step: float, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setAccessibleName(name)
        self.setRange(minimum, maximum)
        self.setSingleStep(step)
        self.setDecimals(2)
        self.setKeyboardTracking(False)
        self.lineEdit().setTextMargins(SPACE_WITHIN, 0, SPACE_WITHIN, 0)

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

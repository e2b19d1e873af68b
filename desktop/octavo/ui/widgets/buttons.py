"""Buttons that tint their icons with the theme, and a row of choices."""

from collections.abc import Sequence

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import (
    QAbstractButton,
    QButtonGroup,
    QFrame,
    QHBoxLayout,
    QPushButton,
    QToolButton,
    QWidget,
)

from octavo.ui.icons import ICON_PIXELS, icon
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import Theme, scaled

ICON_GAP = "  "


def set_property(widget: QWidget, name: str, value: str) -> None:
    """Sets a dynamic property and lets the style sheet see it."""
    if widget.property(name) == value:
        return
    widget.setProperty(name, value)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


def _icon_color(button: QAbstractButton, theme: Theme) -> str:
    variant = button.property("variant")
    if variant == "primary":
        return theme.accent_on
    if variant == "danger":
        return theme.bad
    if variant == "link":
        return theme.accent
    if variant in ("nav", "rail") and button.isChecked():
        return theme.accent
    return theme.ink_soft


class Button(QPushButton):
    """A push button with a text, a variant of the style sheet and perhaps an icon.

    The keyboard reaches it; a click does not move the focus, so the ring shows only to those who
    use the keyboard.
    """

    def __init__(
        self,
        text: str,
        *,
        variant: str = "",
        icon_name: str = "",
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._icon_name = icon_name
        self.setText(text)
        self.setProperty("variant", variant)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        # Return presses the focused button, in a dialog and outside of one.
        self.setAutoDefault(True)
        if icon_name:
            ThemeController.current().changed.connect(self._tint)
            self.toggled.connect(self._tint)
            self._tint()

    def setText(self, text: str) -> None:  # noqa: N802 (Qt's name)
        """Keeps a distance between icon and text, which Qt's style sheets cannot."""
        has_gap = bool(text and self._icon_name)
        super().setText(f"{ICON_GAP}{text}" if has_gap else text)
        if has_gap:
            self.setAccessibleName(text)

    def set_icon_name(self, name: str) -> None:
        if name != self._icon_name:
            self._icon_name = name
            self._tint()

    def set_variant(self, variant: str) -> None:
        if variant == self.property("variant"):
            return
        set_property(self, "variant", variant)
        if self._icon_name:
            self._tint()

    def _tint(self) -> None:
        controller = ThemeController.current()
        theme = controller.theme
        color = _icon_color(self, theme)
        pixels = scaled(ICON_PIXELS, controller.scale)
        self.setIcon(icon(self._icon_name, color, pixels, disabled_color=theme.ink_faint))
        self.setIconSize(QSize(pixels, pixels))


class IconButton(QToolButton):
    """A button that is only an icon; its name is read aloud and shown as the tool tip."""

    def __init__(self, icon_name: str, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._icon_name = icon_name
        self.set_name(name)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        ThemeController.current().changed.connect(self._tint)
        self._tint()

    def set_name(self, name: str) -> None:
        self.setAccessibleName(name)
        self.setToolTip(name)

    def set_icon_name(self, name: str) -> None:
        self._icon_name = name
        self._tint()

    def _tint(self) -> None:
        controller = ThemeController.current()
        theme = controller.theme
        pixels = scaled(ICON_PIXELS, controller.scale)
        tinted = icon(self._icon_name, theme.ink_soft, pixels, disabled_color=theme.ink_faint)
        self.setIcon(tinted)
        self.setIconSize(QSize(pixels, pixels))


class SegmentedChoice(QFrame):
    """A few exclusive choices side by side; the arrow keys move between them."""

    chosen = Signal(str)
    """The value, when the person picks one."""

    def __init__(
        self, name: str, choices: Sequence[tuple[str, str]], parent: QWidget | None = None
    ) -> None:
        """Args:
        name: what is chosen, for screen readers.
        choices: value and label of each.
        """
        super().__init__(parent)
        self.setProperty("surface", "segments")
        self.setAccessibleName(name)
        row = QHBoxLayout(self)
        row.setContentsMargins(2, 2, 2, 2)
        row.setSpacing(2)
        self._group = QButtonGroup(self)
        self._buttons: dict[str, Button] = {}
        for value, label in choices:
            button = Button(label, variant="segment")
            button.setCheckable(True)
            button.setAccessibleName(f"{name}: {label}")
            button.clicked.connect(lambda _=False, value=value: self.chosen.emit(value))
            self._group.addButton(button)
            self._buttons[value] = button
            row.addWidget(button)

    @property
    def value(self) -> str:
        return next((v for v, button in self._buttons.items() if button.isChecked()), "")

    def set_value(self, value: str) -> None:
        """Shows a choice without emitting `chosen`."""
        self._buttons[value].setChecked(True)

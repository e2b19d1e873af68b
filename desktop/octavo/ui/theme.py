"""Which theme is on: light, dark or the system's choice, and the type scale; applied to Qt."""

from typing import Literal

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication

from octavo.ui.fonts import ui_font
from octavo.ui.style_sheet import build_style_sheet
from octavo.ui.tokens import DARK, LIGHT, Theme

ThemeMode = Literal["auto", "light", "dark"]

MIN_SCALE = 0.5
MAX_SCALE = 3.0

__all__ = [
    "DARK",
    "LIGHT",
    "MAX_SCALE",
    "MIN_SCALE",
    "Theme",
    "ThemeController",
    "ThemeMode",
    "build_palette",
    "build_style_sheet",
]


class ThemeController(QObject):
    """Keeps palette, style sheet and font of the application true to the person's choice.

    There is one per QApplication and Qt owns it, so a widget finds it by
    `ThemeController.current()` however deep in the tree it is made.
    """

    changed = Signal()
    """After the application has taken on the new theme or scale."""

    def __init__(self, app: QApplication, mode: ThemeMode = "auto", scale: float = 1.0) -> None:
        super().__init__(app)
        self._app = app
        self._mode: ThemeMode = mode
        self._scale = scale
        self._applied: tuple[Theme, float] | None = None
        app.setStyle("Fusion")
        app.styleHints().colorSchemeChanged.connect(self._apply)
        # Icons are drawn for the screens there are.
        app.screenAdded.connect(lambda _screen: self.changed.emit())
        self._apply()

    @classmethod
    def current(cls) -> "ThemeController":
        """The application's controller; makes one if a widget is shown on its own, as in tests."""
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        return app.findChild(cls) or cls(app)

    @property
    def theme(self) -> Theme:
        if self._mode == "auto":
            is_dark = self._app.styleHints().colorScheme() is Qt.ColorScheme.Dark
            return DARK if is_dark else LIGHT
        return DARK if self._mode == "dark" else LIGHT

    @property
    def mode(self) -> ThemeMode:
        return self._mode

    @property
    def scale(self) -> float:
        return self._scale

    def set_mode(self, mode: ThemeMode) -> None:
        self._mode = mode
        self._apply()

    def set_scale(self, scale: float) -> None:
        """Sets the type scale, held between MIN_SCALE and MAX_SCALE."""
        self._scale = min(MAX_SCALE, max(MIN_SCALE, scale))
        self._apply()

    def _apply(self) -> None:
        theme = self.theme
        if self._applied == (theme, self._scale):
            return
        self._applied = (theme, self._scale)
        self._app.setPalette(build_palette(theme))
        self._app.setFont(ui_font(self._scale))
        self._app.setStyleSheet(build_style_sheet(theme, self._scale))
        self.changed.emit()


def build_palette(theme: Theme) -> QPalette:
    """What Qt draws itself, in the theme's colours."""
    palette = QPalette()
    roles = {
        QPalette.ColorRole.Window: theme.paper,
        QPalette.ColorRole.WindowText: theme.ink,
        QPalette.ColorRole.Base: theme.sheet,
        QPalette.ColorRole.AlternateBase: theme.well,
        QPalette.ColorRole.Text: theme.ink,
        QPalette.ColorRole.Button: theme.sheet,
        QPalette.ColorRole.ButtonText: theme.ink,
        QPalette.ColorRole.BrightText: theme.bad,
        QPalette.ColorRole.Light: theme.sheet,
        QPalette.ColorRole.Midlight: theme.rule,
        QPalette.ColorRole.Mid: theme.rule,
        QPalette.ColorRole.Dark: theme.edge,
        QPalette.ColorRole.Shadow: theme.rule,
        QPalette.ColorRole.Highlight: theme.selection,
        QPalette.ColorRole.HighlightedText: theme.ink,
        QPalette.ColorRole.Link: theme.accent,
        QPalette.ColorRole.LinkVisited: theme.accent,
        QPalette.ColorRole.ToolTipBase: theme.sheet,
        QPalette.ColorRole.ToolTipText: theme.ink,
        QPalette.ColorRole.PlaceholderText: theme.ink_soft,
        QPalette.ColorRole.Accent: theme.accent,
    }
    for role, color in roles.items():
        palette.setColor(role, QColor(color))
    for role in (
        QPalette.ColorRole.WindowText,
        QPalette.ColorRole.Text,
        QPalette.ColorRole.ButtonText,
    ):
        palette.setColor(QPalette.ColorGroup.Disabled, role, QColor(theme.ink_faint))
    return palette

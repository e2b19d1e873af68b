"""Text in lines that is read and copied, never written: reports and logs."""

from PySide6.QtWidgets import QPlainTextEdit, QWidget

from octavo.ui.fonts import mono_font
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import FONT_SMALL


class MonoText(QPlainTextEdit):
    """A read-only text in even columns that follows the type scale."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        """Args:
        name: what it holds, for screen readers.
        """
        super().__init__(parent)
        self.setAccessibleName(name)
        self.setReadOnly(True)
        self.setUndoRedoEnabled(False)
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        # Tab leaves it, for it has nothing to indent.
        self.setTabChangesFocus(True)
        ThemeController.current().changed.connect(self._apply_scale)
        self._apply_scale()

    def _apply_scale(self) -> None:
        self.setFont(mono_font(ThemeController.current().scale, FONT_SMALL + 1))

"""Registers the bundled typefaces: Inter for the interface, JetBrains Mono for code and figures."""

import logging
from pathlib import Path

from PySide6.QtGui import QFont, QFontDatabase

from octavo.ui.tokens import FONT_BODY, FONT_MONO, FONT_UI, scaled

logger = logging.getLogger(__name__)


def register_fonts(resources: Path) -> None:
    """Makes the bundled fonts known to Qt; a missing file leaves the system's font in its place."""
    for path in sorted((resources / "fonts").glob("*.[ot]tf")):
        if QFontDatabase.addApplicationFont(str(path)) < 0:
            logger.warning("The font %s cannot be read", path.name)


def ui_font(scale: float = 1.0, pixels: int = FONT_BODY) -> QFont:
    """Inter at a size of the type scale."""
    font = QFont(FONT_UI)
    font.setPixelSize(scaled(pixels, scale))
    # Unhinted outlines look alike on every platform and grow evenly with the scale.
    font.setHintingPreference(QFont.HintingPreference.PreferNoHinting)
    return font


def mono_font(scale: float = 1.0, pixels: int = FONT_BODY) -> QFont:
    """JetBrains Mono at a size of the type scale, for code and compared figures."""
    font = without_ligatures(QFont(FONT_MONO))
    font.setStyleHint(QFont.StyleHint.Monospace)
    font.setPixelSize(scaled(pixels, scale))
    font.setHintingPreference(QFont.HintingPreference.PreferNoHinting)
    return font


def without_ligatures(font: QFont) -> QFont:
    """The font with every character as it was written: `!=` stays two signs, `->` no arrow."""
    font.setFeature(QFont.Tag("calt"), 0)
    return font

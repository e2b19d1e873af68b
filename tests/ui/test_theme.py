"""Themes: the tokens are readable, and a change reaches the application."""

import itertools
import re

import pytest
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication

from octavo.ui.style_sheet import build_style_sheet
from octavo.ui.theme import MAX_SCALE, ThemeController, build_palette
from octavo.ui.tokens import DARK, LIGHT, Theme, mix

THEMES = pytest.mark.parametrize("theme_tokens", [LIGHT, DARK], ids=["light", "dark"])


def luminance(color: str) -> float:
    """Relative luminance. Source: WCAG 2.2, definition of contrast ratio."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_of_black_on_white_is_21() -> None:
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)


@THEMES
def test_text_is_readable_on_every_ground(theme_tokens: Theme) -> None:
    t = theme_tokens
    texts = (t.ink, t.ink_soft, t.accent, t.good, t.caution, t.bad)
    grounds = (t.paper, t.sheet, t.well)
    pairs = [
        *itertools.product(texts, grounds),
        (t.accent_on, t.accent),
        (t.accent_on, t.accent_hover),
        (t.ink, t.selection),
        (t.accent, t.selection),
        (t.ink, t.hover),
        (t.ink, t.pressed),
        (t.ink_soft, t.hover),
    ]
    too_low = [(pair, round(contrast(*pair), 2)) for pair in pairs if contrast(*pair) < 4.5]
    assert too_low == []


@THEMES
def test_large_text_icons_and_plots_have_three_to_one(theme_tokens: Theme) -> None:
    t = theme_tokens
    marks = (t.ink_faint, *t.series)
    pairs = [
        *itertools.product(marks, (t.paper, t.sheet)),
        *((t.accent, ground) for ground in (t.paper, t.sheet, t.well)),  # the focus ring
    ]
    too_low = [(pair, round(contrast(*pair), 2)) for pair in pairs if contrast(*pair) < 3.0]
    assert too_low == []


def test_mix_goes_from_the_first_colour_to_the_second() -> None:
    assert mix("#000000", "#FF8000", 0.0) == "#000000"
    assert mix("#000000", "#FF8000", 1.0) == "#FF8000"
    assert mix("#000000", "#FF8000", 0.5) == "#804000"


@THEMES
def test_style_sheet_has_no_holes_and_no_colour_of_the_other_theme(theme_tokens: Theme) -> None:
    sheet = build_style_sheet(theme_tokens)
    other = DARK if theme_tokens is LIGHT else LIGHT
    assert "$" not in sheet
    assert theme_tokens.paper in sheet
    assert other.paper not in sheet


def test_every_size_grows_with_the_scale() -> None:
    def sizes(scale: float) -> list[int]:
        found = re.findall(r"font-size: (\d+)px", build_style_sheet(LIGHT, scale))
        return [int(size) for size in found]

    assert set(sizes(1.0)) >= {11, 15, 18, 24}
    assert all(small < large for small, large in zip(sizes(1.0), sizes(1.6), strict=True))


def test_palette_takes_the_tokens() -> None:
    palette = build_palette(DARK)
    assert palette.color(QPalette.ColorRole.Window) == QColor(DARK.paper)
    assert palette.color(QPalette.ColorRole.HighlightedText) == QColor(DARK.ink)


def test_a_change_of_mode_or_scale_reaches_the_application(
    app: QApplication, theme: ThemeController
) -> None:
    changes: list[Theme] = []
    theme.changed.connect(lambda: changes.append(theme.theme))
    theme.set_mode("dark")
    assert app.palette().color(QPalette.ColorRole.Window) == QColor(DARK.paper)
    theme.set_mode("dark")
    theme.set_scale(1.5)
    assert app.font().pixelSize() == 20
    assert changes == [DARK, DARK]


def test_scale_is_held_in_its_range(theme: ThemeController) -> None:
    theme.set_scale(100)
    assert theme.scale == MAX_SCALE


def test_auto_is_light_where_the_system_says_nothing(theme: ThemeController) -> None:
    theme.set_mode("auto")
    assert theme.theme is LIGHT


def test_there_is_one_theme_per_application(theme: ThemeController) -> None:
    assert ThemeController.current() is theme

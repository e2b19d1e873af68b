"""Icons and fonts: bundled, used, tinted, licensed."""

import re
from pathlib import Path

import pytest
from PySide6.QtGui import QColor, QFontDatabase, QFontInfo, QGuiApplication, QIcon
from PySide6.QtWidgets import QApplication

from octavo.paths import resources_dir
from octavo.ui import icons
from octavo.ui.fonts import mono_font, ui_font
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.buttons import IconButton

UI = Path(icons.__file__).parent


def test_icons_are_tinted_and_empty_around(app: QApplication) -> None:
    image = icons.icon_pixmap("plus", "#2F5D50", 48).toImage()
    assert image.pixelColor(24, 24) == QColor("#2F5D50")
    assert image.pixelColor(1, 1).alpha() == 0


@pytest.mark.parametrize("pixels", [16, 27])
def test_icon_is_crisp_on_every_screen(app: QApplication, pixels: int) -> None:
    icon = icons.icon("plus", "#000000", pixels, disabled_color="#808080")
    wanted = {round(pixels * screen.devicePixelRatio()) for screen in app.screens()}
    for mode in (QIcon.Mode.Normal, QIcon.Mode.Disabled):
        assert {size.width() for size in icon.availableSizes(mode)} == wanted


def test_icons_are_drawn_for_a_screen_that_is_added(
    app: QApplication, theme: ThemeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    button = IconButton("plus", "Add")

    class Screen:
        def devicePixelRatio(self) -> float:
            return 2.0

    monkeypatch.setattr(QGuiApplication, "screens", lambda: [Screen()])
    app.screenAdded.emit(app.primaryScreen())
    assert {size.width() for size in button.icon().availableSizes()} == {32}


def test_an_unknown_icon_is_refused(app: QApplication) -> None:
    with pytest.raises(FileNotFoundError):
        icons.icon("no-such-icon", "#000000")


def test_application_icon_shows_the_sheet(app: QApplication) -> None:
    image = icons.app_icon().pixmap(64, 64).toImage()
    assert image.pixelColor(40, 24).lightness() > 200
    assert image.pixelColor(32, 4).lightness() < 100


def test_bundled_icons_are_those_in_use() -> None:
    folder = resources_dir() / "icons" / "lucide"
    bundled = {path.stem for path in folder.glob("*.svg")}
    source = "\n".join(path.read_text(encoding="utf-8") for path in UI.rglob("*.py"))
    named = set(re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)*)"', source))
    assert sorted(bundled - named) == []
    assert (folder / "LICENSE").read_text(encoding="utf-8").startswith("ISC License")


@pytest.mark.parametrize("family", ["Inter", "JetBrains Mono"])
def test_fonts_are_bundled_with_their_licence(app: QApplication, family: str) -> None:
    assert family in QFontDatabase.families()
    licence = resources_dir() / "fonts" / f"OFL-{family.replace(' ', '')}.txt"
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence.read_text(encoding="utf-8")


def test_code_is_set_in_one_width(app: QApplication) -> None:
    assert QFontInfo(mono_font()).fixedPitch()
    assert QFontInfo(mono_font()).family() == "JetBrains Mono"
    assert QFontInfo(ui_font(2.0)).pixelSize() == 26

"""Lucide icons tinted by a colour, and the application's own icon."""

from functools import cache

from PySide6.QtCore import QByteArray, QRectF, Qt
from PySide6.QtGui import QGuiApplication, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from octavo.paths import resources_dir

ICON_PIXELS = 16
"""The size of an icon beside text at 100 %."""
APP_ICON_SIZES = (16, 24, 32, 48, 64, 128, 256)


@cache
def _svg(name: str) -> str:
    return (resources_dir() / "icons" / f"{name}.svg").read_text(encoding="utf-8")


def icon_pixmap(name: str, color: str, pixels: int) -> QPixmap:
    """One lucide icon, `pixels` wide, in the colour given."""
    return _draw(_svg(f"lucide/{name}").replace("currentColor", color), pixels)


def icon(
    name: str, color: str, pixels: int = ICON_PIXELS, *, disabled_color: str | None = None
) -> QIcon:
    """A lucide icon by its file name, drawn for each of the screens; Qt takes the one that fits.

    Args:
        pixels: how wide it is shown, in the pixels of a widget.

    Raises:
        FileNotFoundError: no such icon is bundled.
    """
    result = QIcon()
    for ratio in {screen.devicePixelRatio() for screen in QGuiApplication.screens()} or {1.0}:
        result.addPixmap(icon_pixmap(name, color, round(pixels * ratio)))
        if disabled_color is not None:
            disabled = icon_pixmap(name, disabled_color, round(pixels * ratio))
            result.addPixmap(disabled, QIcon.Mode.Disabled)
    return result


def app_icon() -> QIcon:
    """The folded sheet."""
    result = QIcon()
    for pixels in APP_ICON_SIZES:
        result.addPixmap(_draw(_svg("octavo"), pixels))
    return result


def app_mark(pixels: int, device_pixel_ratio: float) -> QPixmap:
    """The application's icon for a place in the window, `pixels` wide."""
    pixmap = _draw(_svg("octavo"), round(pixels * device_pixel_ratio))
    pixmap.setDevicePixelRatio(device_pixel_ratio)
    return pixmap


def _draw(svg: str, pixels: int) -> QPixmap:
    pixmap = QPixmap(pixels, pixels)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    QSvgRenderer(QByteArray(svg.encode())).render(painter, QRectF(0, 0, pixels, pixels))
    painter.end()
    return pixmap

"""Where the window stood and what it showed, kept from one start to the next."""

from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QByteArray, QRect, QSettings, QSize, Qt
from PySide6.QtWidgets import QApplication, QWidget

MINIMUM_SIZE = QSize(420, 400)
DEFAULT_SIZE = QSize(1120, 760)
REACHABLE = QSize(120, 24)
"""So much of the window's upper edge must lie on a screen for a hand to get hold of it."""


@dataclass(frozen=True, slots=True)
class WindowState:
    """What is kept beside place and size."""

    page: str = ""
    is_expanded: bool = True


def save_window_state(window: QWidget, path: Path, state: WindowState) -> None:
    """Writes the file; raises OSError where its folder cannot be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = QSettings(str(path), QSettings.Format.IniFormat)
    settings.setValue("geometry", window.saveGeometry())
    settings.setValue("page", state.page)
    settings.setValue("sidebar", "expanded" if state.is_expanded else "rail")
    settings.sync()


def restore_window_state(window: QWidget, path: Path) -> WindowState:
    """Gives the window its place and size back, on a screen that is there."""
    window.setMinimumSize(MINIMUM_SIZE)
    settings = QSettings(str(path), QSettings.Format.IniFormat)
    stored = settings.value("geometry")
    if not isinstance(stored, QByteArray) or not window.restoreGeometry(stored):
        available = window.screen().availableSize()
        window.resize(DEFAULT_SIZE.boundedTo(available * 0.9))
    elif not is_reachable(window.geometry(), _screens()):
        available_area = QApplication.primaryScreen().availableGeometry()
        window.resize(window.size().boundedTo(available_area.size()))
        frame = window.geometry()
        frame.moveCenter(available_area.center())
        window.setGeometry(frame)
    window.setWindowState(window.windowState() & ~Qt.WindowState.WindowMinimized)
    page = settings.value("page", "")
    return WindowState(
        page if isinstance(page, str) else "", settings.value("sidebar", "expanded") != "rail"
    )


def _screens() -> list[QRect]:
    return [screen.availableGeometry() for screen in QApplication.screens()]


def is_reachable(window: QRect, screens: list[QRect]) -> bool:
    """Whether enough of the window's upper edge lies on a screen to move it by."""
    edge = QRect(window.topLeft(), QSize(window.width(), REACHABLE.height()))
    for screen in screens:
        seen = edge.intersected(screen)
        if seen.width() >= REACHABLE.width() and seen.height() > 0:
            return True
    return False

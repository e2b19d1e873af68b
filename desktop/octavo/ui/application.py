"""The QApplication with Octavo's name, icon and fonts."""

import sys

from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication

from octavo import __version__
from octavo.paths import resources_dir
from octavo.ui.fonts import register_fonts
from octavo.ui.icons import app_icon

APP_ID = "io.github.octavo.Octavo"


def make_application() -> QApplication:
    """Makes the application, or returns the one that exists."""
    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    app = QApplication(sys.argv[:1])
    app.setApplicationName("Octavo")
    app.setApplicationVersion(__version__)
    QGuiApplication.setDesktopFileName(APP_ID)
    # The last window's end is the beginning of the shut-down, not the end of the event loop.
    app.setQuitOnLastWindowClosed(False)
    app.setWindowIcon(app_icon())
    register_fonts(resources_dir())
    return app

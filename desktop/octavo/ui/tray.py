"""`Tray`: the icon beside the clock, where a desktop has such a place; the app ends without it."""

from collections.abc import Callable

from PySide6.QtCore import QObject
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QSystemTrayIcon, QWidget

from octavo.core import Core
from octavo.host import HostState
from octavo.ui.icons import app_icon
from octavo.ui.sidebar import describe_host
from octavo.ui.tasks import spawn


class Tray(QObject):
    """Shows which model is loaded, and switches the endpoint; it keeps nothing alive."""

    def __init__(
        self, core: Core, show: Callable[[], None], quit_: Callable[[], None], window: QWidget
    ) -> None:
        super().__init__(window)
        self._core = core
        self._menu = QMenu(window)
        self._menu.addAction("Show Octavo").triggered.connect(show)
        self._menu.addSeparator()
        self._state = QAction(self._menu)
        self._state.setEnabled(False)
        self._menu.addAction(self._state)
        self._server = QAction("Server", self._menu)
        self._server.setCheckable(True)
        self._server.triggered.connect(lambda is_on: spawn(self._switch_server(is_on)))
        self._menu.addAction(self._server)
        self._menu.addSeparator()
        self._menu.addAction("Quit").triggered.connect(quit_)
        self._menu.aboutToShow.connect(self._show_server)
        self._icon = QSystemTrayIcon(app_icon(), self)
        self._icon.setContextMenu(self._menu)
        self._icon.activated.connect(
            lambda reason: show() if reason == QSystemTrayIcon.ActivationReason.Trigger else None
        )
        disconnect = core.host.state_changed.connect(self._show_host)
        self.destroyed.connect(lambda _=None: disconnect())
        self._show_host(core.host.state)
        self._show_server()
        self._icon.show()

    def _show_host(self, state: HostState) -> None:
        title, sentence, _tone = describe_host(state)
        self._state.setText(f"{title}: {sentence}")
        self._icon.setToolTip(f"Octavo\n{title}\n{sentence}")

    def _show_server(self) -> None:
        # The endpoint tells nobody when it is switched; whoever opens the menu sees how it is.
        address = self._core.server.address
        self._server.setChecked(address is not None)
        self._server.setText("Server" if address is None else f"Server on port {address.port}")

    async def _switch_server(self, is_on: bool) -> None:
        self._server.setEnabled(False)
        try:
            if is_on:
                await self._core.start_server()
            else:
                await self._core.stop_server()
        finally:
            self._server.setEnabled(True)
            self._show_server()


def make_tray(
    core: Core,
    show: Callable[[], None],
    quit_: Callable[[], None],
    window: QWidget,
    *,
    is_available: Callable[[], bool] = QSystemTrayIcon.isSystemTrayAvailable,
) -> Tray | None:
    """The tray icon, or None where the desktop has no tray."""
    return Tray(core, show, quit_, window) if is_available() else None

"""`MainWindow`: makes the pages and switches them; what a page does is its own affair."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QSettings, QSize, Qt, Signal
from PySide6.QtGui import QCloseEvent, QKeySequence, QMouseEvent, QResizeEvent, QShortcut
from PySide6.QtWidgets import QApplication, QMainWindow, QStackedWidget, QWidget

from octavo.core import Core
from octavo.ui.chat.chat_page import SHORTCUTS as CHAT_SHORTCUTS
from octavo.ui.chat.chat_page import ChatPage
from octavo.ui.chat.conversation_list import SHORTCUTS as LIST_SHORTCUTS
from octavo.ui.chat.conversation_list import ConversationList
from octavo.ui.icons import app_icon
from octavo.ui.models.models_page import ModelsPage
from octavo.ui.monitor.monitor_page import MonitorPage
from octavo.ui.server.server_page import ServerPage
from octavo.ui.settings.settings_page import SettingsPage
from octavo.ui.shortcuts import Shortcut, ShortcutsDialog
from octavo.ui.sidebar import Sidebar, SidebarEntry
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import scaled
from octavo.ui.widgets.toast import Toast

RAIL_BELOW = 720
MINIMUM_SIZE = QSize(420, 400)
DEFAULT_SIZE = QSize(1120, 760)
GEOMETRY_FILE = "window.ini"

CHAT = "chat"
MODELS = "models"
MONITOR = "monitor"
SERVER = "server"
SETTINGS = "settings"
ENTRIES = (
    SidebarEntry(CHAT, "Chat", "message-square", "Ctrl+1"),
    SidebarEntry(MODELS, "Models", "boxes", "Ctrl+2"),
    SidebarEntry(MONITOR, "Monitor", "activity", "Ctrl+3"),
    SidebarEntry(SERVER, "Server", "server", "Ctrl+4"),
    SidebarEntry(SETTINGS, "Settings", "settings", "Ctrl+5"),
)


class MainWindow(QMainWindow):
    """The one window. Closing it asks for the end through `closing`, and ends nothing itself."""

    closing = Signal()

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core
        self.setWindowTitle("Octavo")
        self.setWindowIcon(app_icon())
        self.setMinimumSize(MINIMUM_SIZE)
        self._is_narrow = False
        self._is_expanded = True
        self._body = QWidget()
        self.setCentralWidget(self._body)
        self._stack = QStackedWidget(self._body)
        self._veil = _Veil(self._body)
        self._sidebar = Sidebar(ENTRIES, self._body)
        self.toast = Toast(self._body)
        # Pages that nobody has looked at yet are not made: the first paint comes sooner.
        self._factories: dict[str, Callable[[], QWidget]] = {
            MODELS: lambda: ModelsPage(core),
            MONITOR: lambda: MonitorPage(core),
            SERVER: lambda: ServerPage(core),
            SETTINGS: lambda: SettingsPage(core),
        }
        self.chat_page = ChatPage(core)
        self._conversations = ConversationList(core)
        self._pages: dict[str, QWidget] = {CHAT: self.chat_page}
        self._stack.addWidget(self.chat_page)
        self._sidebar.set_list(self._conversations)
        self._connect()
        self._add_shortcuts()
        self.show_page(CHAT)
        self._sidebar.show_host(core.host.state)
        self._restore_geometry()
        self.focus_composer()

    @property
    def current_page(self) -> str:
        return next(k for k, page in self._pages.items() if page is self._stack.currentWidget())

    def show_page(self, key: str) -> None:
        """Shows a page, and makes it the first time."""
        if key not in self._pages:
            self._pages[key] = self._factories[key]()
            self._pages[key].setFocusPolicy(Qt.FocusPolicy.ClickFocus)
            self._stack.addWidget(self._pages[key])
        self._stack.setCurrentWidget(self._pages[key])
        # Else Qt hands the focus on to whatever control comes next, and rings it.
        self._pages[key].setFocus()
        self._sidebar.show_page(key)
        if self._is_narrow:
            self._set_expanded(False)

    def page(self, key: str) -> QWidget:
        """The page of that key, shown."""
        self.show_page(key)
        return self._pages[key]

    def save_geometry(self) -> None:
        """Remembers place and size for the next start."""
        self._geometry_file.parent.mkdir(parents=True, exist_ok=True)
        settings = QSettings(str(self._geometry_file), QSettings.Format.IniFormat)
        settings.setValue("geometry", self.saveGeometry())
        settings.sync()

    def closeEvent(self, event: QCloseEvent) -> None:
        event.ignore()
        self.closing.emit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._arrange()

    @property
    def _geometry_file(self) -> Path:
        return self._core.paths.data_dir / GEOMETRY_FILE

    def _connect(self) -> None:
        self._sidebar.page_chosen.connect(self.show_page)
        self._sidebar.toggle_asked.connect(self._toggle_sidebar)
        self._veil.clicked.connect(self._toggle_sidebar)
        self._sidebar.status_clicked.connect(lambda: self.show_page(MODELS))
        self._conversations.conversation_selected.connect(self._show_conversation)
        self._core.host.state_changed.connect(self._sidebar.show_host)
        UiTasks.current().failed.connect(self.toast.show_error)
        ThemeController.current().changed.connect(self._arrange)

    def _add_shortcuts(self) -> None:
        actions: tuple[tuple[Shortcut, Callable[[], None]], ...] = (
            (Shortcut("New chat", ("Ctrl+N",)), self._new_conversation),
            (Shortcut("Write a message", ("Ctrl+L",)), self.focus_composer),
            (Shortcut("Search chats", ("Ctrl+F",)), self._search),
            (Shortcut("Chat", ("Ctrl+1",)), lambda: self.show_page(CHAT)),
            (Shortcut("Models", ("Ctrl+2",)), lambda: self.show_page(MODELS)),
            (Shortcut("Monitor", ("Ctrl+3",)), lambda: self.show_page(MONITOR)),
            (Shortcut("Server", ("Ctrl+4",)), lambda: self.show_page(SERVER)),
            (Shortcut("Settings", ("Ctrl+5", "Ctrl+,")), lambda: self.show_page(SETTINGS)),
            (Shortcut("Show or hide the sidebar", ("Ctrl+B",)), self._toggle_sidebar),
            (Shortcut("This list", ("F1", "Ctrl+/")), self.show_shortcuts),
            (Shortcut("Quit", ("Ctrl+Q",)), self.closing.emit),
        )
        self._shortcuts = [shortcut for shortcut, _action in actions]
        for shortcut, action in actions:
            for keys in shortcut.keys:
                QShortcut(QKeySequence(keys), self).activated.connect(action)
        self._put_away = QShortcut(QKeySequence("Esc"), self)
        self._put_away.activated.connect(self._toggle_sidebar)

    def show_shortcuts(self) -> None:
        groups = {
            "Everywhere": self._shortcuts,
            "In a chat": CHAT_SHORTCUTS,
            "In the list of chats": LIST_SHORTCUTS,
        }
        dialog = ShortcutsDialog(groups, self)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def _show_conversation(self, conversation_id: int) -> None:
        self.show_page(CHAT)
        self.chat_page.show_conversation(conversation_id)

    def _new_conversation(self) -> None:
        self.show_page(CHAT)
        self._conversations.new_conversation()

    def focus_composer(self) -> None:
        """Shows the chat, ready to write in."""
        self.show_page(CHAT)
        self.chat_page.focus_composer()

    def _search(self) -> None:
        self._set_expanded(True)
        self._conversations.focus_search()

    def _toggle_sidebar(self) -> None:
        self._set_expanded(not self._is_expanded)

    def _set_expanded(self, is_expanded: bool) -> None:
        had_focus = self._sidebar.isAncestorOf(QApplication.focusWidget() or self)
        self._is_expanded = is_expanded
        self._arrange()
        if had_focus and not is_expanded and self._is_narrow:
            # What had the keyboard may be hidden now.
            self._pages[self.current_page].setFocus()

    def _arrange(self) -> None:
        """Beside the pages where there is room; over them where the window is narrow."""
        width, height = self._body.width(), self._body.height()
        is_narrow = width < scaled(RAIL_BELOW, ThemeController.current().scale)
        if is_narrow != self._is_narrow:
            self._is_narrow = is_narrow
            self._is_expanded = not is_narrow
        self._sidebar.set_rail(not self._is_expanded)
        sidebar_width = self._sidebar.width_at(is_rail=not self._is_expanded)
        is_over = is_narrow and self._is_expanded
        left = self._sidebar.width_at(is_rail=True) if is_over else sidebar_width
        self._sidebar.setGeometry(0, 0, sidebar_width, height)
        self._stack.setGeometry(left, 0, width - left, height)
        self._veil.setGeometry(left, 0, width - left, height)
        self._veil.setVisible(is_over)
        self._put_away.setEnabled(is_over)
        self._veil.raise_()
        self._sidebar.raise_()
        if self.toast.isVisible():
            self.toast.raise_()

    def _restore_geometry(self) -> None:
        settings = QSettings(str(self._geometry_file), QSettings.Format.IniFormat)
        stored = settings.value("geometry")
        if stored is None or not self.restoreGeometry(stored):
            available = self.screen().availableSize()
            self.resize(DEFAULT_SIZE.boundedTo(available * 0.9))
        self.setWindowState(self.windowState() & ~Qt.WindowState.WindowMinimized)


class _Veil(QWidget):
    """Lies unseen over the page while the sidebar lies over both; a click puts the sidebar away."""

    clicked = Signal()

    def mousePressEvent(self, _event: QMouseEvent) -> None:
        self.clicked.emit()

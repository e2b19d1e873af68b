"""`MainWindow`: makes the pages and switches them; what a page does is its own affair."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QCloseEvent, QKeySequence, QMouseEvent, QResizeEvent, QShortcut
from PySide6.QtWidgets import QApplication, QMainWindow, QStackedWidget, QVBoxLayout, QWidget

from octavo.core import Core
from octavo.host import HostStatus
from octavo.hub.library import LibraryModel
from octavo.ui.chat.chat_page import SHORTCUTS as CHAT_SHORTCUTS
from octavo.ui.chat.chat_page import ChatPage
from octavo.ui.chat.conversation_list import SHORTCUTS as LIST_SHORTCUTS
from octavo.ui.chat.conversation_list import ConversationList
from octavo.ui.log_view import show_log
from octavo.ui.monitor.monitor_strip import MonitorStrip
from octavo.ui.notice_bar import NoticeBar
from octavo.ui.pages import CHAT, ENTRIES, MODELS, MONITOR, PageLinks, make_page
from octavo.ui.shortcuts import Shortcut, ShortcutsDialog
from octavo.ui.sidebar import Sidebar
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import scaled
from octavo.ui.widgets.toast import Toast
from octavo.ui.window_state import WindowState, restore_window_state, save_window_state

RAIL_BELOW = 720
STATE_FILE = "window.ini"


class MainWindow(QMainWindow):
    """The one window. Closing it asks for the end through `closing`, and ends nothing itself."""

    closing = Signal()

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core
        self.setWindowTitle("Octavo")
        self._is_narrow = False
        self._is_expanded = self._is_expanded_when_wide = True
        self._body = QWidget()
        self.setCentralWidget(self._body)
        self._main = QWidget(self._body)
        column = QVBoxLayout(self._main)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self.notice = NoticeBar()
        self._stack = QStackedWidget()
        self._strip = MonitorStrip(core)
        column.addWidget(self.notice)
        column.addWidget(self._stack, 1)
        column.addWidget(self._strip)
        self._veil = _Veil(self._body)
        self._sidebar = Sidebar(ENTRIES, self._body)
        self.toast = Toast(self._body)
        self.chat_page = ChatPage(core)
        self._conversations = ConversationList(core)
        # Pages that nobody has looked at yet are not made: the first paint comes sooner.
        self._pages: dict[str, QWidget] = {CHAT: self.chat_page}
        self._stack.addWidget(self.chat_page)
        self._sidebar.set_list(self._conversations)
        self._connect()
        self._add_shortcuts()
        self.show_page(CHAT)
        self._sidebar.show_host(core.host.state)
        self.focus_composer()
        self._restore_state()

    @property
    def current_page(self) -> str:
        return next(k for k, page in self._pages.items() if page is self._stack.currentWidget())

    def show_page(self, key: str) -> None:
        """Shows a page, and makes it the first time."""
        if key not in self._pages:
            links = PageLinks(self._chat_with, self.show_page)
            self._pages[key] = make_page(key, self._core, links)
            self._pages[key].setFocusPolicy(Qt.FocusPolicy.ClickFocus)
            self._stack.addWidget(self._pages[key])
        self._stack.setCurrentWidget(self._pages[key])
        # Else Qt hands the focus on to whatever control comes next, and rings it.
        self._pages[key].setFocus()
        self._sidebar.show_page(key)
        self._show_strip()
        if self._is_narrow:
            self._set_expanded(False)

    def page(self, key: str) -> QWidget:
        """The page of that key, shown."""
        self.show_page(key)
        return self._pages[key]

    def save_state(self) -> None:
        """Remembers place, size, page and sidebar for the next start."""
        state = WindowState(self.current_page, self._is_expanded_when_wide)
        save_window_state(self, self._state_file, state)

    def bring_to_front(self) -> None:
        """Shows the window, whatever lies over it and however small it was made."""
        self.setWindowState(self.windowState() & ~Qt.WindowState.WindowMinimized)
        self.show()
        self.raise_()
        self.activateWindow()

    def show_asked(self, argument: str) -> None:
        """A second start: comes to the front, with the model file or hub address it was given."""
        self.bring_to_front()
        if argument:
            from octavo.ui.models.models_page import ModelsPage

            page = self.page(MODELS)
            assert isinstance(page, ModelsPage)
            page.open_asked(argument)

    def show_log(self) -> None:
        """The end of the log in a window of its own."""
        show_log(self, self._core.paths.log_file)

    def closeEvent(self, event: QCloseEvent) -> None:
        event.ignore()
        self.closing.emit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._arrange()

    @property
    def _state_file(self) -> Path:
        return self._core.paths.data_dir / STATE_FILE

    def _connect(self) -> None:
        self._sidebar.page_chosen.connect(self.show_page)
        self._sidebar.toggle_asked.connect(self._toggle_sidebar)
        self._veil.clicked.connect(self._toggle_sidebar)
        self._sidebar.status_clicked.connect(lambda: self.show_page(MODELS))
        self._conversations.conversation_selected.connect(self._show_conversation)
        self._core.host.state_changed.connect(self._sidebar.show_host)
        UiTasks.current().failed.connect(self.toast.show_error)
        ThemeController.current().changed.connect(self._arrange)
        self._strip.clicked.connect(lambda: self.show_page(MONITOR))
        self.chat_page.models_asked.connect(lambda: self.show_page(MODELS))
        disconnect = self._core.settings.changed.connect(lambda _settings: self._show_strip())
        self.destroyed.connect(lambda _=None: disconnect())

    def _chat_with(self, model: LibraryModel) -> None:
        self.focus_composer()
        state = self._core.host.state
        if state.status is not HostStatus.READY or state.model != model:
            self.chat_page.picker.choose(model)

    def _add_shortcuts(self) -> None:
        actions: tuple[tuple[Shortcut, Callable[[], None]], ...] = (
            (Shortcut("New chat", ("Ctrl+N",)), self._new_conversation),
            (Shortcut("Write a message", ("Ctrl+L",)), self.focus_composer),
            (Shortcut("Search chats", ("Ctrl+F",)), self._search),
            *(self._page_shortcut(entry.key) for entry in ENTRIES),
            (Shortcut("Show or hide the sidebar", ("Ctrl+B",)), self._toggle_sidebar),
            (Shortcut("This list", ("F1", "Ctrl+/")), self.show_shortcuts),
            (Shortcut("Show the log", ("F12", "Ctrl+Shift+L")), self.show_log),
            (Shortcut("Quit", ("Ctrl+Q",)), self.closing.emit),
        )
        self._shortcuts = [shortcut for shortcut, _action in actions]
        for shortcut, action in actions:
            for keys in shortcut.keys:
                QShortcut(QKeySequence(keys), self).activated.connect(action)
        self._put_away = QShortcut(QKeySequence("Esc"), self)
        self._put_away.activated.connect(self._toggle_sidebar)

    def _page_shortcut(self, key: str) -> tuple[Shortcut, Callable[[], None]]:
        entry = next(entry for entry in ENTRIES if entry.key == key)
        return Shortcut(entry.title, entry.shortcuts), lambda: self.show_page(key)

    def show_shortcuts(self) -> None:
        from octavo.ui.models.models_page import SHORTCUTS as MODEL_SHORTCUTS

        groups = {
            "Everywhere": self._shortcuts,
            "In a chat": CHAT_SHORTCUTS,
            "In the list of chats": LIST_SHORTCUTS,
            "On the models page": MODEL_SHORTCUTS,
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
        if not self._is_narrow:
            self._is_expanded_when_wide = is_expanded
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
            self._is_expanded = not is_narrow and self._is_expanded_when_wide
        self._sidebar.set_rail(not self._is_expanded)
        sidebar_width = self._sidebar.width_at(is_rail=not self._is_expanded)
        is_over = is_narrow and self._is_expanded
        left = self._sidebar.width_at(is_rail=True) if is_over else sidebar_width
        self._sidebar.setGeometry(0, 0, sidebar_width, height)
        self._main.setGeometry(left, 0, width - left, height)
        self._veil.setGeometry(left, 0, width - left, height)
        self._veil.setVisible(is_over)
        self._put_away.setEnabled(is_over)
        self._veil.raise_()
        self._sidebar.raise_()
        if self.toast.isVisible():
            self.toast.raise_()

    def _show_strip(self) -> None:
        """On every page but that which shows the same at length."""
        is_wanted = self._core.settings.value.appearance.shows_monitor_strip
        self._strip.setVisible(is_wanted and self.current_page != MONITOR)

    def _restore_state(self) -> None:
        state = restore_window_state(self, self._state_file)
        if state.page in {entry.key for entry in ENTRIES}:
            self.show_page(state.page)
        self._is_expanded_when_wide = state.is_expanded
        self._is_expanded = state.is_expanded and not self._is_narrow
        self._arrange()


class _Veil(QWidget):
    """Lies unseen over the page while the sidebar lies over both; a click puts the sidebar away."""

    clicked = Signal()

    def mousePressEvent(self, _event: QMouseEvent) -> None:
        self.clicked.emit()

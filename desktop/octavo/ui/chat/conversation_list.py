"""`ConversationList`: all conversations, newest first; search, rename, delete with undo."""

from PySide6.QtCore import QEvent, QModelIndex, QObject, QPoint, QRect, Qt, QTimer, Signal
from PySide6.QtGui import QAction, QKeyEvent, QKeySequence, QShowEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QLineEdit,
    QListView,
    QMenu,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.ui.chat.conversation_model import ConversationModel, Index
from octavo.ui.icons import icon
from octavo.ui.shortcuts import Shortcut
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import IconButton
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.toast import find_toast

NEW_CONVERSATION = 0
"""Stands for a conversation that is not saved yet: its first message makes it."""
SHORTCUTS = (
    Shortcut("Show the chat before or after", ("Up", "Down"), shown=2),
    Shortcut("Rename the chat", ("F2",)),
    Shortcut("Delete the chat", ("Del",)),
    Shortcut("Clear the search", ("Esc",)),
)
SEARCH_DELAY_MS = 150
REFRESH_DELAY_MS = 30
"""A turn changes the store several times at once; the list follows once."""


class ConversationList(QWidget):
    """The arrow keys walk through the conversations, F2 renames, Del deletes."""

    conversation_selected = Signal(int)
    """Id of the conversation to show; NEW_CONVERSATION for an empty one."""

    def __init__(self, core: Core, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._selected = NEW_CONVERSATION
        self._is_refreshing = False
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search chats")
        self.search.setAccessibleName("Search conversations")
        self.search.setToolTip("Finds words in titles and messages")
        self._clear_action = QAction("Clear the search", self.search)
        self._clear_action.triggered.connect(self.search.clear)
        self._clear_action.setVisible(False)
        self.search.addAction(self._clear_action, QLineEdit.ActionPosition.TrailingPosition)
        self.search.textChanged.connect(lambda text: self._clear_action.setVisible(bool(text)))
        self.search.installEventFilter(self)
        self.new_button = IconButton("plus", "New chat (Ctrl+N)")
        self.new_button.clicked.connect(self.new_conversation)
        self.model = ConversationModel(self)
        self.model.renamed.connect(self._rename)
        self.view = _ConversationView()
        self.view.opened.connect(self._open_current)
        self.view.setModel(self.model)
        self.view.setAccessibleName("Conversations")
        self.view.setUniformItemSizes(True)
        self.view.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.view.setItemDelegate(_TitleDelegate(self.view))
        self.view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.view.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.view.customContextMenuRequested.connect(self._open_menu)
        self.view.selectionModel().currentChanged.connect(self._take_current)
        self._note = label("", "caption", wrap=True)
        self.rename_action = QAction("Rename", self)
        self.rename_action.setShortcut(QKeySequence(Qt.Key.Key_F2))
        self.rename_action.triggered.connect(self.rename_current)
        self.addAction(self.rename_action)
        self.delete_action = QAction("Delete", self.view)
        self.delete_action.setShortcut(QKeySequence(QKeySequence.StandardKey.Delete))
        self.delete_action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        self.delete_action.triggered.connect(self.delete_current)
        self.view.addAction(self.delete_action)
        head = QHBoxLayout()
        head.setSpacing(SPACE_TIGHT)
        head.addWidget(self.search, 1)
        head.addWidget(self.new_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, SPACE_WITHIN, 0, 0)
        column.setSpacing(SPACE_WITHIN)
        column.addLayout(head)
        column.addWidget(self._note)
        column.addWidget(self.view, 1)
        self._search_timer = QTimer(self, singleShot=True, interval=SEARCH_DELAY_MS)
        self._search_timer.timeout.connect(self.refresh)
        self.search.textChanged.connect(lambda _text: self._search_timer.start())
        self.search.returnPressed.connect(self._enter_results)
        self._refresh_timer = QTimer(self, singleShot=True, interval=REFRESH_DELAY_MS)
        self._refresh_timer.timeout.connect(self.refresh)
        ThemeController.current().changed.connect(self._apply_theme)
        self._apply_theme()
        disconnect = core.chats.changed.connect(self._follow)
        self.destroyed.connect(lambda _=None: disconnect())
        self.refresh()

    @property
    def selected(self) -> int:
        """Id of the conversation that is shown."""
        return self._selected

    @property
    def note(self) -> str:
        """What is said in place of an empty list."""
        return "" if self._note.isHidden() else self._note.text()

    def refresh(self) -> None:
        """Reads the conversations anew; the selected one stays selected."""
        search = self.search.text().strip()
        try:
            conversations = self._core.chats.conversations(search)
        except OctavoError as error:
            self._note.setText(str(error))
            self._note.show()
            return
        self._is_refreshing = True
        self.model.set_conversations(conversations)
        self._mark_selected()
        self._is_refreshing = False
        self._note.setText(
            "Nothing found." if search else "Your conversations will be listed here."
        )
        self._note.setVisible(not conversations)

    def select(self, conversation_id: int) -> None:
        """Shows a conversation as if it had been clicked."""
        self._selected = conversation_id
        self._mark_selected()
        self.conversation_selected.emit(conversation_id)

    def new_conversation(self) -> None:
        """Shows an empty conversation; it joins the list with its first message."""
        self.search.clear()
        self.select(NEW_CONVERSATION)

    def rename_current(self) -> None:
        """Opens the title of the selected conversation for writing."""
        if self.view.currentIndex().isValid():
            self.view.setFocus()
            self.view.edit(self.view.currentIndex())

    def delete_current(self) -> None:
        """Takes the selected conversation out of the list; a toast offers to undo that."""
        index = self.view.currentIndex()
        has_focus = self.view.hasFocus()
        if not index.isValid():
            return
        conversation = self.model.conversation(index.row())
        try:
            self._core.chats.delete(conversation.id)
        except OctavoError as error:
            self._show_error(error)
            return
        self.refresh()
        if conversation.id == self._selected:
            row = min(index.row(), self.model.rowCount() - 1)
            self.select(self.model.conversation(row).id if row >= 0 else NEW_CONVERSATION)
        if has_focus:
            self.view.setFocus()
        toast = find_toast(self)
        if toast is not None:
            toast.show_message(
                f"Deleted “{self.model.title_of(conversation)}”",
                action_text="Undo",
                action=lambda: self._restore(conversation.id),
            )

    def focus_search(self) -> None:
        self.search.setFocus()
        self.search.selectAll()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        is_escape = isinstance(event, QKeyEvent) and event.key() == Qt.Key.Key_Escape
        if watched is self.search and is_escape and self.search.text():
            if event.type() is QEvent.Type.KeyPress:
                self.search.clear()
            # Also as ShortcutOverride: the key is the search's before it is the window's.
            event.accept()
            return True
        return super().eventFilter(watched, event)

    def showEvent(self, event: QShowEvent) -> None:
        """The style sheet reaches the list only now; rows were measured without it."""
        super().showEvent(event)
        self.view.doItemsLayout()

    def _restore(self, conversation_id: int) -> None:
        try:
            self._core.chats.restore(conversation_id)
        except OctavoError as error:
            self._show_error(error)
            return
        self.refresh()
        self.select(conversation_id)

    def _rename(self, conversation_id: int, title: str) -> None:
        try:
            self._core.chats.rename(conversation_id, title)
        except OctavoError as error:
            self._show_error(error)

    def _follow(self, conversation_id: int) -> None:
        """A conversation that appears while an empty one is shown was made by its first message."""
        is_known = self.model.row_of(conversation_id) is not None
        if self._selected == NEW_CONVERSATION and not is_known and self._exists(conversation_id):
            self._selected = conversation_id
        self._refresh_timer.start()

    def _exists(self, conversation_id: int) -> bool:
        try:
            self._core.chats.conversation(conversation_id)
        except OctavoError:
            return False
        return True

    def _mark_selected(self) -> None:
        """Marks the row of the selected conversation, without telling anybody."""
        was_refreshing, self._is_refreshing = self._is_refreshing, True
        row = self.model.row_of(self._selected)
        self.view.setCurrentIndex(QModelIndex() if row is None else self.model.index(row))
        self._is_refreshing = was_refreshing

    def _take_current(self, current: QModelIndex) -> None:
        if self._is_refreshing or not current.isValid():
            return
        self._selected = self.model.conversation(current.row()).id
        is_by_key = self.view.is_by_key
        self.conversation_selected.emit(self._selected)
        if is_by_key:
            # Who walks through the list wants to go on; Return leads to the composer.
            self.view.setFocus()

    def _open_current(self) -> None:
        if self._selected != NEW_CONVERSATION:
            self.conversation_selected.emit(self._selected)

    def _apply_theme(self) -> None:
        theme = ThemeController.current().theme
        self._clear_action.setIcon(icon("x", theme.ink_soft))
        self.view.doItemsLayout()

    def _enter_results(self) -> None:
        """Return in the search field shows the first conversation found."""
        self._search_timer.stop()
        self.refresh()
        if self.model.rowCount():
            self.view.setFocus()
            self.select(self.model.conversation(0).id)

    def _open_menu(self, position: QPoint) -> None:
        if not self.view.indexAt(position).isValid():
            return
        menu = QMenu(self)
        menu.addAction(self.rename_action)
        menu.addAction(self.delete_action)
        menu.aboutToHide.connect(menu.deleteLater)
        menu.popup(self.view.viewport().mapToGlobal(position))

    def _show_error(self, error: OctavoError) -> None:
        UiTasks.current().failed.emit(error)


class _ConversationView(QListView):
    """Knows whether the row it is on was reached by a key; Return opens the row."""

    opened = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.is_by_key = False

    def keyPressEvent(self, event: QKeyEvent) -> None:
        # A title that is being written passes its Return on to here.
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.hasFocus():
            self.opened.emit()
            return
        self.is_by_key = True
        super().keyPressEvent(event)
        self.is_by_key = False


class _TitleDelegate(QStyledItemDelegate):
    """A title is written in the place of its row, not of the text in it."""

    def createEditor(
        self, parent: QWidget, _option: QStyleOptionViewItem, _index: Index
    ) -> QWidget:
        editor = QLineEdit(parent)
        editor.setAccessibleName("Title of the conversation")
        editor.setStyleSheet("min-height: 0px;")
        return editor

    def updateEditorGeometry(  # noqa: N802 (Qt's name)
        self, editor: QWidget, option: QStyleOptionViewItem, _index: Index
    ) -> None:
        # A row is as wide as the longest title, which may be wider than what is seen of it.
        rect: QRect = option.rect
        viewport = editor.parentWidget()
        assert viewport is not None
        editor.setGeometry(rect.intersected(viewport.rect()))

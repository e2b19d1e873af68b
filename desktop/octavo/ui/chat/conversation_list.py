"""`ConversationList`: all conversations, newest first; search, rename, delete with undo."""

from PySide6.QtCore import QModelIndex, QPoint, Qt, QTimer, Signal
from PySide6.QtGui import QAction, QKeySequence, QShowEvent
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
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.tokens import SPACE_TIGHT, SPACE_WITHIN
from octavo.ui.widgets.buttons import IconButton
from octavo.ui.widgets.labels import label
from octavo.ui.widgets.toast import find_toast

NEW_CONVERSATION = 0
"""Stands for a conversation that is not saved yet: its first message makes it."""
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
        self.search.setClearButtonEnabled(True)
        self.new_button = IconButton("plus", "New chat (Ctrl+N)")
        self.new_button.clicked.connect(self.new_conversation)
        self.model = ConversationModel(self)
        self.model.renamed.connect(self._rename)
        self.view = QListView()
        self.view.setModel(self.model)
        self.view.setAccessibleName("Conversations")
        self.view.setUniformItemSizes(True)
        self.view.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.view.setItemDelegate(_TitleDelegate(self.view))
        self.view.setEditTriggers(QAbstractItemView.EditTrigger.EditKeyPressed)
        self.view.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.view.customContextMenuRequested.connect(self._open_menu)
        self.view.selectionModel().currentChanged.connect(self._take_current)
        self._note = label("", "caption", wrap=True)
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
        ThemeController.current().changed.connect(self.view.doItemsLayout)
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
        self.view.edit(self.view.currentIndex())

    def delete_current(self) -> None:
        """Takes the selected conversation out of the list; a toast offers to undo that."""
        index = self.view.currentIndex()
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
        toast = find_toast(self)
        if toast is not None:
            toast.show_message(
                f"Deleted “{self.model.title_of(conversation)}”",
                action_text="Undo",
                action=lambda: self._restore(conversation.id),
            )

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
        self.conversation_selected.emit(self._selected)

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
        menu.addAction("Rename", QKeySequence(Qt.Key.Key_F2), self.rename_current)
        menu.addAction(self.delete_action)
        menu.aboutToHide.connect(menu.deleteLater)
        menu.popup(self.view.viewport().mapToGlobal(position))

    def _show_error(self, error: OctavoError) -> None:
        UiTasks.current().failed.emit(error)


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
        editor.setGeometry(option.rect)

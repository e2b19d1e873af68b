"""`ConversationModel`: the conversations as a Qt list model; a title written anew is passed on."""

from collections.abc import Sequence
from datetime import datetime

from PySide6.QtCore import (
    QAbstractListModel,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    Qt,
    Signal,
)

from octavo.chats.message import Conversation

Index = QModelIndex | QPersistentModelIndex


class ConversationModel(QAbstractListModel):
    """One row a conversation, in the order they are given."""

    renamed = Signal(int, str)
    """Id and the new title the person wrote."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._conversations: list[Conversation] = []

    @staticmethod
    def title_of(conversation: Conversation) -> str:
        return conversation.title or "New chat"

    def set_conversations(self, conversations: Sequence[Conversation]) -> None:
        """Takes a new list; where only titles or times changed, the view keeps its place."""
        is_same_order = [c.id for c in conversations] == [c.id for c in self._conversations]
        if is_same_order:
            self._conversations = list(conversations)
            if conversations:
                self.dataChanged.emit(self.index(0), self.index(len(conversations) - 1))
            return
        self.beginResetModel()
        self._conversations = list(conversations)
        self.endResetModel()

    def conversation(self, row: int) -> Conversation:
        return self._conversations[row]

    def row_of(self, conversation_id: int) -> int | None:
        for row, conversation in enumerate(self._conversations):
            if conversation.id == conversation_id:
                return row
        return None

    def rowCount(self, _parent: Index | None = None) -> int:
        return len(self._conversations)

    def flags(self, index: Index) -> Qt.ItemFlag:
        return super().flags(index) | Qt.ItemFlag.ItemIsEditable

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        if not index.isValid():
            return None
        conversation = self._conversations[index.row()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole):
            return self.title_of(conversation)
        if role == Qt.ItemDataRole.EditRole:
            return conversation.title
        if role == Qt.ItemDataRole.ToolTipRole:
            changed_at = datetime.fromtimestamp(conversation.updated_at).astimezone()
            return f"{self.title_of(conversation)}\n{changed_at:%d %B %Y, %H:%M}"
        return None

    def setData(self, index: Index, value: object, role: int = Qt.ItemDataRole.EditRole) -> bool:
        if role != Qt.ItemDataRole.EditRole or not index.isValid():
            return False
        conversation = self._conversations[index.row()]
        title = str(value).strip()
        if title != conversation.title:
            self.renamed.emit(conversation.id, title)
        return True

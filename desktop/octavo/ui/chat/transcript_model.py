"""`TranscriptModel`: the messages of one conversation as they are shown, repainted once a frame."""

from collections.abc import Sequence

from PySide6.QtCore import QObject, QTimer, Signal

from octavo.chats.message import Message, MessageStatus

FRAME_MS = 33


class TranscriptModel(QObject):
    """Holds messages in order; snapshots of one that grows are passed on at most once a frame."""

    reset = Signal()
    """All messages are other ones."""
    appended = Signal()
    """One message was added at the end."""
    changed = Signal(int)
    """The message with this index is a new snapshot."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._messages: list[Message] = []
        self._dirty = False
        self._frame = QTimer(self, singleShot=True, interval=FRAME_MS)
        self._frame.timeout.connect(self.flush)

    def __len__(self) -> int:
        return len(self._messages)

    def __getitem__(self, index: int) -> Message:
        return self._messages[index]

    @property
    def frame_ms(self) -> int:
        """The shortest time between two repaints of a growing message."""
        return self._frame.interval()

    def set_frame_cost(self, cost_ms: float) -> None:
        """Leaves the event loop at least two thirds of the time when a repaint is slow."""
        self._frame.setInterval(max(FRAME_MS, min(1000, int(3 * cost_ms))))

    def set_messages(self, messages: Sequence[Message]) -> None:
        self._frame.stop()
        self._dirty = False
        self._messages = list(messages)
        self.reset.emit()

    def show_snapshot(self, message: Message) -> None:
        """Takes a newer snapshot of the last message, or a message that follows it."""
        if not self._messages or self._messages[-1].id != message.id:
            self._messages.append(message)
            self.appended.emit()
            return
        self._messages[-1] = message
        self._dirty = True
        if message.status is not MessageStatus.STREAMING:
            self.flush()
        elif not self._frame.isActive():
            self._frame.start()

    def flush(self) -> None:
        """Passes the newest snapshot on now."""
        self._frame.stop()
        if self._dirty:
            self._dirty = False
            self.changed.emit(len(self._messages) - 1)

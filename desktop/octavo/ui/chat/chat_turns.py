"""`ChatTurns`: the answers under way, one per conversation, whichever conversation is shown."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from PySide6.QtCore import QObject, Signal

from octavo.chats.message import Message
from octavo.chats.session import ChatSession
from octavo.core import Core
from octavo.engine.sampling_params import SamplingParams
from octavo.ui.tasks import spawn


class ChatTurns(QObject):
    """Runs turns in the background and keeps the newest snapshot of each answer."""

    began = Signal(int)
    """Conversation whose turn is saved: its messages are other ones now."""
    updated = Signal(int, object)
    """Conversation and the newest snapshot of its answer."""
    ended = Signal(int)
    """Conversation whose answer is done, stopped or failed."""
    failed = Signal(int, object)
    """Conversation and the OctavoError for which its turn was refused or could not be saved."""

    def __init__(self, core: Core, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._sessions: dict[int, ChatSession] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._latest: dict[int, Message] = {}

    def is_busy(self, conversation_id: int) -> bool:
        return conversation_id in self._tasks

    def latest(self, conversation_id: int) -> Message | None:
        """The answer that is being written, newer than the one that is saved."""
        return self._latest.get(conversation_id)

    def send(self, conversation_id: int, text: str) -> None:
        """Begins a turn with a message of the person's."""
        session = self._session(conversation_id)
        self._start(conversation_id, session.send(text, self._sampling()))

    def regenerate(self, conversation_id: int) -> None:
        """Begins a new answer to the last message."""
        session = self._session(conversation_id)
        self._start(conversation_id, session.regenerate(self._sampling()))

    def stop(self, conversation_id: int) -> None:
        """Stops the answer; it keeps the text it has."""
        if (task := self._tasks.get(conversation_id)) is not None:
            task.cancel()

    def _start(self, conversation_id: int, stream: AsyncGenerator[Message, None]) -> None:
        task = spawn(
            self._run(conversation_id, stream),
            lambda error: self.failed.emit(conversation_id, error),
        )
        self._tasks[conversation_id] = task
        task.add_done_callback(lambda _: self._end(conversation_id))

    async def _run(self, conversation_id: int, stream: AsyncGenerator[Message, None]) -> None:
        async with contextlib.aclosing(stream) as snapshots:
            async for message in snapshots:
                is_first = conversation_id not in self._latest
                self._latest[conversation_id] = message
                if is_first:
                    self.began.emit(conversation_id)
                self.updated.emit(conversation_id, message)

    def _end(self, conversation_id: int) -> None:
        self._tasks.pop(conversation_id, None)
        self._latest.pop(conversation_id, None)
        self._sessions.pop(conversation_id, None)
        self.ended.emit(conversation_id)

    def _session(self, conversation_id: int) -> ChatSession:
        if conversation_id not in self._sessions:
            self._sessions[conversation_id] = ChatSession(
                self._core.chats, self._core.host, conversation_id
            )
        return self._sessions[conversation_id]

    def _sampling(self) -> SamplingParams:
        chat = self._core.settings.value.chat
        return SamplingParams(
            temperature=chat.temperature,
            top_p=chat.top_p,
            max_tokens=chat.max_tokens,
            seed=chat.seed,
        )

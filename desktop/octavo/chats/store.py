"""`ChatStore`: the conversations on disk. Every SQL statement stands here or in the migrations."""

import contextlib
import json
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from octavo.chats.message import (
    Conversation,
    Message,
    MessageStatus,
    Role,
    metrics_from_json,
    metrics_to_json,
    title_from,
)
from octavo.chats.migrations import MIGRATIONS, Migration, backups_of, check_version, migrate
from octavo.engine.request import FinishReason, RequestMetrics
from octavo.errors import ChatStoreError, OctavoError, StorageError
from octavo.events import Event

logger = logging.getLogger(__name__)

UNDO_PERIOD_S = 24 * 60 * 60.0
"""How long what was deleted can be brought back."""
OLDEST_SQLITE = (3, 37, 0)
"""The first with STRICT tables."""
MAX_SEARCH_WORDS = 16
IN_MEMORY = Path(":memory:")
"""In place of a file: a store that ends with the process, as for a chat in the terminal."""

_UNSEPARATED_SCRIPTS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: without spaces an index of words finds little."""


class ChatStore:
    """Conversations and their messages in one SQLite file.

    It owns one connection, which belongs to the thread that opened it. The first Octavo to open a
    file owns it until it ends, however it ends: a lock file beside it says so. Only the owner
    changes the schema, purges, and takes answers that are still streaming for interrupted ones; a
    second Octavo may read and write meanwhile.

    Raises:
        ChatStoreError: every method may: the file is damaged, foreign, or a newer Octavo's.
        StorageError: every method may: the disk is full, or the file cannot be read or written.
            What was acknowledged before stays.
    """

    def __init__(
        self,
        path: Path,
        *,
        migrations: Sequence[Migration] = MIGRATIONS,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Opens the file, creates it where there is none, and brings its schema up to date."""
        self._path = path
        self._now = now
        self.changed: Event[int] = Event()
        """Id of the conversation whose title, place in the list, or messages are new; not emitted
        for each save of an answer that grows."""
        self._changed_ids: list[int] = []
        self._is_closed = False
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            opening.callback(self._resources.close)
            with self._translated_errors():
                self._open(migrations)
            opening.pop_all()

    def __enter__(self) -> "ChatStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def is_owner(self) -> bool:
        """Whether this Octavo was the first to open the file."""
        return self._is_owner

    def close(self) -> None:
        """Who reads or writes later, a timer of the closing window say, gets a ChatStoreError."""
        self._is_closed = True
        self._resources.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Saves all that its block changes, or nothing; `changed` is emitted once it is saved."""
        with self._translated_errors():
            is_nested = self._connection.in_transaction
        if is_nested:
            yield
            return
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        finally:
            changed, self._changed_ids = self._changed_ids, []
            if self._connection.in_transaction:
                self._run("ROLLBACK")
        for conversation_id in dict.fromkeys(changed):
            self.changed.emit(conversation_id)

    def conversations(self, search: str = "") -> list[Conversation]:
        """All conversations, the one used last first.

        Args:
            search: words; kept are conversations where one message, or the title, has them all.
        """
        rows = self._run(
            "SELECT * FROM conversation WHERE deleted_at IS NULL ORDER BY updated_at DESC, id DESC"
        )
        conversations = [_conversation(row) for row in rows]
        words = search.replace("\0", " ").split()[:MAX_SEARCH_WORDS]
        if not words:
            return conversations
        found = self._conversations_with(words)
        return [
            conversation
            for conversation in conversations
            if conversation.id in found
            or all(word.casefold() in conversation.title.casefold() for word in words)
        ]

    def conversation(self, conversation_id: int) -> Conversation:
        rows = self._run(
            "SELECT * FROM conversation WHERE id = ? AND deleted_at IS NULL", conversation_id
        )
        if not rows:
            raise ChatStoreError(
                "This conversation was deleted.", hint="Undo, or begin a new conversation."
            )
        return _conversation(rows[0])

    def create_conversation(
        self, title: str = "", model: str = "", system_prompt: str = ""
    ) -> Conversation:
        """Begins a conversation; without a title it gets one from its first message."""
        now = self._now()
        rows = self._run(
            "INSERT INTO conversation (title, model, system_prompt, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?) RETURNING *",
            _storable(title),
            model,
            _storable(system_prompt),
            now,
            now,
        )
        conversation = _conversation(rows[0])
        self._emit(conversation.id)
        return conversation

    def update_conversation(
        self, conversation_id: int, *, model: str | None = None, system_prompt: str | None = None
    ) -> None:
        """Sets what is not None; neither moves the conversation in the list."""
        prompt = None if system_prompt is None else _storable(system_prompt)
        self._run(
            "UPDATE conversation SET model = coalesce(?, model),"
            " system_prompt = coalesce(?, system_prompt) WHERE id = ?",
            model,
            prompt,
            conversation_id,
        )
        self._emit(conversation_id)

    def rename(self, conversation_id: int, title: str) -> None:
        """Sets the title; an empty one goes back to that of the first message."""
        title = " ".join(_storable(title).split())
        if not title:
            first = self._run(
                "SELECT content FROM message WHERE conversation_id = ? AND role = 'user'"
                " AND deleted_at IS NULL ORDER BY id LIMIT 1",
                conversation_id,
            )
            title = title_from(first[0]["content"]) if first else ""
        self._run("UPDATE conversation SET title = ? WHERE id = ?", title, conversation_id)
        self._emit(conversation_id)

    def delete(self, conversation_id: int) -> None:
        """Takes the conversation out of the list; `restore` brings it back for a day."""
        self._run(
            "UPDATE conversation SET deleted_at = ? WHERE id = ? AND deleted_at IS NULL",
            self._now(),
            conversation_id,
        )
        self._emit(conversation_id)

    def restore(self, conversation_id: int) -> None:
        self._run("UPDATE conversation SET deleted_at = NULL WHERE id = ?", conversation_id)
        self._emit(conversation_id)

    def purge_deleted(self, older_than_s: float = UNDO_PERIOD_S) -> int:
        """Removes for good what was deleted longer ago; returns how many conversations."""
        limit = self._now() - older_than_s
        with self.transaction():
            purged = self._run("DELETE FROM conversation WHERE deleted_at <= ? RETURNING id", limit)
            self._run("DELETE FROM message WHERE deleted_at <= ?", limit)
        return len(purged)

    def messages(self, conversation_id: int) -> list[Message]:
        """The conversation's messages in their order."""
        rows = self._run(
            "SELECT * FROM message WHERE conversation_id = ? AND deleted_at IS NULL ORDER BY id",
            conversation_id,
        )
        return [_message(row) for row in rows]

    def add_message(
        self,
        conversation_id: int,
        role: Role,
        content: str,
        *,
        status: MessageStatus = MessageStatus.DONE,
        model: str = "",
    ) -> Message:
        """Appends a message; the person's first one also names the conversation."""
        now = self._now()
        content = _storable(content)
        with self.transaction():
            self.conversation(conversation_id)
            rows = self._run(
                "INSERT INTO message (conversation_id, role, content, status, model, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?) RETURNING *",
                conversation_id,
                role.value,
                content,
                status.value,
                model,
                now,
            )
            title = title_from(content) if role is Role.USER else ""
            self._run(
                "UPDATE conversation SET updated_at = ?,"
                " title = CASE title WHEN '' THEN ? ELSE title END WHERE id = ?",
                now,
                title,
                conversation_id,
            )
        self._emit(conversation_id)
        return _message(rows[0])

    def update_message(
        self,
        message_id: int,
        *,
        content: str | None = None,
        status: MessageStatus | None = None,
        metrics: RequestMetrics | None = None,
        error: str | None = None,
        finish_reason: FinishReason | None = None,
        dropped_messages: int | None = None,
    ) -> Message:
        """Sets what is not None and returns the message as it is now."""
        rows = self._run(
            "UPDATE message SET content = coalesce(?, content), status = coalesce(?, status),"
            " metrics = coalesce(?, metrics), error = coalesce(?, error),"
            " finish_reason = coalesce(?, finish_reason),"
            " dropped_messages = coalesce(?, dropped_messages) WHERE id = ? RETURNING *",
            None if content is None else _storable(content),
            None if status is None else status.value,
            None if metrics is None else metrics_to_json(metrics),
            None if error is None else _storable(error),
            None if finish_reason is None else finish_reason.value,
            dropped_messages,
            message_id,
        )
        if not rows:
            raise ChatStoreError(
                f"Message {message_id} is no longer in the database.",
                hint="Its conversation was deleted for good meanwhile.",
            )
        message = _message(rows[0])
        if status is not None:
            self._emit(message.conversation_id)
        return message

    def delete_messages_from(self, conversation_id: int, message_id: int) -> tuple[int, ...]:
        """Takes this message and all after it away; returns their ids for `restore_messages`."""
        rows = self._run(
            "UPDATE message SET deleted_at = ? WHERE conversation_id = ? AND id >= ?"
            " AND deleted_at IS NULL RETURNING id",
            self._now(),
            conversation_id,
            message_id,
        )
        self._emit(conversation_id)
        return tuple(sorted(row["id"] for row in rows))

    def restore_messages(self, conversation_id: int, message_ids: Sequence[int]) -> None:
        """Brings messages back that `delete_messages_from` took away."""
        self._run(
            "UPDATE message SET deleted_at = NULL WHERE conversation_id = ?"
            " AND id IN (SELECT value FROM json_each(?))",
            conversation_id,
            json.dumps(list(message_ids)),
        )
        self._emit(conversation_id)

    def _open(self, migrations: Sequence[Migration]) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ChatStoreError(
                f"This Python brings SQLite {sqlite3.sqlite_version}; the conversations need 3.37.",
                hint="Install a newer Python and start Octavo with that.",
            )
        if self._path == IN_MEMORY:
            self._is_owner = True
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._is_owner = self._take_ownership()
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        self._resources.callback(self._connection.close)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA busy_timeout = 5000")
        version = check_version(self._connection, self._path, len(migrations))
        if not self._is_owner and version != len(migrations):
            raise ChatStoreError(
                f"The conversations in {self._path} must be brought to a new format, and another"
                " Octavo is using them.",
                hint="Close the other one, then start again.",
            )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        if self._is_owner:
            migrate(self._connection, self._path, migrations)
        self._connection.execute("PRAGMA foreign_keys = ON")
        if self._is_owner:
            self._run("UPDATE message SET status = 'interrupted' WHERE status = 'streaming'")
            purged = self.purge_deleted()
            logger.info("Opened the conversations, purged %d deleted ones", purged)

    def _take_ownership(self) -> bool:
        """Locks a file beside the database with SQLite's own locks.

        They work alike on every system, and end with the process even if it is killed.
        """
        lock = sqlite3.connect(
            self._path.with_name(f"{self._path.name}.lock"), timeout=0, isolation_level=None
        )
        self._resources.callback(lock.close)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    def _conversations_with(self, words: Sequence[str]) -> set[int]:
        """Conversations where one message has all the words, each as the beginning of a word."""
        scanned = [
            word
            for word in words
            if _UNSEPARATED_SCRIPTS.search(word) or not any(map(str.isalnum, word))
        ]
        indexed = [word for word in words if word not in scanned]
        if indexed:
            quoted = " ".join('"' + word.replace('"', '""') + '"*' for word in indexed)
            rows = self._run(
                "SELECT DISTINCT message.conversation_id FROM message_text"
                " JOIN message ON message.id = message_text.rowid"
                " WHERE message_text MATCH ? AND message.deleted_at IS NULL AND NOT EXISTS"
                " (SELECT 1 FROM json_each(?) WHERE instr(message.content, value) = 0)",
                _storable(quoted),
                json.dumps(scanned),
            )
        else:
            rows = self._run(
                "SELECT DISTINCT conversation_id FROM message WHERE deleted_at IS NULL AND NOT"
                " EXISTS (SELECT 1 FROM json_each(?) WHERE instr(content, value) = 0)",
                json.dumps(scanned),
            )
        return {row["conversation_id"] for row in rows}

    def _emit(self, conversation_id: int) -> None:
        if self._connection.in_transaction:
            self._changed_ids.append(conversation_id)
        else:
            self.changed.emit(conversation_id)

    def _run(self, statement: str, *parameters: object) -> list[Any]:
        with self._translated_errors():
            return self._connection.execute(statement, parameters).fetchall()

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            if self._is_closed:
                raise ChatStoreError(
                    f"The conversations in {self._path} are closed.", hint="Start Octavo again."
                ) from error
            # Wrong thread, wrong SQL: our own mistake, not the file's.
            raise
        except sqlite3.Error as error:
            raise _translated(error, self._path) from error
        except OSError as error:
            raise StorageError(
                f"The conversations in {self._path} cannot be kept: {error.strerror or error}.",
                hint="Free some space or correct the folder's permissions, then try again.",
                path=self._path,
            ) from error


def _translated(error: sqlite3.Error, path: Path) -> OctavoError:
    """SQLite's primary result code decides what the person is told."""
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return StorageError(
            f"The disk is full: the conversations in {path} cannot be saved.",
            hint="What was saved before is kept. Free some space, then try again.",
            path=path,
        )
    if primary in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    ):
        return StorageError(
            f"The conversations in {path} cannot be read or written: {error}.",
            hint="Check the permissions of file and folder and the space on the disk, then try"
            " again.",
            path=path,
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        backups = backups_of(path)
        remedy = f"put the backup {backups[-1]} in its place" if backups else "recover it"
        return ChatStoreError(
            f"The conversations in {path} are damaged: {error}.",
            hint=f"The file is kept as it is. Move it elsewhere to begin with an empty list, or"
            f" {remedy}.",
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ChatStoreError(
            f"Another program has held the conversations in {path} for more than 5 seconds.",
            hint="Close it, then try again.",
        )
    return ChatStoreError(
        f"The conversations in {path} cannot be used: {error}.",
        hint="The file is kept as it is; the log names the cause.",
    )


def _storable(text: str) -> str:
    """Replaces half surrogate pairs, which a clipboard may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _conversation(row: sqlite3.Row) -> Conversation:
    return Conversation(
        id=row["id"],
        title=row["title"],
        model=row["model"],
        system_prompt=row["system_prompt"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _message(row: sqlite3.Row) -> Message:
    finish_reason = row["finish_reason"]
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        role=Role(row["role"]),
        content=row["content"],
        status=MessageStatus(row["status"]),
        error=row["error"],
        model=row["model"],
        metrics=metrics_from_json(row["metrics"]) if row["metrics"] else None,
        created_at=row["created_at"],
        finish_reason=FinishReason(finish_reason) if finish_reason else None,
        dropped_messages=row["dropped_messages"],
    )

"""The database's schema, one entry a version, and the step from one to the next.

An entry that has been published is never edited: a change is a new entry at the end.
"""

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from octavo.errors import ChatStoreError

Migration = tuple[str, ...]
"""SQL statements that lead from the version before to this one."""

# Long texts stand last in a row, so that reading the rest of it does not have to pass over them.
VERSION_1: Migration = (
    """
    CREATE TABLE conversation (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        deleted_at REAL,
        system_prompt TEXT NOT NULL DEFAULT ''
    ) STRICT
    """,
    """
    CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id INTEGER NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
        status TEXT NOT NULL
            CHECK (status IN ('streaming', 'done', 'stopped', 'failed', 'interrupted')),
        error TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        metrics TEXT,
        finish_reason TEXT,
        dropped_messages INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL,
        deleted_at REAL,
        content TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX message_by_conversation ON message (conversation_id, id)",
    "CREATE INDEX streaming_message ON message (id) WHERE status = 'streaming'",
    "CREATE INDEX deleted_message ON message (deleted_at) WHERE deleted_at IS NOT NULL",
    """
    CREATE VIRTUAL TABLE message_text USING fts5 (
        content,
        content='message', content_rowid='id',
        tokenize='unicode61 remove_diacritics 2', prefix='1 2 3'
    )
    """,
    """
    CREATE TRIGGER message_inserted AFTER INSERT ON message BEGIN
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END
    """,
    """
    CREATE TRIGGER message_deleted AFTER DELETE ON message BEGIN
        INSERT INTO message_text (message_text, rowid, content)
            VALUES ('delete', old.id, old.content);
    END
    """,
    """
    CREATE TRIGGER message_updated AFTER UPDATE OF content ON message
    WHEN old.content IS NOT new.content BEGIN
        INSERT INTO message_text (message_text, rowid, content)
            VALUES ('delete', old.id, old.content);
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END
    """,
)

MIGRATIONS: tuple[Migration, ...] = (VERSION_1,)


def schema_version(connection: sqlite3.Connection) -> int:
    """Version of the schema in the file; 0 in an empty one."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    assert isinstance(version, int)
    return version


def check_version(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    """Reads the version without writing anything.

    Raises:
        ChatStoreError: the file is a newer Octavo's, or some other program's.
    """
    version = schema_version(connection)
    if version > newest:
        raise ChatStoreError(
            f"The conversations in {path} were written by a newer Octavo (format {version}; this"
            f" one knows {newest}).",
            hint="The file is left as it is. Update Octavo to open it.",
        )
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise ChatStoreError(
            f"{path} is a database of another program.",
            hint="The file is left as it is. Move it elsewhere to begin with an empty list.",
        )
    return version


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Brings the file to the newest version, all of it or nothing, after a backup beside it."""
    version = schema_version(connection)
    if version == len(migrations):
        return
    if version > 0:
        _back_up(connection, path, version)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for migration in migrations[version:]:
            for statement in migration:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def backups_of(path: Path) -> list[Path]:
    """Backups beside the file, oldest first."""
    return sorted(
        path.parent.glob(f"{path.name}.v*.bak"), key=lambda backup: backup.stat().st_mtime
    )


def _back_up(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Takes its final name only when it is whole, so that a killed backup never passes for one."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    backup = path.with_name(f"{path.name}.v{version}-{stamp}.bak")
    unfinished = backup.with_name(f"{backup.name}.part")
    try:
        unfinished.unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(unfinished),))
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(backup)
    finally:
        unfinished.unlink(missing_ok=True)

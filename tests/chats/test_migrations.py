"""From one schema to the next: all or nothing, and never without a backup."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from octavo.chats.message import Role
from octavo.chats.migrations import MIGRATIONS, VERSION_1, Migration, backups_of
from octavo.chats.store import ChatStore
from octavo.errors import ChatStoreError, StorageError

NEXT: Migration = (
    "ALTER TABLE conversation ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0",
    "UPDATE conversation SET title = title || '!'",
)
BROKEN: Migration = ("UPDATE conversation SET title = 'lost'", "ALTER TABLE nowhere ADD COLUMN x")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.sqlite3"


def values(path: Path, statement: str) -> list[object]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute(statement)]


def make_version_1(path: Path) -> None:
    with ChatStore(path, migrations=(VERSION_1,)) as store:
        conversation = store.create_conversation()
        store.add_message(conversation.id, Role.USER, "hello")


def test_new_file_has_the_newest_version_and_no_backup(path: Path) -> None:
    ChatStore(path).close()
    assert values(path, "PRAGMA user_version") == [len(MIGRATIONS)]
    assert backups_of(path) == []


def test_published_schema_is_not_edited() -> None:
    """Files of version 1 are on people's disks: change the schema with a new migration."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in VERSION_1:
            connection.execute(statement)
        names = connection.execute(
            "SELECT name FROM pragma_table_info('conversation')"
            " UNION ALL SELECT name FROM pragma_table_info('message')"
        ).fetchall()
    assert " ".join(name for (name,) in names) == (
        "id title model created_at updated_at deleted_at system_prompt"
        " id conversation_id role status error model metrics finish_reason"
        " dropped_messages created_at deleted_at content"
    )


def test_older_file_is_migrated_after_a_backup(path: Path) -> None:
    make_version_1(path)
    with ChatStore(path, migrations=(VERSION_1, NEXT)) as store:
        assert [item.title for item in store.conversations()] == ["hello!"]
    assert values(path, "PRAGMA user_version") == [2]
    [backup] = backups_of(path)
    assert values(backup, "PRAGMA user_version") == [1]
    assert values(backup, "SELECT content FROM message") == ["hello"]
    assert ".v1-" in backup.name
    ChatStore(path, migrations=(VERSION_1, NEXT)).close()
    assert backups_of(path) == [backup], "nothing to migrate, nothing to back up"


def test_backup_opens_in_the_older_octavo(path: Path) -> None:
    make_version_1(path)
    ChatStore(path, migrations=(VERSION_1, NEXT)).close()
    backups_of(path)[0].replace(path)
    with ChatStore(path, migrations=(VERSION_1,)) as store:
        assert [item.title for item in store.conversations("hello")] == ["hello"]


def test_failed_migration_changes_nothing(path: Path) -> None:
    make_version_1(path)
    with pytest.raises(ChatStoreError, match="no such table"):
        ChatStore(path, migrations=(VERSION_1, NEXT, BROKEN))
    assert values(path, "PRAGMA user_version") == [1]
    with ChatStore(path, migrations=(VERSION_1,)) as store:
        assert [item.title for item in store.conversations()] == ["hello"]


def test_no_migration_without_its_backup(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_version_1(path)

    def refuse(source: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        ChatStore(path, migrations=(VERSION_1, NEXT))
    assert values(path, "PRAGMA user_version") == [1]
    assert not list(path.parent.glob("*.part"))


def test_newer_file_is_left_alone(path: Path) -> None:
    ChatStore(path, migrations=(VERSION_1, NEXT)).close()
    before = path.read_bytes()
    with pytest.raises(ChatStoreError, match="newer Octavo") as caught:
        ChatStore(path, migrations=(VERSION_1,))
    assert caught.value.hint
    assert path.read_bytes() == before


def test_other_program_s_database_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipe (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(ChatStoreError, match="another program"):
        ChatStore(path)
    assert path.read_bytes() == before


def test_no_migration_while_another_octavo_uses_the_file(path: Path) -> None:
    with (
        ChatStore(path, migrations=(VERSION_1,)),
        pytest.raises(ChatStoreError, match="another Octavo"),
    ):
        ChatStore(path, migrations=(VERSION_1, NEXT))
    assert values(path, "PRAGMA user_version") == [1]

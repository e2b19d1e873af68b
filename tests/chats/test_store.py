"""The conversations on disk: kept, searched, deleted with a way back, and safe from damage."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.chats.message import Message, MessageStatus, Role
from octavo.chats.store import IN_MEMORY, UNDO_PERIOD_S, ChatStore
from octavo.engine.request import FinishReason
from octavo.errors import ChatStoreError, StorageError
from tests.chats.fake_model import METRICS

HOLD_THE_STORE = """
import sys, time
from pathlib import Path
from octavo.chats.store import ChatStore
store = ChatStore(Path(sys.argv[1]))
print(store.is_owner, flush=True)
time.sleep(60)
"""


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        self.time += 1.0
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.sqlite3"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[ChatStore]:
    with ChatStore(path, now=clock) as store:
        yield store


def ask(store: ChatStore, question: str, answer: str = "") -> int:
    conversation = store.create_conversation()
    store.add_message(conversation.id, Role.USER, question)
    if answer:
        store.add_message(conversation.id, Role.ASSISTANT, answer)
    return conversation.id


def titles(store: ChatStore, search: str = "") -> list[str]:
    return [conversation.title for conversation in store.conversations(search)]


def assert_index_is_sound(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection.execute(
            "INSERT INTO message_text (message_text, rank) VALUES ('integrity-check', 1)"
        )


def test_messages_come_back_after_closing(path: Path, clock: Clock) -> None:
    with ChatStore(path, now=clock) as store:
        conversation = store.create_conversation(model="smollm2", system_prompt="Be brief.")
        question = store.add_message(conversation.id, Role.USER, "Why?\nTell me 👋")
        answer = store.add_message(
            conversation.id, Role.ASSISTANT, "", status=MessageStatus.STREAMING, model="smollm2"
        )
        answer = store.update_message(
            answer.id,
            content="Because.",
            status=MessageStatus.DONE,
            metrics=METRICS,
            finish_reason=FinishReason.LENGTH,
            dropped_messages=2,
        )
    assert answer.metrics == METRICS
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.dropped_messages == 2
    with ChatStore(path) as store:
        [found] = store.conversations()
        assert found == store.conversation(conversation.id)
        assert (found.title, found.model, found.system_prompt) == ("Why?", "smollm2", "Be brief.")
        assert found.created_at == conversation.created_at
        assert found.updated_at > found.created_at
        assert store.messages(conversation.id) == [question, answer]


def test_update_leaves_the_rest_as_it_is(store: ChatStore) -> None:
    conversation_id = ask(store, "question", "answer")
    before = store.messages(conversation_id)[1]
    after = store.update_message(before.id, status=MessageStatus.FAILED, error="Out of memory.")
    assert after == Message(
        id=before.id,
        conversation_id=conversation_id,
        role=Role.ASSISTANT,
        content="answer",
        status=MessageStatus.FAILED,
        error="Out of memory.",
        model="",
        metrics=None,
        created_at=before.created_at,
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(text=st.text(st.characters()), search=st.text())
def test_any_text_is_kept_and_searched_for(store: ChatStore, text: str, search: str) -> None:
    conversation = store.create_conversation()
    message = store.add_message(conversation.id, Role.USER, text)
    assert message.content == text.encode("utf-8", "replace").decode()
    assert store.messages(conversation.id) == [message]
    store.conversations(search)
    store.conversations(text)


def test_list_begins_with_what_was_used_last(store: ChatStore) -> None:
    first = ask(store, "first")
    ask(store, "second")
    assert titles(store) == ["second", "first"]
    store.add_message(first, Role.USER, "again")
    assert titles(store) == ["first", "second"]
    store.update_conversation(first, model="other")
    assert store.conversation(first).model == "other"


def test_title_is_the_first_message_s_unless_renamed(store: ChatStore) -> None:
    conversation_id = ask(store, "Why is the sky blue?")
    store.add_message(conversation_id, Role.USER, "And the sea?")
    assert titles(store) == ["Why is the sky blue?"]
    store.rename(conversation_id, "  The \n sky ")
    store.add_message(conversation_id, Role.USER, "And now?")
    assert titles(store) == ["The sky"]
    store.rename(conversation_id, " ")
    assert titles(store) == ["Why is the sky blue?"]


def test_rename_of_an_empty_conversation_to_nothing(store: ChatStore) -> None:
    conversation = store.create_conversation("Plans")
    store.rename(conversation.id, "")
    assert titles(store) == [""]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", ["Tokyo", "Cooking", "Physics"]),
        ("quantum", ["Physics"]),
        ("QUANT", ["Physics"]),
        ("quantum leap", ["Physics"]),
        ("quantum pasta", []),
        ("antum", []),
        ("creme brulee", ["Cooking"]),
        ("CÖÖK", ["Cooking"]),
        ("ookin", ["Cooking"]),
        ("東京", ["Tokyo"]),
        ("京タワ", ["Tokyo"]),
        ("tower 京タワ", ["Tokyo"]),
        ("tower 大阪", []),
        ("🍮", ["Cooking"]),
        ('"', ["Physics"]),
        ('say "hi', ["Physics"]),
        ("AND OR NOT ( * ^ :", []),
        ("nothing", []),
        ("x\0y", []),
        (" ".join(["physics"] * 5000), ["Physics"]),
    ],
)
def test_search(store: ChatStore, search: str, found: list[str]) -> None:
    for title, text in [
        ("Physics", 'A quantum leap, say "hi there".'),
        ("Cooking", "Crème brûlée 🍮 and pasta"),
        ("Tokyo", "高い東京タワー is a tower"),
    ]:
        store.rename(ask(store, title, text), title)
    assert titles(store, search) == found


def test_search_follows_a_growing_answer_and_deletion(store: ChatStore, path: Path) -> None:
    conversation_id = ask(store, "Question", "alpha")
    answer = store.messages(conversation_id)[1]
    store.update_message(answer.id, content="alpha beta")
    assert titles(store, "beta") == ["Question"]
    store.update_message(answer.id, content="gamma")
    assert titles(store, "beta") == []
    store.delete_messages_from(conversation_id, answer.id)
    assert titles(store, "gamma") == []
    store.restore_messages(conversation_id, [answer.id])
    assert titles(store, "gamma") == ["Question"]
    store.purge_deleted(0)
    assert_index_is_sound(path)


def test_delete_can_be_undone(store: ChatStore) -> None:
    conversation_id = ask(store, "Question", "Answer")
    messages = store.messages(conversation_id)
    store.delete(conversation_id)
    assert titles(store) == titles(store, "answer") == []
    with pytest.raises(ChatStoreError, match="deleted"):
        store.conversation(conversation_id)
    with pytest.raises(ChatStoreError, match="deleted"):
        store.add_message(conversation_id, Role.USER, "too late")
    store.restore(conversation_id)
    assert titles(store) == ["Question"]
    assert store.messages(conversation_id) == messages


def test_what_was_deleted_yesterday_is_purged_at_the_next_start(path: Path, clock: Clock) -> None:
    with ChatStore(path, now=clock) as store:
        store.delete(ask(store, "yesterday"))
        kept = ask(store, "kept", "old answer")
        store.delete_messages_from(kept, store.messages(kept)[1].id)
        clock.time += UNDO_PERIOD_S
        today = ask(store, "today")
        store.delete(today)
    with ChatStore(path, now=clock) as store:
        store.restore(today)
        assert titles(store) == ["today", "kept"]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        texts = [row[0] for row in connection.execute("SELECT content FROM message ORDER BY id")]
    assert texts == ["kept", "today"]
    assert_index_is_sound(path)


def test_messages_are_taken_away_from_one_on(store: ChatStore) -> None:
    conversation_id = ask(store, "one", "two")
    other = ask(store, "other", "more")
    store.add_message(conversation_id, Role.USER, "three")
    first, second, third = store.messages(conversation_id)
    assert store.delete_messages_from(conversation_id, second.id) == (second.id, third.id)
    assert store.messages(conversation_id) == [first]
    assert len(store.messages(other)) == 2
    store.restore_messages(conversation_id, (second.id, third.id))
    assert store.messages(conversation_id) == [first, second, third]


def test_changed_names_the_conversation(store: ChatStore) -> None:
    seen: list[int] = []
    store.changed.connect(seen.append)
    conversation = store.create_conversation()
    answer = store.add_message(conversation.id, Role.ASSISTANT, "", status=MessageStatus.STREAMING)
    del seen[:]
    store.update_message(answer.id, content="a growing answer is no news")
    assert seen == []
    store.update_message(answer.id, status=MessageStatus.DONE)
    store.rename(conversation.id, "title")
    store.delete(conversation.id)
    store.restore(conversation.id)
    assert seen == [conversation.id] * 4


def test_transaction_saves_all_or_nothing(store: ChatStore) -> None:
    seen: list[int] = []
    conversation_id = ask(store, "question")
    store.changed.connect(seen.append)
    with store.transaction():
        store.add_message(conversation_id, Role.ASSISTANT, "answer")
        store.add_message(conversation_id, Role.USER, "more")
        assert seen == []
    assert seen == [conversation_id]

    def break_off() -> None:
        with store.transaction():
            store.add_message(conversation_id, Role.ASSISTANT, "lost")
            store.add_message(12345, Role.USER, "no such conversation")

    with pytest.raises(ChatStoreError, match="deleted"):
        break_off()
    assert seen == [conversation_id]
    assert len(store.messages(conversation_id)) == 3


def test_message_of_a_purged_conversation(store: ChatStore) -> None:
    conversation_id = ask(store, "question", "answer")
    answer = store.messages(conversation_id)[1]
    store.delete(conversation_id)
    assert store.purge_deleted(0) == 1
    with pytest.raises(ChatStoreError, match="no longer"):
        store.update_message(answer.id, content="more")


def test_answers_of_a_killed_octavo_are_interrupted(path: Path) -> None:
    with ChatStore(path) as store:
        conversation_id = ask(store, "question")
        store.add_message(conversation_id, Role.ASSISTANT, "so far", status=MessageStatus.STREAMING)
    with ChatStore(path) as store:
        answer = store.messages(conversation_id)[1]
        assert (answer.status, answer.content) == (MessageStatus.INTERRUPTED, "so far")


def test_answers_of_another_living_octavo_are_left_alone(path: Path) -> None:
    with ChatStore(path) as store:
        conversation_id = ask(store, "question")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_STORE, str(path)], stdout=subprocess.PIPE, text=True
    )
    with other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline().strip() == "True"
            with ChatStore(path) as store:
                assert not store.is_owner
                answer = store.add_message(
                    conversation_id, Role.ASSISTANT, "mine", status=MessageStatus.STREAMING
                )
            with ChatStore(path) as store:
                assert store.messages(conversation_id)[-1] == answer
        finally:
            other.kill()
    with ChatStore(path) as store:
        assert store.is_owner, "a killed process holds no lock"
        assert store.messages(conversation_id)[-1].status is MessageStatus.INTERRUPTED


def test_garbage_is_refused_and_kept(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(ChatStoreError, match="damaged") as caught:
        ChatStore(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert path.read_bytes() == b"this is no database" * 1000


def test_damage_inside_is_told_and_kept(path: Path) -> None:
    with ChatStore(path) as store:
        conversation_id = ask(store, "question", "a long answer " * 5000)
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 3 :] = b"\x55" * (len(damaged) - 4096 * 3)
    path.write_bytes(damaged)
    path.with_name("chats.sqlite3.v1-20260101-000000.bak").write_bytes(b"")
    with pytest.raises(ChatStoreError, match="damaged") as caught, ChatStore(path) as store:
        store.messages(conversation_id)
    assert "v1-20260101-000000.bak" in caught.value.hint
    assert len(path.read_bytes()) == len(damaged)


def test_empty_file_is_a_new_one(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with ChatStore(path) as store:
        ask(store, "question")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(StorageError) as caught:
        ChatStore(tmp_path / "data" / "chats.sqlite3")
    assert caught.value.path == tmp_path / "data" / "chats.sqlite3"


def test_folder_in_place_of_the_file(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StorageError, match="unable to open"):
        ChatStore(path)


def test_full_disk_loses_nothing_that_was_saved(store: ChatStore, path: Path) -> None:
    conversation_id = ask(store, "question", "answer")
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="disk is full") as caught:
        store.add_message(conversation_id, Role.USER, "a long question " * 5000)
    assert caught.value.path == path
    assert [message.content for message in store.messages(conversation_id)] == [
        "question",
        "answer",
    ]
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.add_message(conversation_id, Role.USER, "a long question " * 5000)
    assert len(store.messages(conversation_id)) == 3


def test_file_held_by_another_program(path: Path, store: ChatStore) -> None:
    store._connection.execute("PRAGMA busy_timeout = 10")
    conversation_id = ask(store, "question")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ChatStoreError, match="Another program"):
            store.add_message(conversation_id, Role.USER, "more")
    assert len(store.messages(conversation_id)) == 1


def test_store_in_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ChatStore(IN_MEMORY) as store, ChatStore(IN_MEMORY) as other:
        ask(store, "question")
        assert titles(store, "question") == ["question"]
        assert titles(other) == []
        assert store.is_owner
    assert list(tmp_path.iterdir()) == []


def test_a_closed_store_says_so(store: ChatStore, path: Path) -> None:
    conversation = ask(store, "Why is the sky blue?")
    store.close()
    for late in (store.conversations, lambda: store.rename(conversation, "Sky")):
        with pytest.raises(ChatStoreError) as caught:
            late()
        assert str(path) in str(caught.value)

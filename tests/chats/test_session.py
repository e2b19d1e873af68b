"""One turn: what is saved when, what is sent, and how an answer can end."""

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from octavo.chats.message import Message, MessageStatus, Role
from octavo.chats.session import ChatModel, ChatSession
from octavo.chats.store import ChatStore
from octavo.engine.request import FinishReason
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import (
    EngineClosedError,
    EngineError,
    InvalidRequestError,
    PromptTooLongError,
    StorageError,
)
from tests.chats.fake_model import END, METRICS, FakeModel, Step, delta

if TYPE_CHECKING:
    from octavo.host import ModelHost

    def host_is_a_chat_model(host: ModelHost) -> ChatModel:
        return host


SAMPLING = SamplingParams()
NO_MODEL = EngineClosedError("No model is loaded.", hint="Load one first.")

STREAM_UNTIL_KILLED = """
import asyncio, contextlib, sys
from pathlib import Path
from octavo.chats.session import ChatSession
from octavo.chats.store import ChatStore
from octavo.engine.sampling_params import SamplingParams
from tests.chats.fake_model import FakeModel, delta

class SlowModel(FakeModel):
    async def stream_chat(self, messages, sampling_params, *, request_id=None):
        for number in range(100_000):
            await asyncio.sleep(0.002)
            yield delta(f"{number} ")

async def main():
    store = ChatStore(Path(sys.argv[1]))
    session = ChatSession(store, SlowModel(), store.create_conversation().id, save_interval_s=0.05)
    async with contextlib.aclosing(session.send("Count!", SamplingParams())) as answer:
        async for message in answer:
            print(len(message.content), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChatStore]:
    with ChatStore(tmp_path / "chats.sqlite3") as store:
        yield store


def session_with(
    store: ChatStore, *steps: Step | None, limit: int = 1000, system_prompt: str = ""
) -> tuple[ChatSession, FakeModel]:
    model = FakeModel(*steps, limit=limit)
    conversation = store.create_conversation(model="smollm2", system_prompt=system_prompt)
    return ChatSession(store, model, conversation.id, save_interval_s=60), model


async def collect(stream: AsyncGenerator[Message, None]) -> list[Message]:
    async with contextlib.aclosing(stream) as snapshots:
        return [snapshot async for snapshot in snapshots]


def drawn(messages: list[Message]) -> list[str]:
    return [f"{item.role} {item.status}: {item.content}" for item in messages]


async def test_answer_grows_and_is_saved(store: ChatStore) -> None:
    session, model = session_with(
        store, delta("Be"), delta(""), delta("cause"), END, system_prompt="Be brief."
    )
    snapshots = await collect(session.send("Why?", SAMPLING))
    assert [item.content for item in snapshots] == ["", "Be", "Because", "Because"]
    assert len({item.id for item in snapshots}) == 1
    assert all(item.status is MessageStatus.STREAMING for item in snapshots[:-1])
    last = snapshots[-1]
    assert last.status is MessageStatus.DONE
    assert last.metrics == METRICS
    assert last.model == "smollm2"
    assert last.finish_reason is FinishReason.STOP
    assert session.messages()[1] == last
    assert drawn(session.messages()) == ["user done: Why?", "assistant done: Because"]
    assert model.sent == [[("system", "Be brief."), ("user", "Why?")]]
    assert not session.is_busy


async def test_next_turn_sends_the_conversation(store: ChatStore) -> None:
    session, model = session_with(store, delta("Yes."), END)
    await collect(session.send("One?", SAMPLING))
    await collect(session.send("Two?", SAMPLING))
    assert model.sent[1] == [("user", "One?"), ("assistant", "Yes."), ("user", "Two?")]
    assert session.messages()[-1].dropped_messages == 0


async def test_question_is_saved_before_the_model_is_asked(store: ChatStore) -> None:
    session, _ = session_with(store, delta("x"), END)
    async with contextlib.aclosing(session.send("Why?", SAMPLING)) as snapshots:
        assert (await anext(snapshots)).content == ""
        assert drawn(session.messages()) == ["user done: Why?", "assistant streaming: "]
        assert session.is_busy


@pytest.mark.parametrize(
    ("num_snapshots", "kept"), [(1, ""), (2, "Be"), (3, "Because")], ids=["at once", "one", "two"]
)
async def test_leaving_stops_and_keeps_the_text(
    store: ChatStore, num_snapshots: int, kept: str
) -> None:
    session, model = session_with(store, delta("Be"), delta("cause"), delta(" of"), END)
    async with contextlib.aclosing(session.send("Why?", SAMPLING)) as snapshots:
        for _ in range(num_snapshots):
            shown = await anext(snapshots)
    assert shown.content == kept
    assert drawn(session.messages())[1] == f"assistant stopped: {kept}"
    assert model.num_closed == (num_snapshots > 1)
    assert not session.is_busy


async def test_cancelled_task_stops_and_keeps_the_text(store: ChatStore) -> None:
    session, model = session_with(store, delta("Be"), None)
    task = asyncio.create_task(collect(session.send("Why?", SAMPLING)))
    await asyncio.wait_for(model.waits.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert drawn(session.messages())[1] == "assistant stopped: Be"
    assert model.num_closed == 1
    assert not session.is_busy


async def test_text_is_saved_before_the_stream_is_closed(store: ChatStore) -> None:
    at_close: list[str] = []

    class SlowToClose(FakeModel):
        async def stream_chat(self, *arguments, **more):  # type: ignore[no-untyped-def]
            try:
                yield delta("Be")
                yield delta("cause")
            finally:
                at_close.extend(drawn(session.messages()))

    session = ChatSession(store, SlowToClose(), store.create_conversation().id)
    async with contextlib.aclosing(session.send("Why?", SAMPLING)) as snapshots:
        for _ in range(2):
            await anext(snapshots)
    assert at_close[1] == "assistant stopped: Be"


async def test_leaving_after_the_last_token_is_no_stop(store: ChatStore) -> None:
    last = delta("cause", finish_reason=FinishReason.STOP, metrics=METRICS)
    session, _ = session_with(store, delta("Be"), last)
    async with contextlib.aclosing(session.send("Why?", SAMPLING)) as snapshots:
        for _ in range(3):
            await anext(snapshots)
    assert drawn(session.messages())[1] == "assistant done: Because"


@pytest.mark.parametrize(
    ("steps", "status", "said"),
    [
        (
            [EngineError("CUDA is gone.", hint="Reload.")],
            MessageStatus.FAILED,
            "CUDA is gone. Reload.",
        ),
        (
            [delta(error=NO_MODEL, finish_reason=FinishReason.ERROR)],
            MessageStatus.FAILED,
            "No model",
        ),
        ([delta(error=ValueError("odd"))], MessageStatus.FAILED, "model failed"),
        ([delta(finish_reason=FinishReason.ERROR)], MessageStatus.FAILED, "model failed"),
        ([], MessageStatus.FAILED, "broke off"),
        ([delta(finish_reason=FinishReason.ABORT)], MessageStatus.STOPPED, ""),
        (
            [delta(error=NO_MODEL, finish_reason=FinishReason.ABORT)],
            MessageStatus.FAILED,
            "No model",
        ),
        ([delta(finish_reason=FinishReason.LENGTH)], MessageStatus.DONE, ""),
    ],
)
async def test_ways_to_end(
    store: ChatStore, steps: list[Step], status: MessageStatus, said: str
) -> None:
    session, _ = session_with(store, delta("Be"), *steps)
    last = (await collect(session.send("Why?", SAMPLING)))[-1]
    assert last.status is status
    assert last.content == "Be"
    assert said in last.error
    assert bool(last.error) == bool(said)
    assert session.messages()[1] == last


async def test_mistake_of_ours_is_raised_and_the_text_kept(store: ChatStore) -> None:
    session, _ = session_with(store, delta("Be"), ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await collect(session.send("Why?", SAMPLING))
    answer = session.messages()[1]
    assert (answer.status, answer.content) == (MessageStatus.FAILED, "Be")
    assert "mistake in Octavo" in answer.error
    assert not session.is_busy


async def test_no_model_fails_the_answer_and_keeps_the_question(store: ChatStore) -> None:
    session, model = session_with(store, delta("Yes."), END)
    model.count_error = NO_MODEL
    last = (await collect(session.send("Why?", SAMPLING)))[-1]
    assert last.error == "No model is loaded. Load one first."
    assert drawn(session.messages()) == ["user done: Why?", "assistant failed: "]
    model.count_error = None
    await collect(session.regenerate(SAMPLING))
    assert drawn(session.messages()) == ["user done: Why?", "assistant done: Yes."]


async def test_message_that_can_never_fit(store: ChatStore) -> None:
    session, model = session_with(store, delta("Yes."), END, limit=100)
    last = (await collect(session.send("word " * 200, SAMPLING)))[-1]
    assert last.status is MessageStatus.FAILED
    assert "201 tokens" in last.error
    assert "Shorten" in last.error
    assert model.sent == []
    assert session.messages()[0].content == "word " * 200, "the text can be taken from there"
    assert (await collect(session.send("Short?", SAMPLING)))[-1].content == "Yes."
    assert model.sent == [[("user", "Short?")]], "a failed question does not spoil later turns"


async def test_question_whose_answer_was_stopped_is_still_sent(store: ChatStore) -> None:
    session, model = session_with(store, delta("Yes."), END)
    async with contextlib.aclosing(session.send("I am Ada.", SAMPLING)) as snapshots:
        await anext(snapshots)
    await collect(session.send("Who am I?", SAMPLING))
    assert model.sent == [[("user", "I am Ada.\n\nWho am I?")]]


@pytest.mark.parametrize(
    ("max_tokens", "dropped"),
    [(None, 2), (10, 0), (30, 2), (5000, 2)],
    ids=["usual", "short", "long", "at most half the context"],
)
async def test_oldest_turns_that_do_not_fit_are_counted(
    store: ChatStore, max_tokens: int | None, dropped: int
) -> None:
    """Three turns of 12 tokens and a system prompt of 3 in a context of 60."""
    session, model = session_with(
        store, delta("a a a a a"), END, limit=60, system_prompt="Be brief."
    )
    for _ in range(3):
        last = (await collect(session.send("q q q q q", SamplingParams(max_tokens=10))))[-1]
        assert last.dropped_messages == 0
    store.delete_messages_from(session.conversation_id, last.id)
    again = (await collect(session.regenerate(SamplingParams(max_tokens=max_tokens))))[-1]
    assert again.dropped_messages == dropped
    assert session.messages()[-1].dropped_messages == dropped
    assert len(model.sent[-1]) == 1 + 5 - dropped
    assert model.sent[-1][0] == ("system", "Be brief.")


async def test_dropped_messages_count_from_the_conversation_s_first(store: ChatStore) -> None:
    session, model = session_with(store, delta("a a a a a"), END, limit=30)
    model.count_error = NO_MODEL
    await collect(session.send("never answered", SAMPLING))
    model.count_error = None
    await collect(session.send("q q q q q", SAMPLING))
    last = (await collect(session.send("w w w w w", SAMPLING)))[-1]
    assert model.sent[-1] == [("user", "w w w w w")]
    assert last.dropped_messages == 4
    assert session.messages()[last.dropped_messages].content == "w w w w w"


async def test_message_that_nearly_fills_the_context_gets_a_short_answer(store: ChatStore) -> None:
    session, _ = session_with(store, delta("Yes."), END, limit=100)
    last = (await collect(session.send("word " * 60, SAMPLING)))[-1]
    assert last.status is MessageStatus.DONE


async def test_tokens_are_counted_off_the_main_thread(store: ChatStore) -> None:
    threads: list[threading.Thread] = []

    class Counting(FakeModel):
        def count_tokens(self, messages):  # type: ignore[no-untyped-def]
            threads.append(threading.current_thread())
            return 1

    session = ChatSession(store, Counting(END), store.create_conversation().id)
    await collect(session.send("Why?", SAMPLING))
    assert threads
    assert threading.main_thread() not in threads


async def test_regenerate_replaces_the_last_answer(store: ChatStore) -> None:
    session, model = session_with(store, delta("First."), END)
    old = (await collect(session.send("Why?", SAMPLING)))[-1]
    model.steps = (delta("Second."), END)
    await collect(session.regenerate(SAMPLING))
    assert drawn(session.messages()) == ["user done: Why?", "assistant done: Second."]
    assert model.sent == [[("user", "Why?")]] * 2
    new = session.messages()[1]
    store.delete_messages_from(session.conversation_id, new.id)
    store.restore_messages(session.conversation_id, [old.id])
    assert session.messages()[1] == old


async def test_regenerate_without_a_model_keeps_the_old_answer(store: ChatStore) -> None:
    session, model = session_with(store, delta("First."), END)
    await collect(session.send("Why?", SAMPLING))
    model.count_error = NO_MODEL
    with pytest.raises(EngineClosedError):
        await collect(session.regenerate(SAMPLING))
    model.count_error, model.context_limit_tokens = None, 1
    with pytest.raises(PromptTooLongError):
        await collect(session.regenerate(SAMPLING))
    assert drawn(session.messages())[1] == "assistant done: First."
    assert not session.is_busy


async def test_regenerate_needs_a_question(store: ChatStore) -> None:
    session, _ = session_with(store)
    with pytest.raises(InvalidRequestError, match="no message"):
        await collect(session.regenerate(SAMPLING))


async def test_empty_message_is_refused(store: ChatStore) -> None:
    session, _ = session_with(store)
    with pytest.raises(InvalidRequestError, match="empty"):
        await collect(session.send(" \n", SAMPLING))
    assert session.messages() == []


async def test_one_answer_at_a_time(store: ChatStore) -> None:
    session, _ = session_with(store, delta("x"), END)
    async with contextlib.aclosing(session.send("Why?", SAMPLING)) as snapshots:
        await anext(snapshots)
        with pytest.raises(InvalidRequestError, match="still being written"):
            await collect(session.send("More?", SAMPLING))
        with pytest.raises(InvalidRequestError, match="still being written"):
            await collect(session.regenerate(SAMPLING))
    assert len(session.messages()) == 2


async def test_saves_are_bundled(store: ChatStore) -> None:
    """Text is on disk an interval after it was shown, also when no more comes."""
    model = FakeModel(*[delta("x")] * 50, None)
    session = ChatSession(store, model, store.create_conversation().id, save_interval_s=0.5)
    before = store._connection.total_changes
    async with contextlib.aclosing(session.send("Why?", SAMPLING)) as snapshots:
        for _ in range(51):
            await anext(snapshots)
        async with asyncio.timeout(30):
            while session.messages()[1].content != "x" * 50:  # noqa: ASYNC110  (a timer saves it)
                await asyncio.sleep(0.01)
        # A save changes the message and its entry in the index of words.
        assert store._connection.total_changes - before < 50


async def test_full_disk_during_an_answer(
    store: ChatStore, caplog: pytest.LogCaptureFixture
) -> None:
    def fill_disk() -> None:
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")

    long = "secret " * 5000
    session, _ = session_with(store, delta("Be"), fill_disk, delta(long), END)
    snapshots: list[Message] = []

    async def show() -> None:
        async with contextlib.aclosing(session.send("Why?", SAMPLING)) as stream:
            async for snapshot in stream:
                snapshots.append(snapshot)  # noqa: PERF401

    with pytest.raises(StorageError, match="disk is full"):
        await show()
    assert snapshots[-1].status is MessageStatus.DONE
    assert snapshots[-1].content == "Be" + long, "the answer is shown whole"
    assert session.messages()[0].content == "Why?"
    assert "could not be saved" in caplog.text
    assert "secret" not in caplog.text


async def test_full_disk_before_an_answer_takes_nothing(store: ChatStore) -> None:
    """The window puts the text back; it must not be in the conversation as well."""
    session, model = session_with(store, delta("x"), END)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="disk is full"):
        await collect(session.send("word " * 20_000, SAMPLING))
    assert session.messages() == []
    assert model.sent == []
    assert not session.is_busy


async def test_full_disk_that_is_freed_in_time(store: ChatStore) -> None:
    def set_pages(pages: int) -> None:
        store._connection.execute(f"PRAGMA max_page_count = {pages}")

    model = FakeModel(lambda: set_pages(1), delta("x" * 20_000), None)
    session = ChatSession(store, model, store.create_conversation().id, save_interval_s=0.01)
    async with contextlib.aclosing(session.send("Why?", SAMPLING)) as snapshots:
        for _ in range(2):
            await anext(snapshots)
        await asyncio.sleep(0.05)
        assert session.messages()[1].content == ""
        set_pages(100_000)
    assert session.messages()[1].content == "x" * 20_000


async def test_prompts_and_replies_are_not_logged(
    store: ChatStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        session, model = session_with(store, delta("secret"), EngineError("It broke."))
        await collect(session.send("my secret", SAMPLING))
        model.steps = (delta("secret"), END)
        await collect(session.send("my secret", SAMPLING))
    assert "It broke." in caplog.text
    assert "secret" not in caplog.text


def test_killed_while_streaming(tmp_path: Path) -> None:
    """kill -9 in the middle of an answer: the text that was shown is there afterwards."""
    path = tmp_path / "chats.sqlite3"
    child = subprocess.Popen(
        [sys.executable, "-c", STREAM_UNTIL_KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with child:
        assert child.stdout is not None
        # 150 more snapshots of 2 ms each stand for six intervals of 50 ms.
        shown = [int(child.stdout.readline()) for _ in range(300)]
        child.kill()
    with ChatStore(path) as store:
        [conversation] = store.conversations("Count!")
        question, answer = store.messages(conversation.id)
    assert question.content == "Count!"
    assert answer.role is Role.ASSISTANT
    assert answer.status is MessageStatus.INTERRUPTED
    assert len(answer.content) >= shown[150] > 0
    assert answer.content.split() == [str(number) for number in range(len(answer.content.split()))]

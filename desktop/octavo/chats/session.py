"""`ChatSession`: one conversation's turns, from the person's text to the saved answer."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Protocol

from octavo.chats.context_window import ChatMessage, FittedContext, fit_messages
from octavo.chats.message import Message, MessageStatus, Role
from octavo.chats.store import ChatStore
from octavo.engine.request import FinishReason, GenerationDelta
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import (
    ChatStoreError,
    EngineError,
    InvalidRequestError,
    OctavoError,
    PromptTooLongError,
    StorageError,
)

logger = logging.getLogger(__name__)

SAVE_INTERVAL_S = 1.0
USUAL_ANSWER_TOKENS = 1024
"""Room kept for an answer without `max_tokens`, where the context is long enough."""
SHORTEST_ANSWER_TOKENS = 32
"""Room kept for the answer to a message that nearly fills the context by itself."""


class ChatModel(Protocol):
    """What a turn needs of a loaded model; `ModelHost` is one."""

    @property
    def context_limit_tokens(self) -> int:
        """Longest sequence, prompt and answer together."""

    def count_tokens(self, messages: Sequence[Mapping[str, str]], /) -> int:
        """Exact length of the prompt; called on a worker thread."""

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling_params: SamplingParams,
        /,
        *,
        request_id: str | None = None,
    ) -> AsyncGenerator[GenerationDelta, None]:
        """Streams the answer; leaving the stream stops it."""


class ChatSession:
    """Sends a conversation's messages to the model and keeps the answers.

    `send` and `regenerate` yield the answer as it grows: frozen messages with the same id. Leave
    them through `contextlib.aclosing`, or cancel the task: the answer is then `stopped` and keeps
    the text it has. An error on the way is not raised: the last message is `failed` and says why.
    """

    def __init__(
        self,
        store: ChatStore,
        model: ChatModel,
        conversation_id: int,
        *,
        save_interval_s: float = SAVE_INTERVAL_S,
    ) -> None:
        self._store = store
        self._model = model
        self._conversation_id = conversation_id
        self._save_interval_s = save_interval_s
        self._is_busy = False

    @property
    def conversation_id(self) -> int:
        return self._conversation_id

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being written."""
        return self._is_busy

    def messages(self) -> list[Message]:
        return self._store.messages(self._conversation_id)

    async def send(self, text: str, sampling: SamplingParams) -> AsyncGenerator[Message, None]:
        """Saves the person's message, then streams the answer to it.

        A message that can never fit is kept with a `failed` answer, so that its text is not lost;
        later turns are sent without it.

        Raises:
            InvalidRequestError: the text is empty, or an answer is still being written.
            ChatStoreError: the conversation cannot be saved.
            StorageError: the disk is full, or the like; an answer that is complete is
                yielded first.
        """
        if not text.strip():
            raise InvalidRequestError("The message is empty.", hint="Write something first.")
        with self._busy():
            with self._store.transaction():
                self._store.add_message(self._conversation_id, Role.USER, text)
                answer = self._add_answer()
            async with contextlib.aclosing(self._stream(answer, sampling)) as snapshots:
                async for snapshot in snapshots:
                    yield snapshot

    async def regenerate(self, sampling: SamplingParams) -> AsyncGenerator[Message, None]:
        """Streams a new answer to the last message and drops the old one.

        Where the model cannot take the conversation at all, as when none is loaded, the error is
        raised before anything is dropped. `ChatStore.restore_messages` has the old answer.

        Raises:
            InvalidRequestError: there is no message to answer, or an answer is being written.
            OctavoError: see above; or the conversation cannot be saved.
        """
        with self._busy():
            messages = self.messages()
            old = messages[-1] if messages and messages[-1].role is Role.ASSISTANT else None
            if old is not None:
                messages.pop()
            if not messages or messages[-1].role is not Role.USER:
                raise InvalidRequestError(
                    "There is no message to answer yet.", hint="Write one first."
                )
            context = await self._fit(messages, sampling)
            with self._store.transaction():
                if old is not None:
                    self._store.delete_messages_from(self._conversation_id, old.id)
                answer = self._add_answer()
            async with contextlib.aclosing(self._stream(answer, sampling, context)) as snapshots:
                async for snapshot in snapshots:
                    yield snapshot

    def _add_answer(self) -> "_Answer":
        message = self._store.add_message(
            self._conversation_id,
            Role.ASSISTANT,
            "",
            status=MessageStatus.STREAMING,
            model=self._store.conversation(self._conversation_id).model,
        )
        return _Answer(self._store, message, self._save_interval_s)

    async def _stream(
        self, answer: "_Answer", sampling: SamplingParams, context: FittedContext | None = None
    ) -> AsyncGenerator[Message, None]:
        """Fits the context where that is still to be done, and runs the model."""
        # The stream is closed after the answer is saved, however long that takes.
        async with contextlib.AsyncExitStack() as streams:
            with answer.being_written():
                yield answer.message
                if context is None:
                    context = await self._fit(self.messages()[:-1], sampling)
                answer.set_dropped(context.dropped)
                stream = self._model.stream_chat(context.messages, sampling)
                deltas = await streams.enter_async_context(contextlib.aclosing(stream))
                async for delta in deltas:
                    if answer.take(delta):
                        yield answer.message
        yield answer.message
        answer.raise_if_unsaved()

    async def _fit(self, messages: Sequence[Message], sampling: SamplingParams) -> FittedContext:
        """Fits on a worker thread: counting a long conversation takes longer than a frame."""
        system_prompt = self._store.conversation(self._conversation_id).system_prompt
        sendable = prompt_messages(messages, system_prompt)
        places = _sendable_places(messages)
        fitted = await asyncio.to_thread(self._fit_sendable, sendable, sampling.max_tokens)
        return dataclasses.replace(fitted, dropped=places[fitted.dropped] if fitted.dropped else 0)

    def _fit_sendable(
        self, messages: Sequence[ChatMessage], max_tokens: int | None
    ) -> FittedContext:
        """`max_tokens` is a ceiling, not a wish: at most half the context is kept free for it."""
        limit = self._model.context_limit_tokens
        room = min(max_tokens or USUAL_ANSWER_TOKENS, limit // 2)
        try:
            return fit_messages(messages, self._model.count_tokens, limit - room)
        except PromptTooLongError:
            least = min(room, SHORTEST_ANSWER_TOKENS)
            return fit_messages(messages, self._model.count_tokens, limit - least)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        if self._is_busy:
            raise InvalidRequestError(
                "The answer before is still being written.", hint="Stop it, or wait for its end."
            )
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False


class _Answer:
    """An answer while it is written: the snapshot to show, saved at most once an interval."""

    def __init__(self, store: ChatStore, message: Message, save_interval_s: float) -> None:
        self.message = message
        self._store = store
        self._save_interval_s = save_interval_s
        self._timer: asyncio.TimerHandle | None = None
        self._unsaved: OctavoError | None = None

    @contextlib.contextmanager
    def being_written(self) -> Iterator[None]:
        """Settles what became of the answer when its block ends, and swallows what it can tell."""
        try:
            yield
            if self.message.finish_reason is None:
                raise EngineError(
                    "The answer broke off: the model ended it without a reason.",
                    hint="Regenerate the answer.",
                )
            self._end(MessageStatus.DONE)
        except (GeneratorExit, asyncio.CancelledError):
            self._end(MessageStatus.STOPPED)
            self.raise_if_unsaved()
            raise
        except OctavoError as error:
            logger.warning(
                "Answer %d failed: %s", self.message.id, error.message, exc_info=error.__cause__
            )
            self._end(MessageStatus.FAILED, str(error))
        finally:
            if self.message.status is MessageStatus.STREAMING:
                self._end(
                    MessageStatus.FAILED,
                    "The answer broke off because of a mistake in Octavo. The log has the cause.",
                )

    def set_dropped(self, dropped_messages: int) -> None:
        self.message = dataclasses.replace(self.message, dropped_messages=dropped_messages)

    def take(self, delta: GenerationDelta) -> bool:
        """Adds what a step brought; returns whether there is new text to show.

        Raises:
            OctavoError: the delta carries it.
        """
        message = self.message
        self.message = dataclasses.replace(
            message,
            content=message.content + delta.text,
            metrics=delta.metrics or message.metrics,
            finish_reason=delta.finish_reason or message.finish_reason,
        )
        if isinstance(delta.error, OctavoError):
            raise delta.error
        if delta.error is not None or delta.finish_reason is FinishReason.ERROR:
            raise EngineError(
                "The model failed while it wrote the answer.",
                hint="Regenerate the answer; the log has the cause.",
            ) from delta.error
        if delta.text and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._save_interval_s, self._save)
        return bool(delta.text)

    def raise_if_unsaved(self) -> None:
        """Raises what kept the answer, as it ended, from being saved."""
        if self._unsaved is not None:
            raise self._unsaved

    def _end(self, status: MessageStatus, error: str = "") -> None:
        if self.message.finish_reason is FinishReason.ABORT and not error:
            status = MessageStatus.STOPPED
        elif status is MessageStatus.STOPPED and self.message.finish_reason is not None:
            status = MessageStatus.DONE
        self.message = dataclasses.replace(self.message, status=status, error=error)
        self._save()

    def _save(self) -> None:
        """A failure is kept for the end: the person goes on reading meanwhile."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        message = self.message
        has_ended = message.status is not MessageStatus.STREAMING
        try:
            self._store.update_message(
                message.id,
                content=message.content,
                status=message.status if has_ended else None,
                metrics=message.metrics,
                error=message.error or None,
                finish_reason=message.finish_reason,
                dropped_messages=message.dropped_messages,
            )
        except (ChatStoreError, StorageError) as error:
            if self._unsaved is None:
                logger.exception("An answer could not be saved")
            self._unsaved = error
        else:
            self._unsaved = None


def prompt_messages(messages: Sequence[Message], system_prompt: str) -> list[ChatMessage]:
    """What the model gets to see of a conversation where everything fits.

    System messages stand first. Answers without text are left out, and the question of a turn that
    failed before its first word as well.
    """
    system = [system_prompt] if system_prompt.strip() else []
    system += [message.content for message in messages if message.role is Role.SYSTEM]
    prompt = [_chat_message(Role.SYSTEM, content) for content in system]
    places = _sendable_places(messages)
    return prompt + [_chat_message(messages[at].role, messages[at].content) for at in places]


def _chat_message(role: Role, content: str) -> ChatMessage:
    return {"role": role.value, "content": content}


def _sendable_places(messages: Sequence[Message]) -> list[int]:
    """Where the messages of user and model stand that the model gets to see.

    Answers without text are left out; of a turn that failed before its first word, the question as
    well: it is asked anew with `regenerate`, and one that can never fit must not spoil later turns.
    """
    places = []
    for place, message in enumerate(messages):
        following = messages[place + 1] if place + 1 < len(messages) else None
        has_failed = (
            following is not None
            and following.status is MessageStatus.FAILED
            and not following.content
        )
        if message.role is Role.USER and has_failed:
            continue
        if message.role is not Role.SYSTEM and message.content:
            places.append(place)
    return places

"""A core with a real store in memory and a model that says what the test tells it to."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from octavo.chats.message import Message, MessageStatus, Role
from octavo.chats.store import ChatStore
from octavo.engine.request import FinishReason, GenerationDelta, RequestMetrics
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import OctavoError
from octavo.hub.library import LibraryModel
from tests.ui.fakes import MODELS, FakeCore, FakeHost

METRICS = RequestMetrics(
    prompt_tokens=120,
    cached_tokens=96,
    output_tokens=214,
    queue_s=0.0,
    time_to_first_token_s=0.31,
    total_s=5.4,
)


class FakeChatHost(FakeHost):
    """Streams `pieces`; before piece `hold_at` it waits until `held` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.context_limit_tokens = 8192
        self.pieces: Sequence[str] = ("Because ", "air ", "scatters ", "blue.")
        self.hold_at: int | None = None
        self.held = asyncio.Event()
        self.error: OctavoError | None = None
        self.num_streams = 0
        self.num_stopped = 0

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    async def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling_params: SamplingParams,
        *,
        request_id: str | None = None,
    ) -> AsyncGenerator[GenerationDelta, None]:
        self.num_streams += 1
        is_done = False
        try:
            for number, piece in enumerate(self.pieces):
                if number == self.hold_at:
                    await self.held.wait()
                await asyncio.sleep(0)
                yield GenerationDelta("r", 0, token_ids=(number,), text=piece)
            if self.error is not None:
                raise self.error
            yield GenerationDelta("r", 0, finish_reason=FinishReason.STOP, metrics=METRICS)
            is_done = True
        finally:
            self.num_stopped += not is_done


class FakeChatCore(FakeCore):
    """With the starter model loaded, unless the test wants it otherwise."""

    def __init__(
        self, root: Path, models: Sequence[LibraryModel] = MODELS, *, is_ready: bool = True
    ) -> None:
        super().__init__(root, models)
        self.host: FakeChatHost = FakeChatHost()
        self.chats: ChatStore = ChatStore(Path(":memory:"))  # type: ignore[assignment]
        if is_ready:
            self.host.set_ready(self.library.models[0])


def make_message(
    message_id: int,
    role: Role,
    content: str,
    status: MessageStatus = MessageStatus.DONE,
    *,
    error: str = "",
    metrics: RequestMetrics | None = None,
    finish_reason: FinishReason | None = None,
    dropped_messages: int = 0,
) -> Message:
    return Message(
        id=message_id,
        conversation_id=1,
        role=role,
        content=content,
        status=status,
        error=error,
        model="smollm2-135m-instruct-q4_1",
        metrics=metrics,
        created_at=0.0,
        finish_reason=finish_reason,
        dropped_messages=dropped_messages,
    )


def make_messages(count: int) -> list[Message]:
    """Questions and answers in turn, the answers with a list, a table and code."""
    messages = []
    for number in range(count):
        if number % 2 == 0:
            messages.append(make_message(number + 1, Role.USER, f"Question {number}?"))
        else:
            content = (
                f"Answer {number} with **words**.\n\n1. one\n2. two\n\n"
                f"```python\nx = {number}\nprint(x)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
                + "A paragraph that goes on for a while. "
                * 12
            )
            messages.append(make_message(number + 1, Role.ASSISTANT, content, metrics=METRICS))
    return messages

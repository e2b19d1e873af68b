"""What a conversation consists of: frozen data that the window may keep and compare."""

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum

from octavo.engine.request import FinishReason, RequestMetrics

MAX_TITLE_CHARACTERS = 48


class Role(StrEnum):
    """Who speaks, in the words of the chat templates."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class MessageStatus(StrEnum):
    """What became of a message; everything but an answer is `done` from the start."""

    STREAMING = "streaming"
    DONE = "done"
    STOPPED = "stopped"
    """The person stopped it; the text so far is kept."""
    FAILED = "failed"
    """`Message.error` says why; the text so far is kept."""
    INTERRUPTED = "interrupted"
    """Octavo ended while it was streaming; the text so far is kept."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation without its messages; times are seconds since 1970."""

    id: int
    title: str
    """The person's own, else made from the first message; empty before that."""
    model: str
    """Library name of the model it is held with; empty: not chosen yet."""
    system_prompt: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it was at one moment; an answer that grows is a new object each time."""

    id: int
    conversation_id: int
    role: Role
    content: str
    status: MessageStatus
    error: str
    """Why it failed, with the next step; empty unless `status` is `failed`."""
    model: str
    """Library name of the model that wrote it."""
    metrics: RequestMetrics | None
    created_at: float
    finish_reason: FinishReason | None = None
    """Why the model ended; `length` says that the answer is cut off."""
    dropped_messages: int = 0
    """How many messages, counted from the conversation's first, the model did not get to see
    because they did not fit its context."""


def title_from(text: str) -> str:
    """Makes a title of the first line that is not empty, cut at a word."""
    line = next((line for line in map(str.strip, text.splitlines()) if line), "")
    line = " ".join(line.split())
    if len(line) <= MAX_TITLE_CHARACTERS:
        return line
    cut = line[:MAX_TITLE_CHARACTERS]
    last_space = line.rfind(" ", MAX_TITLE_CHARACTERS // 2, MAX_TITLE_CHARACTERS + 1)
    if last_space > 0:
        cut = line[:last_space]
    return cut.rstrip(" ,.;:–-") + "…"


def metrics_to_json(metrics: RequestMetrics) -> str:
    """Writes the metrics as the database keeps them."""
    return json.dumps(dataclasses.asdict(metrics))


def metrics_from_json(text: str) -> RequestMetrics | None:
    """Reads the metrics back, or None where another version of Octavo kept other numbers."""
    values = json.loads(text)
    names = [item.name for item in dataclasses.fields(RequestMetrics)]
    if not isinstance(values, dict) or any(name not in values for name in names):
        return None
    return RequestMetrics(**{name: values[name] for name in names})

"""A conversation as a file for people (Markdown) or for programs (JSON)."""

import dataclasses
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from octavo.chats.message import Conversation, Message, MessageStatus, Role
from octavo.engine.request import FinishReason

JSON_FORMAT = "octavo-conversation"
JSON_VERSION = 1

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def to_markdown(conversation: Conversation, messages: Sequence[Message]) -> str:
    """Writes the conversation as one Markdown document, the messages' own Markdown untouched."""
    head = f"# {conversation.title or 'Conversation'}\n\n{_readable(conversation.created_at)}"
    if conversation.model:
        head += f" · {conversation.model}"
    parts = [head]
    if conversation.system_prompt:
        parts.append(f"## System prompt\n\n{_closed(conversation.system_prompt)}")
    for message in messages:
        parts.append(f"## {_speaker(message)}")
        if message.dropped_messages:
            parts.append(f"*{_dropped_note(message.dropped_messages)}*")
        if message.content:
            parts.append(_closed(message.content))
        if note := _ending_note(message):
            parts.append(f"*{note}*")
    return "\n\n".join(parts) + "\n"


def to_json(conversation: Conversation, messages: Sequence[Message]) -> str:
    """Writes everything that is known of the conversation; times are ISO 8601 in UTC."""
    document = {
        "format": JSON_FORMAT,
        "version": JSON_VERSION,
        "title": conversation.title,
        "model": conversation.model,
        "system_prompt": conversation.system_prompt,
        "created_at": _iso(conversation.created_at),
        "updated_at": _iso(conversation.updated_at),
        "messages": [_message_fields(message) for message in messages],
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _message_fields(message: Message) -> dict[str, object]:
    metrics = message.metrics
    return {
        "role": message.role.value,
        "content": message.content,
        "status": message.status.value,
        "error": message.error,
        "model": message.model,
        "finish_reason": message.finish_reason,
        "dropped_messages": message.dropped_messages,
        "created_at": _iso(message.created_at),
        "metrics": None
        if metrics is None
        else dataclasses.asdict(metrics) | {"tokens_per_second": metrics.tokens_per_second},
    }


def _speaker(message: Message) -> str:
    if message.role is Role.ASSISTANT:
        return message.model or "Assistant"
    return "You" if message.role is Role.USER else "System"


def _dropped_note(count: int) -> str:
    verb = (
        "message of this conversation was" if count == 1 else "messages of this conversation were"
    )
    return f"The first {count} {verb} left out: they did not fit the model's context."


def _ending_note(message: Message) -> str:
    if message.status is MessageStatus.FAILED:
        return message.error
    if message.status is MessageStatus.DONE:
        is_cut = message.finish_reason is FinishReason.LENGTH
        return "The answer is cut off at its length limit." if is_cut else ""
    if message.status is MessageStatus.STOPPED:
        return "The answer was stopped."
    if message.status is MessageStatus.INTERRUPTED:
        return "The answer was interrupted."
    return "The answer is still being written."


def _closed(text: str) -> str:
    """Ends a code block that an answer cut short left open, else it swallows what follows."""
    fence = ""
    for line in text.splitlines():
        if not (match := _FENCE.fullmatch(line)):
            continue
        marks, rest = match.groups()
        if not fence:
            fence = marks
        elif marks[0] == fence[0] and len(marks) >= len(fence) and not rest.strip():
            fence = ""
    return f"{text.rstrip()}\n{fence}" if fence else text.rstrip()


def _readable(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")

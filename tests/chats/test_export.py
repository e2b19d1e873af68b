"""Conversations as Markdown and JSON."""

import dataclasses
import json

from markdown_it import MarkdownIt

from octavo.chats.export import to_json, to_markdown
from octavo.chats.message import Conversation, Message, MessageStatus, Role
from octavo.engine.request import FinishReason
from tests.chats.fake_model import METRICS

CONVERSATION = Conversation(
    id=1,
    title="Why is the sky blue?",
    model="smollm2",
    system_prompt="Be brief.",
    created_at=1_767_225_600.0,
    updated_at=1_767_225_660.5,
)
QUESTION = Message(
    id=1,
    conversation_id=1,
    role=Role.USER,
    content="Why is the sky blue? 🌤",
    status=MessageStatus.DONE,
    error="",
    model="",
    metrics=None,
    created_at=1_767_225_600.0,
)
ANSWER = dataclasses.replace(
    QUESTION,
    id=2,
    role=Role.ASSISTANT,
    content="Because of *scattering*.\n\n```python\nprint('blue')\n```",
    model="smollm2",
    metrics=METRICS,
    finish_reason=FinishReason.STOP,
)


def test_markdown() -> None:
    assert to_markdown(CONVERSATION, [QUESTION, ANSWER]) == (
        "# Why is the sky blue?\n\n2026-01-01 00:00 UTC · smollm2\n\n"
        "## System prompt\n\nBe brief.\n\n"
        "## You\n\nWhy is the sky blue? 🌤\n\n"
        "## smollm2\n\nBecause of *scattering*.\n\n```python\nprint('blue')\n```\n"
    )


def test_markdown_says_how_answers_ended() -> None:
    answers = [
        dataclasses.replace(ANSWER, dropped_messages=2, finish_reason=FinishReason.LENGTH),
        dataclasses.replace(ANSWER, status=MessageStatus.STOPPED),
        dataclasses.replace(ANSWER, status=MessageStatus.FAILED, content="", error="No memory."),
        dataclasses.replace(ANSWER, status=MessageStatus.INTERRUPTED),
        dataclasses.replace(ANSWER, status=MessageStatus.STREAMING, dropped_messages=1),
    ]
    text = to_markdown(CONVERSATION, answers)
    for note in (
        "*The first 2 messages of this conversation were left out",
        "*The answer is cut off at its length limit.*",
        "*The answer was stopped.*",
        "*No memory.*",
        "*The answer was interrupted.*",
        "*The answer is still being written.*",
        "*The first 1 message of this conversation was left out",
    ):
        assert note in text


def test_open_code_block_does_not_swallow_what_follows() -> None:
    for opening in ("```python\nprint(", "````\n```\nx", "~~~\n```", "  ```\nx\n```python"):
        stopped = dataclasses.replace(ANSWER, content=opening, status=MessageStatus.STOPPED)
        tokens = MarkdownIt().parse(to_markdown(CONVERSATION, [stopped, QUESTION]))
        headings = [
            tokens[place + 1].content
            for place, token in enumerate(tokens)
            if token.type == "heading_open"
        ]
        assert headings[-2:] == ["smollm2", "You"], opening


def test_json_holds_everything() -> None:
    document = json.loads(to_json(CONVERSATION, [QUESTION, ANSWER]))
    assert document["format"] == "octavo-conversation"
    assert document["version"] == 1
    assert document["system_prompt"] == "Be brief."
    assert document["updated_at"] == "2026-01-01T00:01:00.500+00:00"
    question, answer = document["messages"]
    assert question["content"] == QUESTION.content
    assert question["metrics"] is None
    assert answer["finish_reason"] == "stop"
    assert answer["metrics"]["tokens_per_second"] == METRICS.tokens_per_second
    assert answer["metrics"]["cached_tokens"] == 4


def test_json_is_readable() -> None:
    assert "🌤" in to_json(CONVERSATION, [QUESTION])

"""The words under an answer."""

import pytest

from octavo.chats.message import Message, MessageStatus, Role
from octavo.engine.request import FinishReason
from octavo.ui.chat.message_footer import describe_answer, describe_problem
from tests.ui.chat.fakes import METRICS, make_message


def answer(
    status: MessageStatus = MessageStatus.DONE,
    *,
    content: str = "Text",
    error: str = "",
    finish_reason: FinishReason | None = None,
    dropped_messages: int = 0,
) -> Message:
    return make_message(
        2,
        Role.ASSISTANT,
        content,
        status,
        error=error,
        metrics=METRICS if status is not MessageStatus.STREAMING else None,
        finish_reason=finish_reason,
        dropped_messages=dropped_messages,
    )


NUMBERS = "41.8 tok/s · first token 0.31 s · 214 tokens · 96 of 120 prompt tokens reused"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (answer(), NUMBERS),
        (answer(MessageStatus.STOPPED), f"Stopped · {NUMBERS}"),
        (answer(MessageStatus.STREAMING, content=""), "Reading the prompt…"),
        (answer(MessageStatus.STREAMING), "Writing…"),
    ],
)
def test_answer(message: Message, expected: str) -> None:
    assert describe_answer(message) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (answer(), ""),
        (answer(MessageStatus.FAILED, error="It failed. Try again."), "It failed. Try again."),
        (answer(MessageStatus.INTERRUPTED), "Octavo was closed during this answer."),
        (
            answer(finish_reason=FinishReason.LENGTH),
            "The answer was cut off: it reached its longest length.",
        ),
        (answer(dropped_messages=1), "1 older message was left out to fit the context."),
        (answer(dropped_messages=1204), "1,204 older messages were left out to fit the context."),
    ],
)
def test_problem(message: Message, expected: str) -> None:
    assert describe_problem(message) == expected

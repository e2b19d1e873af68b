"""A message that grows ends as the same runs as one that was there from the start."""

import random

import pytest

from octavo.chats.message import MessageStatus, Role
from octavo.ui.chat.message_content import CodeRun, MessageContent, TextRun
from tests.ui.chat.fakes import make_message

TEXT = "Intro.\n\n" + "Some paragraph.\n\n" * 400 + "```python\nx = 1\n```\n\nEnd *of* it."


def content_of(text: str) -> MessageContent:
    content = MessageContent(Role.ASSISTANT)
    assert content.show(make_message(1, Role.ASSISTANT, text))
    return content


@pytest.mark.parametrize("seed", range(5))
def test_growing_ends_like_finished(seed: int) -> None:
    rng = random.Random(seed)
    content = MessageContent(Role.ASSISTANT)
    length = 0
    while length < len(TEXT):
        length += rng.randint(1, 400)
        snapshot = make_message(1, Role.ASSISTANT, TEXT[:length], MessageStatus.STREAMING)
        before = content.runs()[: content.num_frozen_runs]
        assert content.show(snapshot)
        assert content.runs()[: len(before)] == before, "what is frozen stays"
    assert content.show(make_message(1, Role.ASSISTANT, TEXT))
    assert content.runs() == content_of(TEXT).runs()


def test_long_texts_are_cut_into_runs() -> None:
    runs = content_of(TEXT).runs()
    assert [type(run) for run in runs] == [TextRun, TextRun, TextRun, CodeRun, TextRun]
    assert runs[3] == CodeRun("python", "x = 1", is_growing=False)


def test_another_text_is_not_taken() -> None:
    content = content_of("One")
    assert not content.show(make_message(1, Role.ASSISTANT, "Two"))


def test_a_persons_code_is_code_and_the_rest_is_plain() -> None:
    content = MessageContent(Role.USER)
    content.show(make_message(1, Role.USER, "Fix *this*:\n```c\nint x;\n```"))
    text, code = content.runs()
    assert isinstance(text, TextRun)
    assert "*this*" in text.html
    assert code == CodeRun("c", "int x;", is_growing=False)

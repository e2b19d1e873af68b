"""What is sent to the model: the newest whole turns that fit."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.chats.context_window import ChatMessage, FittedContext, fit_messages
from octavo.errors import PromptTooLongError


def message(role: str, num_tokens: int, name: str = "x") -> ChatMessage:
    return {"role": role, "content": " ".join([name] * num_tokens)}


def conversation(drawing: str) -> list[ChatMessage]:
    """'s3 u1 a5' is a system prompt of 3 tokens, a question of 1 and an answer of 5."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [
        message(roles[word[0]], int(word[1:]), f"{word[0]}{place}")
        for place, word in enumerate(drawing.split())
    ]


def count(messages: Sequence[ChatMessage]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def drawn(context: FittedContext) -> str:
    return " ".join(
        f"{message['role'][0]}{len(message['content'].split())}" for message in context.messages
    )


@pytest.mark.parametrize(
    ("before", "limit", "after", "dropped"),
    [
        ("u5", 5, "u5", 0),
        ("s3 u1 a5 u2", 11, "s3 u1 a5 u2", 0),
        ("s3 u1 a5 u2", 10, "s3 u2", 2),
        ("u1 a1 u1 a1 u1", 3, "u1 a1 u1", 2),
        ("u1 a9 u1 a1 u1", 5, "u1 a1 u1", 2),
        ("a4 u1 a1 u1", 3, "u1 a1 u1", 1),
        ("s1 s2 u1", 4, "s3 u1", 0),
        ("u2 u3 a1 u1", 7, "u5 a1 u1", 0),
        ("u2 u3 a1 u1", 6, "u3 a1 u1", 1),
        ("u9 u3", 5, "u3", 1),
    ],
)
def test_oldest_turns_go_first(before: str, limit: int, after: str, dropped: int) -> None:
    fitted = fit_messages(conversation(before), count, limit)
    assert drawn(fitted) == after
    assert fitted.dropped == dropped
    assert fitted.prompt_tokens == count(fitted.messages)


@pytest.mark.parametrize("before", ["s3 u8", "s3 u1 a1 u8", "s11 u0"])
def test_what_can_never_fit_is_refused_with_counts(before: str) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        fit_messages(conversation(before), count, 10)
    assert caught.value.prompt_tokens == 11
    assert caught.value.limit_tokens == 10
    assert "11" in caught.value.message
    assert "10" in caught.value.message
    assert caught.value.hint


@given(
    has_system=st.booleans(),
    sizes=st.lists(
        st.tuples(st.sampled_from(["user", "assistant"]), st.integers(1, 9)), max_size=60
    ),
    limit=st.integers(1, 200),
)
def test_fitted_context(has_system: bool, sizes: list[tuple[str, int]], limit: int) -> None:
    system = [message("system", 3)] if has_system else []
    history = [message(role, size, f"m{place}") for place, (role, size) in enumerate(sizes)]
    history.append(message("user", 2, "last"))
    starts = [0, *(i for i, item in enumerate(history) if i and item["role"] == "user")]
    num_calls = 0

    def counted(messages: Sequence[ChatMessage]) -> int:
        nonlocal num_calls
        num_calls += 1
        return count(messages)

    try:
        fitted = fit_messages([*system, *history], counted, limit)
    except PromptTooLongError:
        assert count(system) + 2 > limit
        return
    words = " ".join(item["content"] for item in [*system, *history[fitted.dropped :]]).split()
    assert " ".join(item["content"] for item in fitted.messages).split() == words, (
        "system prompt and newest messages, nothing added"
    )
    assert fitted.prompt_tokens == len(words) <= limit
    assert fitted.dropped in starts, "turns are whole"
    if fitted.dropped:
        one_turn_more = history[starts[starts.index(fitted.dropped) - 1] :]
        assert count([*system, *one_turn_more]) > limit, "no more than need be is dropped"
    roles = [item["role"] for item in fitted.messages]
    assert all(one != next_one for one, next_one in itertools.pairwise(roles))
    assert num_calls <= 2 + math.ceil(math.log2(len(starts)))

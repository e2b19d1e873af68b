"""Which messages fit the model's context: the newest whole turns, and never silently."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo.errors import PromptTooLongError

ChatMessage = Mapping[str, str]
"""`role` and `content`, as the chat template wants them."""


@dataclass(frozen=True, slots=True)
class FittedContext:
    """What is sent to the model, and how much of the conversation is not."""

    messages: tuple[ChatMessage, ...]
    dropped: int
    """Messages left out: the oldest ones after the system prompt."""
    prompt_tokens: int


def fit_messages(
    messages: Sequence[ChatMessage],
    count_tokens: Callable[[Sequence[ChatMessage]], int],
    limit_tokens: int,
) -> FittedContext:
    """Keeps the system prompt and as many of the newest turns as fit.

    A turn begins with a message of the user and is kept or dropped as a whole. Two messages of
    the same role in a row, as when an answer was stopped before its first word, are joined: many
    templates insist that the roles alternate.

    Args:
        messages: system messages first, then the conversation; at least one that is no system
            message.
        count_tokens: length of the whole prompt; fewer messages must not count more. It is called
            once if all fits, else about log2 of the number of turns more often.
        limit_tokens: for the prompt; the room for the answer is already taken off.

    Raises:
        PromptTooLongError: the system prompt and the last turn alone do not fit.
    """
    num_system = next(i for i, message in enumerate(messages) if message["role"] != "system")
    starts = [num_system]
    starts += [
        i for i, message in enumerate(messages) if i > num_system and message["role"] == "user"
    ]

    def fitted_from(turn: int) -> FittedContext:
        kept = _joined([*messages[:num_system], *messages[starts[turn] :]])
        return FittedContext(kept, starts[turn] - num_system, count_tokens(kept))

    best = fitted_from(0)
    if best.prompt_tokens <= limit_tokens:
        return best
    too_many = 0
    fits = len(starts) - 1
    if fits > 0:
        best = fitted_from(fits)
    if best.prompt_tokens > limit_tokens:
        raise PromptTooLongError(
            f"The message and the system prompt take {best.prompt_tokens:,} tokens; the model has"
            f" room for {limit_tokens:,}.",
            prompt_tokens=best.prompt_tokens,
            limit_tokens=limit_tokens,
            hint="Shorten the message, or use a model with a longer context.",
        )
    while fits - too_many > 1:
        middle = (fits + too_many) // 2
        candidate = fitted_from(middle)
        if candidate.prompt_tokens <= limit_tokens:
            best, fits = candidate, middle
        else:
            too_many = middle
    return best


def _joined(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    joined: list[ChatMessage] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            content = f"{joined[-1]['content']}\n\n{message['content']}"
            joined[-1] = {"role": message["role"], "content": content}
        else:
            joined.append(message)
    return tuple(joined)

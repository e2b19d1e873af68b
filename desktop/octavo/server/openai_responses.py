"""Deltas and whole completions in the shapes of the OpenAI API."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.engine.request import FinishReason, GenerationDelta, TokenLogprob
from octavo.engine.tokenizer import Tokenizer


@dataclass(slots=True)
class Completion:
    """One choice, put together from its deltas."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, delta: GenerationDelta) -> None:
        self.text += delta.text
        self.logprobs += delta.logprobs or ()
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason


@dataclass(slots=True)
class Usage:
    """Tokens of a whole request, summed over its prompts and choices."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, delta: GenerationDelta) -> None:
        self.completion_tokens += len(delta.token_ids)
        if delta.metrics is not None and delta.index == 0:
            self.cached_tokens += delta.metrics.cached_tokens

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class AnswerShape(ABC):
    """What differs between the two kinds of answers; one object per request."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def opening(self, _index: int, /) -> dict[str, Any] | None:
        """The choice of a stream's first chunk, before any text."""
        return None

    @abstractmethod
    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        """The choice of a stream's chunk."""

    @abstractmethod
    def whole(self, index: int, completion: Completion) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        token_bytes = self._tokenizer.token_bytes(token_id)
        return {
            "token": token_bytes.decode("utf-8", "replace"),
            "logprob": _finite(logprob),
            "bytes": list(token_bytes),
        }


class ChatShape(AnswerShape):
    """`chat.completion`."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int, /) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        logprobs = None if delta.logprobs is None else self._logprobs(delta.logprobs)
        choice = {
            "index": index,
            "delta": {"content": delta.text} if delta.text or logprobs else {},
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice

    def whole(self, index: int, completion: Completion) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": self._logprobs(completion.logprobs) if completion.logprobs else None,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }

    def _logprobs(self, entries: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> dict[str, Any]:
        content = [
            self._token(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._token(*pair) for pair in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}


class TextShape(AnswerShape):
    """`text_completion`."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._offsets: defaultdict[int, int] = defaultdict(int)
        self._echoed: list[_EchoedPrompt] = []
        self._begun: set[int] = set()

    def echo(
        self,
        prompts: Sequence[str | list[int]],
        token_ids: Sequence[list[int]],
        *,
        num_choices: int,
    ) -> None:
        """Puts each prompt before the text of its choices; called before the first of them."""
        pairs = zip(prompts, token_ids, strict=True)
        self._echoed = [
            _EchoedPrompt(prompt, ids) for prompt, ids in pairs for _ in range(num_choices)
        ]

    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        logprobs = None
        if delta.logprobs is not None:
            logprobs = self._logprobs(index, delta.prompt_logprobs or (), delta.logprobs)
        choice = {
            "index": index,
            "text": self._opening_text(index) + delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice

    def whole(self, index: int, completion: Completion) -> dict[str, Any]:
        logprobs = None
        if completion.logprobs:
            logprobs = self._logprobs(index, completion.prompt_logprobs, completion.logprobs)
        return {
            "index": index,
            "text": self._opening_text(index) + completion.text,
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }

    def _opening_text(self, index: int) -> str:
        """The echoed prompt, before the first piece of a choice only."""
        if not self._echoed or index in self._begun:
            return ""
        self._begun.add(index)
        return self._echoed[index].text(self._tokenizer)

    def _logprobs(
        self,
        index: int,
        prompt: Sequence[TokenLogprob | None],
        entries: Sequence[TokenLogprob],
    ) -> dict[str, Any]:
        """One entry a token; the first of an echoed prompt has no logprob, only its place."""
        places: list[tuple[int, TokenLogprob | None]] = [
            (entry.token_id, entry) for entry in (*prompt[1:], *entries) if entry is not None
        ]
        offsets = []
        if prompt and self._echoed:
            places.insert(0, (self._echoed[index].token_ids[0], None))
        for number, (token_id, entry) in enumerate(places):
            offsets.append(self._offsets[index])
            if number == 0 and entry is None and self._echoed[index].hides_bos(self._tokenizer):
                continue
            self._offsets[index] += len(self._tokenizer.token_text(token_id))
        return {
            "tokens": [self._legible(token_id) for token_id, _ in places],
            "token_logprobs": [entry and _finite(entry.logprob) for _, entry in places],
            "top_logprobs": [
                entry and {self._legible(one): _finite(logprob) for one, logprob in entry.top}
                for _, entry in places
            ],
            "text_offset": offsets,
        }

    def _legible(self, token_id: int) -> str:
        """A token's text; of one that is no whole characters its bytes, as OpenAI writes them.

        Otherwise different pieces of characters would all be the same key of `top_logprobs`.
        """
        token_bytes = self._tokenizer.token_bytes(token_id)
        try:
            return token_bytes.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


@dataclass(frozen=True, slots=True)
class _EchoedPrompt:
    """A prompt as the client gave it, and its tokens."""

    prompt: str | list[int]
    token_ids: list[int]

    def text(self, tokenizer: Tokenizer) -> str:
        if isinstance(self.prompt, str):
            return self.prompt
        return tokenizer.decode(self.prompt, skip_special_tokens=False)

    def hides_bos(self, tokenizer: Tokenizer) -> bool:
        """Whether the first token is one that Octavo put before the client's text."""
        return (
            isinstance(self.prompt, str)
            and self.token_ids[0] == tokenizer.bos_token_id
            and not self.prompt.startswith(tokenizer.bos_token)
        )


def _finite(logprob: float) -> float:
    """JSON has no minus infinity; OpenAI writes -9999 for what cannot be."""
    return max(logprob, -9999.0)

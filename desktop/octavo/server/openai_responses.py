"""Deltas and whole completions in the shapes of the OpenAI API."""

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from octavo.engine.request import FinishReason, GenerationDelta, TokenLogprob
from octavo.engine.tokenizer import Tokenizer


@dataclass(slots=True)
class Completion:
    """One choice, put together from its deltas."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, delta: GenerationDelta) -> None:
        self.text += delta.text
        self.logprobs += delta.logprobs or ()
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

    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": delta.text,
            "logprobs": None if delta.logprobs is None else self._logprobs(index, delta.logprobs),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice

    def whole(self, index: int, completion: Completion) -> dict[str, Any]:
        entries = completion.logprobs
        return {
            "index": index,
            "text": completion.text,
            "logprobs": self._logprobs(index, entries) if entries else None,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }

    def _logprobs(
        self, index: int, entries: list[TokenLogprob] | tuple[TokenLogprob, ...]
    ) -> dict[str, Any]:
        tokens = [self._tokenizer.token_text(entry.token_id) for entry in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                {self._tokenizer.token_text(one): _finite(logprob) for one, logprob in entry.top}
                for entry in entries
            ],
            "text_offset": offsets,
        }


def _finite(logprob: float) -> float:
    """JSON has no minus infinity; OpenAI writes -9999 for what cannot be."""
    return max(logprob, -9999.0)

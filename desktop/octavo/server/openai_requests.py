"""The bodies of requests: OpenAI's names plus vLLM's extra sampling parameters."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from octavo.errors import InvalidRequestError

IGNORED_FIELDS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Fields of OpenAI's API that change nothing in what a local model may answer."""

NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}
"""Fields of OpenAI's API that Octavo does not have yet, with the values that ask for nothing."""

DEFAULT_COMPLETION_TOKENS = 16
"""`max_tokens` of /v1/completions where none is given, as OpenAI and vLLM have it."""

_SAMPLING_FIELDS = (
    "n",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_range",
    "dry_sequence_breakers",
    "xtc_probability",
    "xtc_threshold",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
)


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False
    """Ends the stream with a chunk that holds the usage of the whole request."""


class GenerationBody(BaseModel):
    """What both kinds of generation share; ranges are checked by `SamplingParams`."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    """Name of the loaded model; left out, it is meant."""
    max_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_range: int | None = None
    dry_sequence_breakers: list[str] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _sampling_params(
        self, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        self._check_other_fields()
        values: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        values |= {
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "prompt_logprobs": prompt_logprobs,
        }
        return SamplingParams.from_mapping(values)

    def _check_other_fields(self) -> None:
        """A field without effect would be a promise broken in silence."""
        for name, value in (self.model_extra or {}).items():
            if name in IGNORED_FIELDS or value is None:
                continue
            if name not in NEUTRAL_VALUES:
                raise InvalidRequestError(f"Octavo knows no field {name!r}.", field=name)
            if value not in NEUTRAL_VALUES[name]:
                raise InvalidRequestError(
                    f"Octavo cannot do {name} yet.",
                    hint="Leave the field out of the request.",
                    field=name,
                )


class ContentPart(BaseModel):
    """One part of a message; only text can be read so far."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One message; fields that templates do not get here are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def for_template(self, index: int) -> dict[str, str]:
        """As chat templates take it. Raises InvalidRequestError."""
        if self.tool_calls:
            raise InvalidRequestError(
                "Octavo cannot read tool_calls yet.", field=f"messages[{index}].tool_calls"
            )
        role = "system" if self.role == "developer" else self.role
        if self.content is None and role != "assistant":
            raise InvalidRequestError(
                f"Message {index} has no content.", field=f"messages[{index}].content"
            )
        if not isinstance(self.content, list):
            return {"role": role, "content": self.content or ""}
        texts = []
        for part in self.content:
            if part.type != "text" or part.text is None:
                raise InvalidRequestError(
                    f"Message {index} holds a part of the type {part.type!r}; only text can be"
                    " read so far.",
                    field=f"messages[{index}].content",
                )
            texts.append(part.text)
        return {"role": role, "content": "\n".join(texts)}


class ChatCompletionBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        limits = {self.max_completion_tokens, self.max_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequestError(
                "max_tokens and max_completion_tokens say different things.",
                hint="Give one of them.",
                field="max_completion_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs needs logprobs to be true.", field="top_logprobs"
            )
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise InvalidRequestError(
                f"top_logprobs is {self.top_logprobs}; it must be 0 to {MAX_LOGPROBS}.",
                field="top_logprobs",
            )
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._sampling_params(max(limits, default=None, key=lambda one: one or 0), logprobs)

    def template_messages(self) -> list[dict[str, str]]:
        """Raises InvalidRequestError."""
        return [message.for_template(index) for index, message in enumerate(self.messages)]


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    """Text, in which control tokens count, or token ids; a list of either is answered at once."""
    logprobs: int | None = None
    echo: bool | None = None
    """Puts the prompt before the text, and its logprobs before the text's."""

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        max_tokens = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        if self.echo and self.logprobs is not None and (self.n or 1) > 1:
            raise InvalidRequestError(
                f"n is {self.n}; an echoed prompt with logprobs is answered once only.",
                hint="Leave out n, echo or logprobs.",
                field="n",
            )
        return self._sampling_params(
            max_tokens, self.logprobs, self.logprobs if self.echo else None
        )

    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt. Raises InvalidRequestError."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidRequestError("prompt is an empty list.", field="prompt")
        token_ids = [item for item in self.prompt if isinstance(item, int)]
        if token_ids:
            return [token_ids]
        return [item for item in self.prompt if not isinstance(item, int)]

"""What the endpoint answers, for its OpenAPI document only: answers are built without these.

A test holds real answers against them, so that the document is true and costs no answer time.
"""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

REF_TEMPLATE = "#/components/schemas/{model}"


class Shape(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


FinishReason = Literal["stop", "length", "abort", "error"]


class PromptTokensDetails(Shape):
    """Where prompt tokens came from."""

    cached_tokens: int
    """Those that were in the prefix cache and were not computed again."""


class UsageShape(Shape):
    """Tokens of the whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(Shape):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    """One entry for each token of the text."""

    content: list[ChatLogprob]
    refusal: None


class TextLogprobs(Shape):
    """Lists with one entry for each token of the text."""

    tokens: list[str]
    """A token that is no whole characters is written as `bytes:` and its bytes in `\\xNN`."""
    token_logprobs: list[float | None]
    """null for the first token of an echoed prompt."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatAnswerMessage(Shape):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    """One of `n` answers."""

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    """The stop string or token id that ended it, if one of the request's did."""


class ChatCompletion(Shape):
    """A whole answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Unix time."""
    model: str
    choices: list[ChatChoice]
    usage: UsageShape


class ChatDelta(Shape):
    """What is new; the first chunk of a choice has the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Shape):
    """The continuation of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    """Only in the chunk with the finish reason."""


class ChatCompletionChunk(Shape):
    """The data of one event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    """Empty in the last chunk of a stream with `stream_options.include_usage`."""
    usage: UsageShape | None = None


class TextChoice(Shape):
    """One continuation; choices of several prompts are counted on."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None


class TextCompletion(Shape):
    """Whole continuations of one or more prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageShape


class TextChunkChoice(Shape):
    """A piece of one continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None


class TextCompletionChunk(Shape):
    """The data of one event of a streamed continuation."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: UsageShape | None = None


class ModelEntry(Shape):
    """A model that can be asked now."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["octavo"]
    max_model_len: int
    """Tokens of prompt and answer together."""


class ModelList(Shape):
    """The models that can be asked now: the loaded one, or none."""

    object: Literal["list"]
    data: list[ModelEntry]


class HealthShape(Shape):
    """Whether a model answers."""

    status: Literal["empty", "loading", "ready", "failed"]
    model: str | None


class ErrorDetails(Shape):
    """What went wrong, in a sentence with the next step."""

    message: str
    type: str
    param: str | None
    """The field of the request that is meant."""
    code: str | None
    prompt_tokens: int | None = None
    """Only where a prompt is too long, like the limit."""
    limit_tokens: int | None = None


class ErrorAnswer(Shape):
    """Every answer with a status from 400 up."""

    error: ErrorDetails


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": ErrorAnswer,
        "description": "400: the request is no use. 401: wrong API key. 403: a foreign site."
        " 404: no such model, or not the loaded one. 499: cancelled in Octavo.",
    },
    "5XX": {"model": ErrorAnswer, "description": "503: no model is loaded, or it stops."},
}
"""For every route."""


def answers(whole: type[Shape], chunk: type[Shape]) -> dict[int | str, dict[str, Any]]:
    """The two ways a generation is answered."""
    stream = (
        "Server-sent events where `stream` is true: `data:` lines, each a"
        f" {chunk.__name__}, then `data: [DONE]`. Comment lines (`: waiting`) keep the connection"
        " open. An error after the first event is an event with an ErrorAnswer, and the stream"
        " ends without `[DONE]`."
    )
    reference = {"$ref": REF_TEMPLATE.format(model=chunk.__name__)}
    return {
        200: {
            "model": whole,
            "description": stream,
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "x-event-data": reference}
            },
        }
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the chunks of streams, which FastAPI cannot know of."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, chunks = models_json_schema(
        [(ChatCompletionChunk, "serialization"), (TextCompletionChunk, "serialization")],
        ref_template=REF_TEMPLATE,
    )
    document["components"]["schemas"] |= chunks["$defs"]
    return document

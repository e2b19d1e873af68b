"""The OpenAPI document: real answers are of the shapes that it gives, and of no others."""

import json
from typing import Any

import httpx
import pytest

from octavo.server import openai_schema
from octavo.server.openai_schema import (
    ChatCompletion,
    ChatCompletionChunk,
    ErrorAnswer,
    HealthShape,
    ModelEntry,
    ModelList,
    Shape,
    TextCompletion,
    TextCompletionChunk,
)
from tests.server.conftest import Served

CHAT = {"messages": [{"role": "user", "content": "hello world"}]}
TEXT = {"prompt": ["hello", "the world"]}
SHORT = {"max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def document(endpoint: Served) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{endpoint.url}/openapi.json").json()
    return answer


def shape_of(document: dict[str, Any], method: str, path: str, status: str = "200") -> type[Shape]:
    """The class whose schema the document names; the schema itself is compared."""
    responses = document["paths"][path][method]["responses"]
    reference = responses[status]["content"]["application/json"]["schema"]["$ref"]
    name = reference.rsplit("/", 1)[1]
    shape: type[Shape] = getattr(openai_schema, name)
    served = document["components"]["schemas"][name]
    schema = shape.model_json_schema(ref_template=openai_schema.REF_TEMPLATE, mode="serialization")
    schema.pop("$defs", None)
    assert served == schema
    return shape


@pytest.mark.parametrize(
    ("path", "body", "whole", "chunk"),
    [
        ("/v1/chat/completions", CHAT, ChatCompletion, ChatCompletionChunk),
        (
            "/v1/chat/completions",
            CHAT | {"logprobs": True, "top_logprobs": 2},
            ChatCompletion,
            ChatCompletionChunk,
        ),
        ("/v1/chat/completions", CHAT | {"stop": "e", "n": 2}, ChatCompletion, ChatCompletionChunk),
        ("/v1/completions", TEXT, TextCompletion, TextCompletionChunk),
        ("/v1/completions", TEXT | {"logprobs": 2}, TextCompletion, TextCompletionChunk),
    ],
)
def test_answers_are_as_documented(
    served: Served,
    document: dict[str, Any],
    path: str,
    body: dict[str, Any],
    whole: type[Shape],
    chunk: type[Shape],
) -> None:
    assert shape_of(document, "post", path) is whole
    answer = httpx.post(f"{served.url}{path}", json=body | SHORT)
    whole.model_validate_json(answer.content)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = httpx.post(f"{served.url}{path}", json=body | SHORT | options).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        chunk.model_validate_json(event.removeprefix("data: "))
    stream = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    name = stream["x-event-data"]["$ref"].rsplit("/", 1)[1]
    assert name == chunk.__name__
    assert set(document["components"]["schemas"][name]["properties"]) == set(chunk.model_fields)


def test_models_and_health_are_as_documented(served: Served, document: dict[str, Any]) -> None:
    for path, shape in (("/v1/models", ModelList), ("/health", HealthShape)):
        assert shape_of(document, "get", path) is shape
        shape.model_validate_json(httpx.get(f"{served.url}{path}").content)
    assert shape_of(document, "get", "/v1/models/{name}") is ModelEntry
    ModelEntry.model_validate_json(httpx.get(f"{served.url}/v1/models/tiny").content)


def test_errors_are_as_documented(served: Served, document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method in methods:
            assert shape_of(document, method, path, "4XX") is ErrorAnswer
    url = f"{served.url}/v1/chat/completions"
    long = {"messages": [{"role": "user", "content": "hello " * 500}]}
    for answer in (
        httpx.post(url, json={}),
        httpx.post(url, json=long),
        httpx.post(url, json=CHAT | {"model": "other"}),
        httpx.get(f"{served.url}/nowhere"),
        httpx.get(url, headers={"Origin": "https://evil.example"}),
    ):
        assert answer.status_code >= 400
        ErrorAnswer.model_validate_json(answer.content)


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(schemas)
    assert "HTTPValidationError" not in names, "invalid bodies are answered with status 400"

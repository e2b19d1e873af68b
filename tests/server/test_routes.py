"""What is not generation: health, metrics, the document, and errors in one shape."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from octavo.engine.config import EngineConfig
from octavo.errors import (
    DeviceLostError,
    DeviceMemoryError,
    EngineClosedError,
    ModelError,
    ModelNotFoundError,
    OctavoError,
    PromptTooLongError,
    StorageError,
    WrongKeyError,
)
from octavo.host import ModelHost
from octavo.hub.library import ModelLibrary
from octavo.running import RunningModels
from octavo.server.error_table import error_body, kind_of
from octavo.server.thread import ServerThread
from tests.server.conftest import Served, wait_until


def test_health_and_metrics(fresh: Served) -> None:
    health = httpx.get(f"{fresh.url}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready", "model": "tiny"})
    body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True}
    assert httpx.post(f"{fresh.url}/v1/completions", json=body).status_code == 200
    metrics = httpx.get(f"{fresh.url}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(
        line.rsplit(" ", 1) for line in metrics.text.splitlines() if not line.startswith("#")
    )
    assert values["octavo_kv_blocks"] == str(fresh.host.stats.num_blocks)
    assert int(values["octavo_output_tokens_total"]) >= 4
    assert values['octavo_requests_total{outcome="finished"}'] == "1"
    names = {name.partition("{")[0] for name in values}
    assert names == {line.split()[2] for line in metrics.text.splitlines() if "# TYPE" in line}


def test_the_document_names_every_route_and_field(served: Served) -> None:
    document = httpx.get(f"{served.url}/openapi.json").json()
    assert {"/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"} <= set(
        document["paths"]
    )
    fields = document["components"]["schemas"]["ChatCompletionBody"]["properties"]
    assert {"messages", "max_completion_tokens", "top_k", "stream_options"} <= set(fields)
    assert "priority" not in fields


def test_errors_of_the_http_layer_have_the_same_shape(served: Served) -> None:
    url = f"{served.url}/v1/completions"
    responses = {
        404: httpx.get(f"{served.url}/nowhere"),
        405: httpx.get(url),
        400: httpx.post(url, content=b"{not json"),
    }
    for status, response in responses.items():
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    error = responses[400].json()["error"]
    assert error["message"].startswith("The body is no JSON: at character 2, ")
    assert (error["code"], error["param"]) == ("invalid_json", None)
    missing = httpx.post(url, json={"max_tokens": 3})
    assert missing.json()["error"]["param"] == "prompt"
    prompts: list[object] = [[], ["a", 1], [[]], ""]
    for prompt in prompts:
        response = httpx.post(url, json={"prompt": prompt})
        assert response.status_code == 400, prompt


def test_curl_without_a_content_type(served: Served) -> None:
    body = json.dumps({"prompt": "hello", "max_tokens": 1}).encode()
    assert httpx.post(f"{served.url}/v1/completions", content=body).status_code == 200


def test_a_stream_ends_with_done(served: Served) -> None:
    body = {"prompt": "hello", "max_tokens": 3, "stream": True, "ignore_eos": True}
    response = httpx.post(f"{served.url}/v1/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_without_a_model(tmp_path: Path, library: ModelLibrary) -> None:
    async def make() -> ModelHost:
        return ModelHost(EngineConfig, RunningModels(tmp_path))

    server = ServerThread(asyncio.run(make()), library)
    url = server.start(port=0).url
    try:
        assert httpx.get(f"{url}/health").status_code == 503
        assert httpx.get(f"{url}/v1/models").json()["data"] == []
        assert "octavo_kv_blocks 0" in httpx.get(f"{url}/metrics").text
        response = httpx.post(f"{url}/v1/completions", json={"prompt": "hello"})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "model_not_loaded"
    finally:
        assert server.stop()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PromptTooLongError("x", prompt_tokens=2, limit_tokens=1), 400),
        (WrongKeyError("x"), 401),
        (ModelNotFoundError("x"), 404),
        (EngineClosedError("x"), 503),
        (DeviceLostError("x"), 503),
        (DeviceMemoryError("x"), 503),
        (ModelError("x"), 500),
        (StorageError("x"), 500),
        (OctavoError("x"), 500),
    ],
)
def test_the_table(error: OctavoError, status: int) -> None:
    assert kind_of(error).status == status
    assert error_body(error)["error"]["message"] == "x"


def test_what_nobody_expected_is_answered_and_logged(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_messages: object) -> list[int]:
        raise RuntimeError("secret prompt")

    monkeypatch.setattr(served.host, "encode_chat", fail)
    body = {"messages": [{"role": "user", "content": "hello"}]}
    response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    wait_until(lambda: "A request failed" in caplog.text)


def test_bodies_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.access.MAX_BODY_BYTES", 1000)
    chunks = iter([b'{"prompt": "', b"a" * 2000, b'"}'])
    response = httpx.post(f"{served.url}/v1/completions", content=chunks)
    assert response.status_code == 413
    assert "1000 bytes" in response.json()["error"]["message"]


def test_half_a_surrogate_pair_is_no_crash(served: Served) -> None:
    url = f"{served.url}/v1/completions"
    unknown = httpx.post(url, content=b'{"prompt": "a", "\\udc00": 1}')
    assert unknown.status_code == 400
    prompt = httpx.post(url, content=b'{"prompt": "\\udc00", "max_tokens": 1}')
    assert prompt.status_code == 200

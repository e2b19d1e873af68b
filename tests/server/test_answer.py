"""A stream's writes: an event a delta, one write for all that has come, comments in silence."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from starlette.types import Message

from octavo.engine.config import EngineConfig
from octavo.engine.request import EngineStats, FinishReason, GenerationDelta, GenerationRequest
from octavo.engine.sampling_params import SamplingParams
from octavo.host import ModelHost
from octavo.hub.library import ModelLibrary
from octavo.running import RunningModels
from octavo.server import answer
from octavo.server.answer import Answer, GenerationCall
from octavo.server.board import RequestBoard
from octavo.server.openai_responses import TextShape

STEPS, DELTAS_OF_A_STEP = 4, 3


class BurstEngine:
    """Gives several deltas of a request in each step, as if the loop had been away meanwhile."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._request_id = ""
        self._num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._request_id)

    def add_request(self, request: GenerationRequest) -> None:
        self._request_id = request.request_id

    def abort(self, request_id: str) -> list[GenerationDelta]:
        return []

    def fail_all(self, error: Exception) -> list[GenerationDelta]:
        return []

    def step(self) -> list[GenerationDelta]:
        time.sleep(self._pause_s)
        self._num_steps += 1
        deltas = [
            GenerationDelta(self._request_id, token_ids=(1,), text=f"{self._num_steps}{part} ")
            for part in "abc"
        ]
        if self._num_steps == STEPS:
            deltas.append(GenerationDelta(self._request_id, finish_reason=FinishReason.LENGTH))
            self._request_id = ""
        return deltas

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None:
        """Has nothing to give back."""


Stream = Callable[[float], Awaitable[list[bytes]]]


@pytest.fixture
def stream(loaded_host: ModelHost, library: ModelLibrary, tmp_path: Path) -> Stream:
    """Answers one request of an engine with such pauses between its steps, and gives the writes."""

    async def run(pause_s: float) -> list[bytes]:
        report = loaded_host.state.report
        assert report is not None
        host = ModelHost(
            lambda: EngineConfig(device="cpu"),
            RunningModels(tmp_path),
            make_engine=lambda *_: (BurstEngine(pause_s), report),
        )
        await host.load(library.find("tiny"))
        writes: list[bytes] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                writes.append(message["body"])

        async def receive() -> NoReturn:
            await asyncio.get_running_loop().create_future()
            raise AssertionError("nobody leaves")

        call = GenerationCall(
            model="tiny",
            encode=lambda: [[1]],
            sampling_params=SamplingParams(),
            shape=TextShape(host.tokenizer),
            is_streamed=True,
            includes_usage=False,
        )
        scope: dict[str, Any] = {"type": "http", "path": "/v1/completions"}
        await Answer(call, host, RequestBoard())(scope, receive, send)
        assert await host.close()
        return writes

    return run


async def test_what_has_arrived_goes_out_in_one_write(stream: Stream) -> None:
    writes = await stream(0.0)
    assert len(writes) <= STEPS + 1  # and one that says it was the last
    assert all(write.endswith(b"\n\n") for write in writes)
    *events, last = b"".join(writes).removesuffix(b"\n\n").split(b"\n\n")
    assert last == b"data: [DONE]"
    texts = [json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] for event in events]
    assert len(texts) == STEPS * DELTAS_OF_A_STEP + 1
    assert "".join(texts) == "1a 1b 1c 2a 2b 2c 3a 3b 3c 4a 4b 4c "


async def test_silence_is_kept_alive_by_comments(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "KEEP_ALIVE_S", 0.05)
    writes = await stream(0.3)
    assert writes.count(b": waiting\n\n") >= STEPS
    assert writes[0] == b": waiting\n\n", "before the first token, too"
    texts = b"".join(writes).replace(b": waiting\n\n", b"").split(b"\n\n")
    assert len(texts) == STEPS * DELTAS_OF_A_STEP + 3


async def test_a_stream_that_moves_has_no_comments(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "KEEP_ALIVE_S", 30.0)
    assert not any(write.startswith(b":") for write in await stream(0.01))

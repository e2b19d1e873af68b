"""`octavo bench --http`: answers are counted, errors said, a real server measured."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from octavo.cli.benchmark.http_clients import stream_completions
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import EngineError
from tests.cli.conftest import Cli

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"connection: close\r\n\r\n"
)
Answer = Sequence[bytes]
TWO = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=2, ignore_eos=True)


def chunk(*events: object) -> bytes:
    """One chunk of a body with these events."""
    body = b"".join(
        b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
        for event in events
    )
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


class Endpoint:
    """Answers every connection with the same parts and remembers what it was asked."""

    def __init__(self) -> None:
        self.parts: Answer = ()
        self.bodies: list[dict[str, object]] = []
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        for part in self.parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    found = Endpoint()
    server = await asyncio.start_server(found.answer, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    async with server:
        yield found


def piece(text: str) -> dict[str, object]:
    return {"choices": [{"text": text}], "usage": None}


USAGE = {"choices": [], "usage": {"completion_tokens": 2}}


async def test_streams_are_counted_from_the_request_to_the_last_byte(endpoint: Endpoint) -> None:
    # An event may come in parts, and several in one.
    last = chunk(piece("b"), USAGE)
    endpoint.parts = [HEAD, chunk(piece("a")), last[:9], last[9:], chunk(b"[DONE]") + b"0\r\n\r\n"]
    run = await stream_completions("127.0.0.1", endpoint.port, [[1, 2], [3, 4], [5, 6]], TWO)
    assert run.output_tokens == 6
    assert 0.01 <= run.first_token_s < run.wall_s
    assert run.wall_s >= 0.04
    assert run.output_tokens_per_second == pytest.approx(6 / run.wall_s)
    assert sorted(str(body["prompt"]) for body in endpoint.bodies) == ["[1, 2]", "[3, 4]", "[5, 6]"]
    assert all(body["max_tokens"] == 2 and body["stream"] is True for body in endpoint.bodies)
    assert all(body["temperature"] == 0.7 and body["top_p"] == 0.9 for body in endpoint.bodies)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([HEAD, chunk(piece("a"), {**USAGE, "usage": {"completion_tokens": 1}})], "1 of 2 tokens"),
        ([HEAD, chunk(piece("a"))], "after 1 events"),
        ([b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}"], "503 Service Unavailable"),
        ([], "began with nothing"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error(
    endpoint: Endpoint, parts: Answer, message: str
) -> None:
    endpoint.parts = parts
    with pytest.raises(EngineError, match=message):
        await stream_completions("127.0.0.1", endpoint.port, [[1, 2]], TWO)


def test_a_server_process_is_measured_beside_the_engine(cli: Cli, tiny: object) -> None:
    sizes = ("--prompt-tokens", "8", "--output-tokens", "4", "--repetitions", "1")
    outcome = cli("bench", "tiny", *sizes, "--http", "--streams", "3", "--device", "cpu", "--json")
    assert outcome.status == 0, outcome.err
    (row,) = json.loads(outcome.out)["rows"]
    assert row["clients"] == 3
    rates = row["http_output_tokens_per_second"], row["engine_output_tokens_per_second"]
    assert row["share"] == pytest.approx(rates[0] / rates[1])
    assert row["http_first_token_s"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with a first line")
def test_a_server_that_does_not_start_is_an_error_in_its_words(
    cli: Cli, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'not today' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    outcome = cli("bench", "tiny", "--http", "--streams", "1", "--device", "cpu")
    assert outcome.status == 1
    assert "The server to be measured did not start. not today" in outcome.err


def test_peers_and_clients_are_not_measured_together(cli: Cli, tiny: object) -> None:
    both = cli("bench", "tiny", "--http", "--against", "llama.cpp")
    assert both.status == 1
    assert "--against and --http" in both.err

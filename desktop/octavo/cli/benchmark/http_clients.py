"""Streaming clients of an endpoint, as cheap as they can be: they share the machine with it.

What comes is kept with its time and read only after the last byte, so that a run holds the server's
work and not that of a client library.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from octavo.engine.sampling_params import SamplingParams
from octavo.errors import EngineError

_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class HttpRun:
    """Some streamed completions at once."""

    output_tokens: int
    first_token_s: float
    """Until the last client had its first event."""
    wall_s: float

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.wall_s


async def stream_completions(
    host: str, port: int, prompts: list[list[int]], params: SamplingParams
) -> HttpRun:
    """Posts every prompt on a connection of its own and reads all answers to their ends.

    Raises:
        EngineError: an answer is an error, or ends before it has all tokens.
    """
    output_tokens = params.max_tokens
    assert output_tokens is not None
    started_at = time.perf_counter()
    answers = await asyncio.gather(
        *(_stream(host, port, _request(host, port, prompt, params)) for prompt in prompts)
    )
    for answer in answers:
        answer.check(output_tokens)
    return HttpRun(
        output_tokens=output_tokens * len(prompts),
        first_token_s=max(answer.first_at for answer in answers) - started_at,
        wall_s=max(answer.ended_at for answer in answers) - started_at,
    )


def _request(host: str, port: int, prompt: list[int], params: SamplingParams) -> bytes:
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "ignore_eos": params.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _stream(host: str, port: int, request: bytes) -> "_Answer":
    loop = asyncio.get_running_loop()
    _, answer = await loop.create_connection(lambda: _Answer(request), host, port)
    await answer.ended
    return answer


class _Answer(asyncio.BufferedProtocol):
    """One connection: sends its request, keeps what comes until the server closes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = bytearray(_BUFFER_BYTES)
        self._received: list[bytes] = []
        self.first_at = 0.0
        self.ended_at = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def get_buffer(self, _wanted: int, /) -> bytearray:
        """The same each time: asyncio's own would be allocated anew for each token."""
        return self._buffer

    def buffer_updated(self, nbytes: int, /) -> None:
        self.ended_at = time.perf_counter()
        data = bytes(self._buffer[:nbytes])
        if not self.first_at and b"data: " in data:
            self.first_at = self.ended_at
        self._received.append(data)

    def connection_lost(self, _error: Exception | None, /) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def check(self, output_tokens: int) -> None:
        """Raises EngineError where that many tokens are not in it."""
        head, _, framed = b"".join(self._received).partition(b"\r\n\r\n")
        events = _events(framed) if b"chunked" in head.lower() else []
        usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
        if usage is None:
            status = head.partition(b"\r\n")[0].decode("utf-8", "replace") or "nothing"
            raise EngineError(
                f"The server broke off an answer after {len(events)} events; it began with"
                f" {status}.",
                hint="Octavo's log has the details.",
            )
        if usage["completion_tokens"] != output_tokens:
            raise EngineError(
                f"A request ended after {usage['completion_tokens']} of {output_tokens} tokens.",
                hint="Use fewer streams or tokens: the KV cache is full.",
            )


def _events(framed: bytes) -> list[dict[str, Any]]:
    """The JSON of each event in a chunked body."""
    parts, rest = [], framed
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    events = b"".join(parts).split(b"\n\n")
    return [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]

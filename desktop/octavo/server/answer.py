"""`Answer`: one generation request from its prompt to the last byte of its response.

Whatever ends it early (the client leaves, somebody cancels, the server stops) cancels its task; the
task leaves the engine's streams, which aborts them. There is no second way to cancel.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.engine.request import GenerationDelta
from octavo.engine.sampling_params import MAX_SEQUENCES_PER_REQUEST, SamplingParams
from octavo.errors import InvalidRequestError, OctavoError
from octavo.host import ModelHost
from octavo.server.board import LiveRequest, RequestBoard, RequestState
from octavo.server.error_table import error_body, kind_of
from octavo.server.json_response import JSONResponse, encode_json
from octavo.server.merged_stream import ChoiceDelta, end_tasks, merged_deltas
from octavo.server.openai_responses import AnswerShape, Completion, Usage

KEEP_ALIVE_S = 10.0
"""A stream that has had nothing to say between two looks this far apart sends a comment."""
LAST_WORD_S = 1.0
"""How long a client that does not read may hold up the error that ends its answer."""


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """What a route has understood of a request."""

    model: str
    encode: Callable[[], Sequence[Sequence[int]]]
    """Makes the token ids of each prompt; called in a worker thread."""
    sampling_params: SamplingParams
    shape: AnswerShape
    is_streamed: bool
    includes_usage: bool


class Answer(Response):
    """Runs a call and sends what comes of it."""

    def __init__(self, call: GenerationCall, host: ModelHost, board: RequestBoard) -> None:
        super().__init__()
        self._call = call
        self._host = host
        self._board = board
        self._id = call.shape.id_prefix + uuid.uuid4().hex
        self._created = int(time.time())
        self._usage = Usage()
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        live = LiveRequest(
            self._id,
            f"{client[0]}:{client[1]}" if client else "",
            str(scope["path"]),
            self._call.model,
        )
        try:
            self._board.add(live)
        except OctavoError as error:
            await _error_response(error)(scope, receive, send)
            return
        work = asyncio.create_task(self._work(live, scope, receive, send))
        gone = asyncio.create_task(_client_left(receive))
        state = RequestState.FAILED
        endings: set[asyncio.Future[Any]] = {work, gone, live.ended}
        try:
            await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                state = RequestState.FINISHED
            elif live.ended.done():
                state = RequestState.CANCELLED
                await end_tasks(work)
                raise live.ended.result()
            else:
                state = RequestState.DISCONNECTED
        except OctavoError as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._send_error(error, scope, receive, send)
        finally:
            await end_tasks(work, gone)
            self._board.remove(live, state)

    async def _work(self, live: LiveRequest, scope: Scope, receive: Receive, send: Send) -> None:
        prompts = await asyncio.to_thread(self._call.encode)
        num_choices = len(prompts) * self._call.sampling_params.n
        if num_choices > MAX_SEQUENCES_PER_REQUEST:
            raise InvalidRequestError(
                f"The request asks for {num_choices} completions; at most"
                f" {MAX_SEQUENCES_PER_REQUEST} are made at once.",
                field="n",
            )
        self._usage.prompt_tokens = live.prompt_tokens = sum(map(len, prompts))
        params = self._call.sampling_params
        deltas = merged_deltas(self._host, prompts, params, self._id, silence_s=KEEP_ALIVE_S)
        async with contextlib.aclosing(deltas) as stream:
            if self._call.is_streamed:
                await self._send_stream(num_choices, stream, live, send)
            else:
                whole = await self._collect(num_choices, stream, live)
                await JSONResponse(whole)(scope, receive, send)

    async def _collect(
        self,
        num_choices: int,
        stream: AsyncGenerator[list[ChoiceDelta], None],
        live: LiveRequest,
    ) -> dict[str, Any]:
        completions = [Completion() for _ in range(num_choices)]
        async for arrived in stream:
            for choice, delta in arrived:
                completions[choice].add(delta)
                self._note(delta, live)
        choices = [self._call.shape.whole(i, one) for i, one in enumerate(completions)]
        body = self._envelope(self._call.shape.whole_object, choices)
        return body | {"usage": self._usage.as_json()}

    async def _send_stream(
        self,
        num_choices: int,
        stream: AsyncGenerator[list[ChoiceDelta], None],
        live: LiveRequest,
        send: Send,
    ) -> None:
        """Begins with the first delta, so that a refused prompt still gets its own status.

        What has arrived meanwhile goes out in one piece, an event each: a write costs more than all
        the rest, so a server that lags behind the engine catches up.
        """
        shape = self._call.shape
        async for arrived in stream:
            events = []
            if not self._has_begun:
                await self._begin_stream(send)
                openings = [shape.opening(choice) for choice in range(num_choices)]
                events = [self._chunk_event(choice) for choice in openings if choice]
            if not arrived:
                events.append(b": waiting\n\n")
            for choice, delta in arrived:
                self._note(delta, live)
                if delta.text or delta.logprobs or delta.finish_reason is not None:
                    events.append(self._chunk_event(shape.chunk(choice, delta)))
            if events:
                await _send_part(send, b"".join(events))
        if self._call.includes_usage:
            chunk = self._envelope(shape.chunk_object, [])
            await _send_part(send, _event(chunk | {"usage": self._usage.as_json()}))
        await _send_part(send, b"data: [DONE]\n\n", is_last=True)

    async def _begin_stream(self, send: Send) -> None:
        self._has_begun = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _chunk_event(self, choice: dict[str, Any]) -> bytes:
        chunk = self._envelope(self._call.shape.chunk_object, [choice])
        if self._call.includes_usage:
            chunk["usage"] = None
        return _event(chunk)

    async def _send_error(
        self, error: OctavoError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not self._has_begun:
            await _error_response(error)(scope, receive, send)
            return
        await _send_part(send, _event(error_body(error)), is_last=True)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._call.model,
            "choices": choices,
        }

    def _note(self, delta: GenerationDelta, live: LiveRequest) -> None:
        self._usage.add(delta)
        live.note(delta)


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_part(send: Send, part: bytes, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": not is_last})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(content) + b"\n\n"


def _error_response(error: OctavoError) -> JSONResponse:
    return JSONResponse(error_body(error), kind_of(error).status)

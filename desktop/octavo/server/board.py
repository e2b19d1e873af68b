"""`RequestBoard`: which requests the endpoint works on now; any thread may look and cancel."""

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from octavo.engine.request import GenerationDelta
from octavo.errors import OctavoError, RequestCancelledError, ServerStoppingError

MAX_RECENT = 100


class RequestState(StrEnum):
    """Where a request stands, or how it ended."""

    QUEUED = "queued"
    """Waiting for its first token: encoding, in the engine's queue or in prefill."""
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """From Octavo's side."""
    DISCONNECTED = "disconnected"
    """The client closed its connection before the end."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A snapshot of one request, summed over its prompts and completions."""

    request_id: str
    client: str
    route: str
    model: str
    state: RequestState
    prompt_tokens: int
    cached_tokens: int | None
    """None until the engine tells it, with the end of the first completion."""
    output_tokens: int
    started_at: float
    """Unix time."""
    elapsed_s: float
    tokens_per_second: float | None
    """Output tokens after the first over the time since it; None below two tokens."""


class LiveRequest:
    """One request while it is worked on; changed by the server's loop only."""

    def __init__(
        self,
        request_id: str,
        client: str,
        route: str,
        model: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request_id = request_id
        self.client = client
        self.route = route
        self.model = model
        self.state = RequestState.QUEUED
        self.prompt_tokens = 0
        self.cached_tokens: int | None = None
        self.output_tokens = 0
        self._clock = clock
        self._started_at = time.time()
        self._started = clock()
        self._first_token: float | None = None
        self._latest_token: float | None = None
        self._stopped: float | None = None
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[OctavoError] = self._loop.create_future()
        """Done when somebody in Octavo wants the request to end; tells the client why."""

    def note(self, delta: GenerationDelta) -> None:
        """Counts what a delta brought."""
        if delta.token_ids:
            self._latest_token = self._clock()
            if self._first_token is None:
                self._first_token = self._latest_token
                self.state = RequestState.RUNNING
            self.output_tokens += len(delta.token_ids)
        if delta.metrics is not None and delta.index == 0:
            self.cached_tokens = (self.cached_tokens or 0) + delta.metrics.cached_tokens

    def stop(self, state: RequestState) -> None:
        self.state = state
        self._stopped = self._clock()

    def end(self, reason: OctavoError) -> None:
        """Asks the request to end; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has closed, and the request with it
            self._loop.call_soon_threadsafe(self._set_ended, reason)

    def record(self) -> RequestRecord:
        until = self._stopped if self._stopped is not None else self._clock()
        rate = None
        if self._first_token is not None and self._latest_token is not None:
            seconds = self._latest_token - self._first_token
            rate = (self.output_tokens - 1) / seconds if seconds > 0 else None
        return RequestRecord(
            request_id=self.request_id,
            client=self.client,
            route=self.route,
            model=self.model,
            state=self.state,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            started_at=self._started_at,
            elapsed_s=until - self._started,
            tokens_per_second=rate,
        )

    def _set_ended(self, reason: OctavoError) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)


class RequestBoard:
    """The requests of the endpoint: those at work, the latest ended ones, and totals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[str, LiveRequest] = {}
        self._recent: deque[RequestRecord] = deque(maxlen=MAX_RECENT)
        self._totals: Counter[RequestState] = Counter()
        self._is_open = True

    def open(self) -> None:
        """Takes requests, after a `close`."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """Refuses new requests and asks the running ones to end; from any thread."""
        with self._lock:
            self._is_open = False
            live = list(self._live.values())
        for request in live:
            request.end(_stopping())

    def add(self, request: LiveRequest) -> None:
        """Raises ServerStoppingError after `close`."""
        with self._lock:
            if not self._is_open:
                raise _stopping()
            self._live[request.request_id] = request

    def remove(self, request: LiveRequest, state: RequestState) -> None:
        """Moves a request to the ended ones."""
        with self._lock:
            request.stop(state)
            del self._live[request.request_id]
            self._recent.append(request.record())
            self._totals[state] += 1

    def cancel(self, request_id: str) -> bool:
        """Ends a request and tells its client so; False if it is not there (any more)."""
        with self._lock:
            request = self._live.get(request_id)
        if request is None:
            return False
        request.end(
            RequestCancelledError(
                "The request was cancelled in Octavo.", hint="Send it again if that was a mistake."
            )
        )
        return True

    def live(self) -> tuple[RequestRecord, ...]:
        """What is worked on now, oldest first."""
        with self._lock:
            return tuple(request.record() for request in self._live.values())

    def recent(self) -> tuple[RequestRecord, ...]:
        """What ended lately, newest first."""
        with self._lock:
            return tuple(reversed(self._recent))

    def totals(self) -> dict[RequestState, int]:
        """How many requests ended in which way since the board was made."""
        with self._lock:
            return dict(self._totals)


def _stopping() -> ServerStoppingError:
    return ServerStoppingError(
        "Octavo's endpoint is being switched off.", hint="Switch it on again in Octavo."
    )

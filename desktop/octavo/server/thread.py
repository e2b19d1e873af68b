"""`ServerThread`: the endpoint on its own thread and event loop, switched on and off at will."""

import asyncio
import logging
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from octavo.errors import InvalidInputError, OctavoError, ServerError
from octavo.host import ModelHost
from octavo.hub.library import ModelLibrary
from octavo.server.address import ServerAddress, bind
from octavo.server.board import RequestBoard
from octavo.settings import ORIGIN_PATTERN

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 3.0
NUM_WORKERS = 4
"""Threads that encode prompts and look into the library."""


class ServerThread:
    """One endpoint that can be started and stopped any number of times.

    `start` and `stop` wait: a window calls them through `asyncio.to_thread`. The rest may be read
    from any thread.
    """

    def __init__(self, host: ModelHost, library: ModelLibrary) -> None:
        self.board = RequestBoard()
        self._host = host
        self._library = library
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None
        self._address: ServerAddress | None = None
        self.start_error: OctavoError | None = None
        """Why the latest start failed; None if it did not."""

    @property
    def address(self) -> ServerAddress | None:
        """Where it listens; None while it is off."""
        thread = self._thread
        return self._address if thread is not None and thread.is_alive() else None

    def start(
        self,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        key: str = "",
        allowed_origins: Sequence[str] = (),
    ) -> ServerAddress:
        """Returns when it takes requests; the port may be a later one, and `note` says why.

        Args:
            host: a name or address of this machine; all but this machine's own need a key.
            port: 0 takes any free one.
            key: what clients must send on every route; empty: nothing.
            allowed_origins: web pages that may ask from a browser, as `https://app.example.org`.

        Raises:
            InvalidInputError: port, key or origin is of no use, or other machines could come in.
            ServerError: it is on already, or cannot listen there.
        """
        with self._lock:
            try:
                address = self._open(host, port, key, allowed_origins)
            except OctavoError as error:
                self.start_error = error
                raise
            self.start_error = None
            return address

    def _open(
        self, host: str, port: int, key: str, allowed_origins: Sequence[str]
    ) -> ServerAddress:
        if key != "".join(key.split()) or not key.isprintable():
            raise InvalidInputError("An API key must not hold spaces or control characters.")
        for origin in allowed_origins:
            if not ORIGIN_PATTERN.fullmatch(origin):
                raise InvalidInputError(
                    f"{origin!r} names no web pages.",
                    hint="Give scheme and host as browsers do, such as https://app.example.org.",
                )
        if self.address is not None:
            raise ServerError("The endpoint is switched on already.", hint="Stop it first.")
        listener, address = bind(host, port, has_key=bool(key))
        try:
            self._start(listener, address, host, key, allowed_origins)
        except BaseException:
            listener.close()
            raise
        return address

    def stop(self) -> bool:
        """Ends running requests with an error and frees the port; False if it did not in time."""
        with self._lock:
            thread, server = self._thread, self._server
            if thread is None or server is None:
                return True
            self.board.close()
            server.should_exit = True
            thread.join(STOP_TIMEOUT_S)
            self._address = None
            if thread.is_alive():
                logger.error("The server thread did not end within its time")
                return False
            self._thread = self._server = None
            return True

    def _start(
        self,
        listener: socket.socket,
        address: ServerAddress,
        host: str,
        key: str,
        allowed_origins: Sequence[str],
    ) -> None:
        import uvicorn

        from octavo.server.access import AccessRules, Door, own_host_names
        from octavo.server.app import make_app

        names = (host,) if address.is_local else (host, *own_host_names())
        rules = AccessRules(key, names, tuple(allowed_origins))
        config = uvicorn.Config(
            Door(make_app(self._host, self._library, self.board), rules),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        started = threading.Event()
        thread = threading.Thread(
            target=_serve, args=(server, listener, started), name="octavo-server", daemon=True
        )
        self.board.open()
        thread.start()
        if not started.wait(START_TIMEOUT_S) or not server.started:
            server.should_exit = True
            raise ServerError(
                "The endpoint did not start.", hint="Octavo's log has the details. Try again."
            )
        self._thread, self._server, self._address = thread, server, address


def _serve(server: "uvicorn.Server", listener: socket.socket, started: threading.Event) -> None:
    """The thread: a plain loop whose workers cannot hold up its end."""
    loop = asyncio.new_event_loop()
    workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="octavo-server-worker")
    loop.set_default_executor(workers)

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110  (uvicorn has no event)
            await asyncio.sleep(0.002)
        started.set()
        await serving

    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(run())
        loop.run_until_complete(_leave_nothing(server))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        started.set()
        listener.close()
        asyncio.set_event_loop(None)
        loop.close()
        workers.shutdown(wait=False, cancel_futures=True)


async def _leave_nothing(server: "uvicorn.Server") -> None:
    """Drops connections whose clients do not read, and waits for the tasks uvicorn cancelled."""
    for connection in tuple(server.server_state.connections):
        transport = getattr(connection, "transport", None)
        if transport is not None:
            transport.abort()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # transports close in the loop's next turn

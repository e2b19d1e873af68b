"""A web server for one file that fails on demand, and counts what it sends."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hub.counting_server import CountingServer

CHUNK_BYTES = 8192


@dataclass(frozen=True)
class Answer:
    """How one request is answered; the default is as a good server does."""

    status: int = 0
    """0: 200 or 206, as asked."""
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    """Closes the connection after so many bytes of body."""
    stall_after: int | None = None
    """Sends nothing more after so many bytes until the server ends."""
    ignores_range: bool = False
    content: bytes | None = None
    """Other bytes than the file's."""


class FileServer(CountingServer, ThreadingHTTPServer):
    """Serves `content`; the first requests get `answers`, all later ones the default."""

    daemon_threads = True

    def __init__(self, content: bytes, *answers: Answer) -> None:
        CountingServer.__init__(self)
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), _Handler)
        self.content = content
        self.tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self.answers = list(answers)
        self.pause_s = 0.0
        """Between two chunks: a slow line."""
        self.ranges: list[str] = []
        """The Range header of each request."""
        self.arrived: Callable[[], int] | None = None
        """Counts what the client has written: the server keeps `window_bytes` ahead at most."""
        self.window_bytes = CHUNK_BYTES
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model-1.0-py3-none-any.whl"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server = self.server
        answer = server.answers.pop(0) if server.answers else Answer()
        wanted = self.headers.get("Range", "")
        server.ranges.append(wanted)
        content = server.content if answer.content is None else answer.content
        start = 0
        if_range = self.headers.get("If-Range", server.tag)
        if wanted and not answer.ignores_range and if_range == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        status = answer.status or (206 if start else 200)
        body = content[start:] if status in (200, 206) else b"no"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.tag)
        if status == 206 and "Content-Range" not in answer.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        written = server.arrived() if server.arrived else 0
        for offset in range(0, len(body), CHUNK_BYTES):
            if server.arrived is not None:
                wait_for_client(server.arrived, written + offset - server.window_bytes)
            chunk = body[offset : offset + CHUNK_BYTES]
            if answer.drop_after is not None and offset >= answer.drop_after:
                return
            if answer.stall_after is not None and offset >= answer.stall_after:
                server.ended.wait(30)
                return
            server.send(self.wfile, chunk)
            if server.pause_s:
                time.sleep(server.pause_s)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Says nothing."""


def wait_for_client(arrived: Callable[[], int], wanted_bytes: int) -> None:
    """Waits until so much has arrived, or for a client that has nothing more to tell.

    What a system holds back in its buffers for a client that is slow, because the machine is busy,
    is lost when the client is killed. That is no fault of the client, and not what is tested.
    """
    end = time.monotonic() + 0.25
    while arrived() < wanted_bytes and time.monotonic() < end:
        time.sleep(0.001)


@contextlib.contextmanager
def serving(content: bytes, *answers: Answer) -> Iterator[FileServer]:
    """A server on its own thread while the block runs."""
    with FileServer(content, *answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()

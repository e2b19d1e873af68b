"""How much a test's server has sent, by many threads at a time."""

import threading
from io import BufferedIOBase


class CountingServer:
    """Counts what it sends."""

    def __init__(self) -> None:
        self.num_bytes_sent = 0
        self._lock = threading.Lock()

    def send(self, target: BufferedIOBase, chunk: bytes) -> None:
        """Writes a chunk, counted before: once the client has it, the test may ask.

        Raises:
            OSError: the client has left; the chunk does not count.
        """
        self._count(len(chunk))
        try:
            target.write(chunk)
        except OSError:
            self._count(-len(chunk))
            raise

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes_sent += num_bytes

"""`SingleInstance`: one window a person and data folder; a second start asks the first to show."""

import contextlib
import getpass
import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QObject, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from octavo.errors import OctavoError
from octavo.hub.file_lock import file_lock

logger = logging.getLogger(__name__)

LOCK_NAME = "window.lock"
ANSWER = b"shown\n"
ANSWER_TIMEOUT_S = 5.0
RETRY_S = 0.05
MAX_MESSAGE_BYTES = 16 * 1024


class _HeldError(Exception):
    """Another process holds the lock."""


class SingleInstance(QObject):
    """Claims the window's place; whoever comes later hands its argument over and leaves.

    The lock decides who is first: the system takes it back even after `kill -9`, and two starts at
    the same moment cannot both hold it. The socket only carries the message.
    """

    asked = Signal(str)
    """A second start, with its model file or hub address; empty where it had none."""

    def __init__(self, run_dir: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._run_dir = run_dir
        self._name = socket_name(run_dir)
        self._held = contextlib.ExitStack()
        self._server: QLocalServer | None = None

    def claim(self, argument: str) -> bool:
        """True if this process is the first; False when the first one has taken the argument.

        Waits for a first one that is just starting, so call it before there is a window.

        Raises:
            OctavoError: another process has the place and does not answer.
            OSError: the folder cannot be written.
        """
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            if self._take_lock():
                # A lock that the file system does not know is held by everybody: ask in any case.
                if self._hand_over(argument):
                    self._held.close()
                    return False
                self._listen()
                return True
            if self._hand_over(argument):
                return False
            if time.monotonic() > deadline:
                raise OctavoError(
                    "Octavo is open already, but its window does not answer.",
                    hint="Close that window, or end its process, and start Octavo again.",
                )
            time.sleep(RETRY_S)

    def close(self) -> None:
        """Gives the place up."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._held.close()

    def _take_lock(self) -> bool:
        def refuse() -> None:
            raise _HeldError

        self._run_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._held.enter_context(file_lock(self._run_dir / LOCK_NAME, refuse))
        except _HeldError:
            return False
        return True

    def _hand_over(self, argument: str) -> bool:
        socket = QLocalSocket()
        socket.connectToServer(self._name)
        if not socket.waitForConnected(int(ANSWER_TIMEOUT_S * 1000)):
            return False
        socket.write(json.dumps({"argument": argument}).encode() + b"\n")
        socket.flush()
        has_answer = socket.waitForReadyRead(int(ANSWER_TIMEOUT_S * 1000))
        return has_answer and bytes(socket.readAll().data()) == ANSWER

    def _listen(self) -> None:
        """Nobody answered there, so a socket of that name is what a killed process left."""
        QLocalServer.removeServer(self._name)
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._accept)
        if not self._server.listen(self._name):
            logger.warning(
                "A second start will not find this window: %s", self._server.errorString()
            )

    def _accept(self) -> None:
        assert self._server is not None
        socket = self._server.nextPendingConnection()
        socket.disconnected.connect(socket.deleteLater)
        socket.readyRead.connect(self._reader(socket))

    def _reader(self, socket: QLocalSocket) -> Callable[[], None]:
        def read() -> None:
            if not socket.canReadLine():
                if socket.bytesAvailable() > MAX_MESSAGE_BYTES:
                    socket.abort()
                return
            argument = _parse(bytes(socket.readLine(MAX_MESSAGE_BYTES).data()))
            if argument is None:
                socket.abort()
                return
            socket.write(ANSWER)
            socket.flush()
            socket.disconnectFromServer()
            self.asked.emit(argument)

        return read


def socket_name(run_dir: Path) -> str:
    """One for each person and data folder; short, for paths of sockets are bounded."""
    place = f"{getpass.getuser()}\n{run_dir.resolve()}"
    return f"octavo-{hashlib.sha256(place.encode()).hexdigest()[:24]}"


def _parse(line: bytes) -> str | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    argument = message.get("argument") if isinstance(message, dict) else None
    return argument if isinstance(argument, str) else None

"""Sets the log up and reads its end: one rotating file, one format; never a prompt, reply or key.

Modules log through `logging.getLogger(__name__)`; what they log are events and numbers, and the
cause of an error, never the text of a conversation.
"""

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s [%(threadName)s] %(name)s: %(message)s"
MAX_FILE_BYTES = 2 * 1024 * 1024
NUM_FILES = 3

_HANDLER_NAME = "octavo"


class _LogFile(RotatingFileHandler):
    """Writes to a rotating file, and to the terminal from the moment the file fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            maxBytes=MAX_FILE_BYTES,
            backupCount=NUM_FILES - 1,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._path = path
        self._fallback: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._fallback is None:
            super().emit(record)
        else:
            self._fallback.handle(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError) or self._fallback is not None:
            super().handleError(record)
            return
        self._fallback = _terminal_handler()
        self._fallback.handle(_unwritable_record(self._path, error))
        self._fallback.handle(record)


def setup_logging(path: Path, *, verbose: bool = False) -> None:
    """Sends log records and Python's warnings to the file; a second call replaces the first.

    A folder that cannot be written does not stop the app: the log then goes to the terminal, with
    one line that says why.

    Args:
        path: of the newest file; older ones get .1 and .2.
        verbose: also Octavo's own debug records.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.name == _HANDLER_NAME]:
        root.removeHandler(handler)
        handler.close()
    refused: OSError | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path)
    except OSError as error:
        handler, refused = _terminal_handler(), error
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(logging.Formatter(FORMAT))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("octavo").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
    if refused is not None:
        handler.handle(_unwritable_record(path, refused))


def _terminal_handler() -> logging.Handler:
    """Standard error, which a windowed program on Windows does not have."""
    handler = logging.StreamHandler() if sys.stderr is not None else logging.NullHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(FORMAT))
    return handler


def _unwritable_record(path: Path, error: OSError) -> logging.LogRecord:
    message = "The log file %s cannot be written (%s); what is worth a warning is shown here."
    return logging.LogRecord(
        "octavo.log",
        logging.WARNING,
        __file__,
        0,
        message,
        (path, error.strerror or error),
        None,
    )


def log_file() -> Path | None:
    """The file that records go to; None where the log was not set up or cannot be written."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFile):
            return Path(handler.baseFilename)
    return None


class LogTail:
    """Reads the end of a log file, and then what is added to it; of a long file only the last part.

    `read` blocks for the disk and is called by one worker at a time.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Args:
        max_bytes: read at once at most, however much was written meanwhile.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._inode = 0
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        """The whole lines that are new since the last call; after a rotation, of the new file."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._rest = status.st_ino, 0, b""
                skips = status.st_size - self._offset > self._max_bytes
                if skips:
                    self._offset, self._rest = status.st_size - self._max_bytes, b""
                file.seek(self._offset)
                block = file.read(self._max_bytes)
        except FileNotFoundError:
            return []
        self._offset += len(block)
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()[-self._max_bytes :]
        # Where something was skipped, the first line has lost its beginning.
        return [line.decode("utf-8", "replace") for line in (lines[1:] if skips else lines)]


def read_log_tail(path: Path, num_lines: int, max_bytes: int = 64 * 1024) -> list[str]:
    """The last lines of a log file; fewer where they are long, none where there is no file."""
    return LogTail(path, max_bytes).read()[-num_lines:]

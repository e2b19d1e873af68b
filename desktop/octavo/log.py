"""Sets the log up: one rotating file, one format. Prompts, replies and keys are never logged.

Modules log through `logging.getLogger(__name__)`; what they log are events and numbers, and the
cause of an error, never the text of a conversation.
"""

import logging
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

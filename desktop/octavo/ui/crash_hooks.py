"""`CrashHooks`: exceptions that nobody expected, from every thread, end up in one signal."""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from PySide6.QtCore import QMessageLogContext, QObject, QtMsgType, Signal, qInstallMessageHandler

from octavo.ui.crash_report import Failure

logger = logging.getLogger(__name__)
qt_logger = logging.getLogger("octavo.qt")

_LEVELS = {
    QtMsgType.QtDebugMsg: logging.DEBUG,
    QtMsgType.QtInfoMsg: logging.DEBUG,
    QtMsgType.QtWarningMsg: logging.WARNING,
    QtMsgType.QtCriticalMsg: logging.ERROR,
    QtMsgType.QtFatalMsg: logging.CRITICAL,
}


class CrashHooks(QObject):
    """Slots of Qt, callbacks of asyncio and threads that fail are logged and announced.

    What is expected is an OctavoError and goes its own way (`ui.tasks`).
    """

    failed = Signal(object)
    """A `Failure`; emitted on the thread that failed, so receivers get it on their own."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._is_announcing = threading.local()

    @contextlib.contextmanager
    def installed(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Catches until the end of the block, and puts back what was there before."""
        hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        handler = loop.get_exception_handler()
        qt_handler = qInstallMessageHandler(_log_qt_message)
        sys.excepthook = self._on_exception
        threading.excepthook = self._on_thread_exception
        sys.unraisablehook = _log_unraisable
        loop.set_exception_handler(self._on_loop_exception)
        try:
            yield
        finally:
            sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
            loop.set_exception_handler(handler)
            qInstallMessageHandler(qt_handler)

    def announce(self, error: BaseException, place: str, *, is_logged: bool = False) -> None:
        """Logs a mistake of ours and tells the window."""
        failure = Failure.of(error, place)
        if not is_logged:
            logger.error("%s failed", place.capitalize(), exc_info=error)
        if getattr(self._is_announcing, "value", False):
            # Whoever shows failures has failed itself; the log is enough.
            return
        self._is_announcing.value = True
        try:
            self.failed.emit(failure)
        finally:
            self._is_announcing.value = False

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, tb: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt | SystemExit):
            sys.__excepthook__(kind, error, tb)
        else:
            self.announce(error, "a part of the window")

    def _on_thread_exception(self, arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if error is not None and not isinstance(error, SystemExit):
            name = arguments.thread.name if arguments.thread is not None else "unknown"
            self.announce(error, f"the thread {name}")

    def _on_loop_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None:
            logger.warning("asyncio: %s", context.get("message"))
        else:
            self.announce(error, "a task of the window")


def _log_qt_message(kind: QtMsgType, _context: QMessageLogContext, message: str) -> None:
    qt_logger.log(_LEVELS.get(kind, logging.WARNING), "%s", message)


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    error = unraisable.exc_value
    logger.error("%s", unraisable.err_msg or "An exception could not be raised", exc_info=error)

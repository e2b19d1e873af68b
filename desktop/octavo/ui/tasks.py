"""`spawn`: the one way from a button to a coroutine, and the one catch-all of the window."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from PySide6.QtCore import QCoreApplication, QObject, Signal

from octavo.errors import ChatTemplateError, OctavoError
from octavo.jobs import JobCancelled

logger = logging.getLogger(__name__)

ShowError = Callable[[OctavoError], None]


class UiTasks(QObject):
    """The coroutines under way; Qt owns it, one per application.

    asyncio holds its tasks weakly, so somebody must keep them until they end.
    """

    failed = Signal(object)
    """An OctavoError of a task that was given no `on_error`."""
    broken = Signal(object)
    """A mistake of ours: the exception of a task that is no OctavoError, wherever it was shown."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def current(cls) -> "UiTasks":
        """The application's tasks."""
        app = QCoreApplication.instance()
        assert app is not None
        return app.findChild(cls) or cls(app)

    def start(
        self, coroutine: Coroutine[Any, Any, None], on_error: ShowError | None
    ) -> asyncio.Task[None]:
        try:
            task = asyncio.get_running_loop().create_task(coroutine)
        except RuntimeError:
            # The loop has ended before the widgets: the coroutine would be warned about later, far
            # from here, when it is collected.
            coroutine.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(done, on_error))
        return task

    async def cancel_all(self) -> None:
        """Cancels every task but the caller's, and those they start, and waits for their ends."""
        while tasks := self._tasks - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._tasks -= tasks

    def _finish(self, task: asyncio.Task[None], on_error: ShowError | None) -> None:
        """The window's one catch-all."""
        self._tasks.discard(task)
        if task.cancelled():
            return
        match task.exception():
            case None:
                pass
            case JobCancelled():
                logger.info("A job was cancelled")
            case OctavoError() as error:
                _log(error)
                show = on_error or self.failed.emit
                show(error)
            case error:
                logger.error("A task of the window failed", exc_info=error)
                if on_error is not None:
                    # The place that waits for the task hears of it as of any other error.
                    on_error(unexpected_error(error))
                self.broken.emit(error)


def spawn(
    coroutine: Coroutine[Any, Any, None], on_error: ShowError | None = None
) -> asyncio.Task[None]:
    """Runs a coroutine in the background of the window.

    Its errors are logged and given to `on_error`, or shown as a toast where that is None. What is
    no OctavoError is a mistake of ours and is announced by `UiTasks.broken` as well.
    """
    return UiTasks.current().start(coroutine, on_error)


def _log(error: OctavoError) -> None:
    """What a chat template says may quote the messages: of that nothing is logged."""
    cause = None if isinstance(error, ChatTemplateError) else error.__cause__
    words = "" if isinstance(error, ChatTemplateError) else f": {error}"
    logger.warning("%s%s", type(error).__name__, words, exc_info=cause)


def unexpected_error(error: BaseException) -> OctavoError:
    """Puts a mistake of ours into words that can be shown."""
    shown = OctavoError(
        f"Octavo made a mistake: {type(error).__name__}: {error}",
        hint="Nothing you wrote is lost. The log file has the details.",
    )
    shown.__cause__ = error
    return shown

"""asyncio on Qt's event loop: qasync, with asyncio's promises kept at its end and by its timers."""

import asyncio
import math
from collections.abc import Callable
from contextvars import Context
from typing import Any

import qasync
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication

PRECISE_BELOW_S = 2.0
"""Qt's coarse timers may fire 5 % early, which a short sleep must not."""


class OctavoLoop(qasync.QEventLoop):  # type: ignore[misc]
    """qasync's event loop without its leaks.

    There, cancelled timeouts keep their Qt timers; here `call_later` returns a real TimerHandle,
    and its cancellation kills the Qt timer. There, a task that comes to its turn while somebody
    else runs Qt's events (qasync itself, once more after the end) finds no running loop, and what
    it begins is lost without being awaited; here it finds this one. And what is begun after
    `asyncio.Runner` has cancelled all tasks is cancelled by `close`.
    """

    def __init__(self, app: QApplication) -> None:
        self._timer_ids: dict[int, int] = {}
        super().__init__(app)

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.Handle:
        if delay <= 0:
            handle: asyncio.Handle = super().call_later(
                0, self._call, callback, *args, context=context
            )
            return handle
        when = self.time() + delay
        timer_handle = asyncio.TimerHandle(when, self._fire, (), self, context)
        timer_handle._args = (id(timer_handle), callback, args)
        is_short = delay < PRECISE_BELOW_S
        timer_type = Qt.TimerType.PreciseTimer if is_short else Qt.TimerType.CoarseTimer
        timer_id = self._timer.startTimer(math.ceil(delay * 1000), timer_type)
        self._timer_ids[id(timer_handle)] = timer_id
        self._timer._SimpleTimer__callbacks[timer_id] = timer_handle
        return timer_handle

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.Handle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    @property
    def num_live_timers(self) -> int:
        """Delayed calls that have neither run nor been cancelled."""
        return len(self._timer_ids)

    def close(self) -> None:
        if not self.is_closed():
            while tasks := asyncio.all_tasks(self):
                for task in tasks:
                    task.cancel()
                self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()

    def _fire(self, key: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._timer_ids.pop(key, None)
        self._call(callback, *args)

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        """Runs what has come to its turn, with this loop as the running one whoever asked Qt."""
        outer = asyncio._get_running_loop()
        if outer is self:
            callback(*args)
            return
        asyncio._set_running_loop(self)
        try:
            callback(*args)
        finally:
            asyncio._set_running_loop(outer)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's hook: called by `TimerHandle.cancel`."""
        timer_id = self._timer_ids.pop(id(handle), None)
        if timer_id is not None:
            self._timer.killTimer(timer_id)
            self._timer._SimpleTimer__callbacks.pop(timer_id, None)

"""asyncio on Qt's event loop: qasync with timers that are freed when they are cancelled."""

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
    """qasync's event loop without its leak: there, cancelled timeouts keep their Qt timers.

    Here `call_later` returns a real TimerHandle, and its cancellation kills the Qt timer.
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
            handle: asyncio.Handle = super().call_later(0, callback, *args, context=context)
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

    def _fire(self, key: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._timer_ids.pop(key, None)
        callback(*args)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's hook: called by `TimerHandle.cancel`."""
        timer_id = self._timer_ids.pop(id(handle), None)
        if timer_id is not None:
            self._timer.killTimer(timer_id)
            self._timer._SimpleTimer__callbacks.pop(timer_id, None)

"""Readings at a steady pace for whoever listens; no thread while nobody does."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Protocol

from octavo.monitor.readings import MachineReading

DEFAULT_INTERVAL_S = 0.5
CLOSE_TIMEOUT_S = 2.0


class Probe(Protocol):
    """What a sampler reads: the machine, or a test's stand-in."""

    def read(self) -> MachineReading: ...

    def close(self) -> None: ...


class Sampler:
    """Reads a probe on its own thread, at most once an interval, and posts to each listener's loop.

    Invariant: the thread lives only while there are listeners, and there is never more than one.
    """

    def __init__(self, probe: Probe, interval_s: float = DEFAULT_INTERVAL_S) -> None:
        self._probe = probe
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._listeners: list[_Listener] = []
        self._thread: threading.Thread | None = None
        self._earliest_s = 0.0
        """When the probe may be read again."""

    def listen(
        self,
        callback: Callable[[MachineReading], None],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        interval_s: float = 0.0,
    ) -> Callable[[], None]:
        """Calls back on a loop (by default the running one); the returned function ends that.

        A loop that lags gets the newest reading only, and one that has closed is forgotten.

        Args:
            interval_s: a slower pace than the sampler's, for who needs no more.
        """
        pace_s = max(interval_s, self._interval_s)
        listener = _Listener(callback, loop or asyncio.get_running_loop(), pace_s)
        with self._changed:
            self._listeners.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="octavo-monitor", daemon=True
                )
                self._thread.start()
            else:
                self._changed.notify_all()  # it may be waiting for a slower one

        def stop() -> None:
            listener.is_stopped = True
            self._forget(listener)

        return stop

    @property
    def is_sampling(self) -> bool:
        with self._changed:
            return self._thread is not None

    def close(self) -> None:
        """Stops listening for everyone, waits for the thread and closes the probe."""
        with self._changed:
            for listener in self._listeners:
                listener.is_stopped = True
            self._listeners.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_TIMEOUT_S)
            if thread.is_alive():
                return  # It hangs in the driver; the thread is a daemon and keeps the probe.
        self._probe.close()

    def _forget(self, listener: "_Listener") -> None:
        with self._changed:
            if listener in self._listeners:
                self._listeners.remove(listener)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while listeners := self._wait_until_due():
                now_s = time.monotonic()
                self._earliest_s = now_s + self._interval_s
                reading = self._probe.read()
                for listener in listeners:
                    listener.due_s = now_s + listener.interval_s
                    if not listener.post(reading):
                        self._forget(listener)
        finally:
            # Also after a failing probe, so that the next listener starts a new thread.
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _wait_until_due(self) -> "tuple[_Listener, ...]":
        """Who is to hear the next reading; with nobody left the thread is given up."""
        with self._changed:
            while self._listeners:
                now_s = time.monotonic()
                first_due_s = min(listener.due_s for listener in self._listeners)
                remaining_s = max(self._earliest_s, first_due_s) - now_s
                if remaining_s <= 0:
                    return tuple(one for one in self._listeners if one.due_s <= now_s)
                self._changed.wait(remaining_s)
            self._thread = None
            return ()


class _Listener:
    """One callback and its loop; has at most one post under way."""

    def __init__(
        self,
        callback: Callable[[MachineReading], None],
        loop: asyncio.AbstractEventLoop,
        interval_s: float,
    ) -> None:
        self.interval_s = interval_s
        self.due_s = 0.0
        self._callback = callback
        self._loop = loop
        self._lock = threading.Lock()
        self._undelivered: MachineReading | None = None
        self.is_stopped = False

    def post(self, reading: MachineReading) -> bool:
        """Hands a reading to the loop; False if the loop has closed."""
        with self._lock:
            is_posted = self._undelivered is not None
            self._undelivered = reading
        if is_posted:
            return not self._loop.is_closed()
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            return False
        return True

    def _deliver(self) -> None:
        with self._lock:
            reading, self._undelivered = self._undelivered, None
        if reading is not None and not self.is_stopped:
            self._callback(reading)

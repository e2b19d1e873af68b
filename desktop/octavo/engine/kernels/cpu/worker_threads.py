"""`WorkerThreads`: threads of our own that run a program's operations together with the caller."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.engine.kernels.cpu.step_loop import (
    CONTROL_WORDS,
    MAX_PROGRAMS,
    add_program,
    finish_program,
    has_program,
    is_finished,
    work,
)

SPIN_PAUSES = 30_000
"""How long a thread waits for the next program before it sleeps: about a millisecond, which is more
than lies between two steps."""

ByteArray = npt.NDArray[np.uint8]


def aligned_bytes(num_bytes: int, alignment: int = 64) -> ByteArray:
    """Zeroed memory that begins on a cache line; none of it is resident until it is touched."""
    memory = np.zeros(num_bytes + alignment, dtype=np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + num_bytes]


class _Sleeper:
    """Where one thread sleeps."""

    def __init__(self) -> None:
        self.is_asleep = False
        self.awake = threading.Event()


class _Shared:
    """What the threads share; it does not know `WorkerThreads`, so that this can be collected."""

    def __init__(self, num_threads: int, scratch_bytes: int) -> None:
        self.control = aligned_bytes(8 * CONTROL_WORDS)
        self.scratch = [aligned_bytes(scratch_bytes) for _ in range(num_threads)]
        self.sleepers = [_Sleeper() for _ in range(num_threads - 1)]
        self.is_closing = False
        # What the latest programs work with, which must outlive them, whoever forgets it meanwhile.
        self.kept: deque[Any] = deque(maxlen=MAX_PROGRAMS)
        self.num_started = 0

    def close(self) -> None:
        self.is_closing = True
        if is_finished(np.uint64(self.control.ctypes.data), self.num_started):
            # Else it goes with the last thread that works with it.
            self.kept.clear()
        for sleeper in self.sleepers:
            sleeper.awake.set()


class WorkerThreads:
    """A fixed number of threads, the caller's one of them.

    Between programs they spin for a moment and then sleep; whoever is not awake in time misses
    nothing but work. They end when this object is closed or collected.
    """

    def __init__(self, num_threads: int, scratch_bytes: int) -> None:
        """Starts the threads beside the caller's.

        Args:
            num_threads: in all.
            scratch_bytes: of memory for each.
        """
        assert num_threads >= 1
        self.num_threads = num_threads
        self._shared = _Shared(num_threads, scratch_bytes)
        self._control = np.uint64(self._shared.control.ctypes.data)
        self._scratch = np.uint64(self._shared.scratch[0].ctypes.data)
        threads = [
            threading.Thread(
                target=_work, args=(self._shared, number), name=f"octavo-cpu-{number}", daemon=True
            )
            for number in range(1, num_threads)
        ]
        for thread in threads:
            thread.start()
        self._finalizer: Callable[[], Any] = weakref.finalize(self, _end, self._shared, threads)

    def start(self, operations: int, num_operations: int, step: int, keeps: Any = None) -> int:
        """Lets the other threads begin with a program, after those started before.

        Args:
            operations: address of its operations.
            num_operations: how many.
            step: address of what they read about the step.
            keeps: what owns the memory of all that.

        Returns:
            The program's number, for `finish`.
        """
        if self._shared.num_started >= MAX_PROGRAMS:
            self.finish(self._shared.num_started + 1 - MAX_PROGRAMS)
        self._shared.kept.append(keeps)
        number: int = add_program(self._control, operations, num_operations, step)
        self._shared.num_started = number
        for sleeper in self._shared.sleepers:
            if sleeper.is_asleep:
                sleeper.awake.set()
        return number

    def finish(self, number: int) -> None:
        """Works with the others until a program has run to its end; one caller at a time."""
        if not is_finished(self._control, number):
            finish_program(self._control, self._scratch, number)

    def finish_all(self) -> None:
        """As `finish`, for everything that was started."""
        self.finish(self._shared.num_started)

    def run(self, operations: int, num_operations: int, step: int) -> None:
        """Runs a program to its end."""
        self.finish(self.start(operations, num_operations, step))

    def close(self) -> None:
        """Ends the threads and waits for them."""
        self._finalizer()


def _end(shared: _Shared, threads: Sequence[threading.Thread]) -> None:
    """Also when they are collected, and at exit: a thread that comes back from a kernel while the
    interpreter closes would abort the process."""
    shared.close()
    for thread in threads:
        thread.join()


def _work(shared: _Shared, number: int) -> None:
    control = np.uint64(shared.control.ctypes.data)
    scratch = np.uint64(shared.scratch[number].ctypes.data)
    sleeper = shared.sleepers[number - 1]
    while not shared.is_closing:
        work(control, scratch, SPIN_PAUSES)
        # In this order nothing is missed: a program is opened before anybody is woken for it.
        sleeper.awake.clear()
        sleeper.is_asleep = True
        if not has_program(control) and not shared.is_closing:
            sleeper.awake.wait()
        sleeper.is_asleep = False

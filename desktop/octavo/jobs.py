"""One shape for long work (download, load): progress, cancel, outcome."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import OctavoError
from octavo.units import BYTES


class JobCancelled(OctavoError):  # noqa: N818  (nothing is wrong)
    """The person stopped the work; nothing is wrong."""

    def __init__(self) -> None:
        super().__init__("The work was cancelled.")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is. `total` is None while it is unknown."""

    stage: str
    done: int = 0
    total: int | None = None
    unit: str = BYTES
    """What is counted: bytes, or things by the plural of their name, such as "kernels"."""

    @property
    def fraction(self) -> float | None:
        """0 to 1, or None while the total is unknown."""
        return None if not self.total else min(1.0, self.done / self.total)


class JobControl:
    """What the worker of a job sees: it reports progress and asks whether to go on.

    `report` and `raise_if_cancelled` are called on the worker's thread, `cancel` from any.
    """

    def __init__(self, on_progress: Callable[[Progress], None] | None = None) -> None:
        self._on_progress = on_progress
        self._cancelled = threading.Event()

    def report(self, progress: Progress) -> None:
        """Passes progress on, on the worker's thread.

        Raises:
            JobCancelled: the work is to stop.
        """
        self.raise_if_cancelled()
        if self._on_progress is not None:
            self._on_progress(progress)

    def without_progress(self) -> "JobControl":
        """For a part of the work that nobody is told about; it is cancelled with the whole."""
        quiet = JobControl()
        quiet._cancelled = self._cancelled
        return quiet

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def raise_if_cancelled(self) -> None:
        """Raises JobCancelled if the work is to stop."""
        if self._cancelled.is_set():
            raise JobCancelled

    def wait(self, seconds: float) -> None:
        """Sleeps, but not longer than until the work is cancelled; then raises JobCancelled."""
        self._cancelled.wait(seconds)
        self.raise_if_cancelled()

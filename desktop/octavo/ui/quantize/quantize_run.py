"""The quantisation under way, as the window sees it: one at a time."""

import asyncio
from collections.abc import Awaitable, Callable

from PySide6.QtCore import QObject, Signal

from octavo.errors import OctavoError
from octavo.jobs import JobCancelled, JobControl, Progress
from octavo.quantize.recipe import QuantizeRecipe
from octavo.quantize.report import QuantizeReport
from octavo.ui.tasks import spawn

Quantize = Callable[[QuantizeRecipe, JobControl, bool], Awaitable[QuantizeReport]]


async def quantize_in_child(
    recipe: QuantizeRecipe, control: JobControl, evaluates: bool
) -> QuantizeReport:
    """Imports the work only when there is some."""
    from octavo.quantize.job import quantize

    return await quantize(recipe, control, evaluates=evaluates)


class QuantizeRun(QObject):
    """Runs a recipe and tells how far it is."""

    changed = Signal()
    ended = Signal()
    """However it went; not when the window closes."""
    cancelled = Signal(object)
    """The QuantizeRecipe of a run that was stopped."""
    finished = Signal(object)
    """The QuantizeReport."""
    failed = Signal(object)
    """The OctavoError."""

    def __init__(self, quantize: Quantize, parent: QObject) -> None:
        super().__init__(parent)
        self._quantize = quantize
        self._control = JobControl()
        self.recipe: QuantizeRecipe | None = None
        """Of the run under way; None: nothing runs."""
        self.progress = Progress("")

    def start(self, recipe: QuantizeRecipe, *, evaluates: bool) -> None:
        """Begins, or goes on where the same recipe was interrupted."""
        if self.recipe is None:
            self.recipe = recipe
            self._show(Progress("Reading the model"))
            spawn(self._run(recipe, evaluates), self.failed.emit)

    def cancel(self) -> None:
        """Stops; what is finished stays for the next time."""
        self._control.cancel()

    async def _run(self, recipe: QuantizeRecipe, evaluates: bool) -> None:
        loop = asyncio.get_running_loop()

        def on_progress(progress: Progress) -> None:
            loop.call_soon_threadsafe(self._show, progress)

        self._control = JobControl(on_progress)
        try:
            report = await self._quantize(recipe, self._control, evaluates)
        except JobCancelled:
            self._end()
            self.cancelled.emit(recipe)
        except OctavoError:
            self._end()
            raise
        else:
            self._end()
            self.finished.emit(report)

    def _end(self) -> None:
        self.recipe = None
        self.changed.emit()
        self.ended.emit()

    def _show(self, progress: Progress) -> None:
        if self.recipe is not None:
            self.progress = progress
            self.changed.emit()

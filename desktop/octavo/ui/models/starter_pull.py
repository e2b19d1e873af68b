"""The download of the starter model as the window sees it: one at a time, shown in any place."""

import asyncio
import enum
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QCoreApplication, QObject, Signal

from octavo.core import Core
from octavo.errors import OctavoError
from octavo.hub.catalog import CatalogEntry
from octavo.jobs import JobCancelled, JobControl, Progress
from octavo.ui.models.loading import load_model
from octavo.ui.tasks import spawn

Pull = Callable[[CatalogEntry, Path, Path, JobControl], Path]


class PullStatus(enum.Enum):
    """Where the download stands."""

    IDLE = enum.auto()
    DOWNLOADING = enum.auto()
    LOADING = enum.auto()
    FAILED = enum.auto()
    FINISHED = enum.auto()


def _pull(entry: CatalogEntry, models_dir: Path, cache_dir: Path, control: JobControl) -> Path:
    """Imports the network part only when something is to be fetched."""
    from octavo.hub.starter import pull

    return pull(entry, models_dir, cache_dir, control)


class StarterPull(QObject):
    """Fetches the starter model, then loads it. Qt owns it; there is one per `Core`."""

    changed = Signal()
    finished = Signal()
    """The model is loaded and ready for its first question."""

    def __init__(self, core: Core, parent: QObject, pull: Pull = _pull) -> None:
        super().__init__(parent)
        self._core = core
        self._pull = pull
        self._task: asyncio.Task[None] | None = None
        self.status = PullStatus.IDLE
        self.progress: Progress | None = None
        self.error: OctavoError | None = None

    @classmethod
    def of(cls, core: Core) -> "StarterPull":
        """The one of this core, so that two places that offer it show the same download."""
        app = QCoreApplication.instance()
        assert app is not None
        for child in app.findChildren(cls):
            if child._core is core:
                return child
        return cls(core, app)

    @property
    def is_running(self) -> bool:
        return self.status in (PullStatus.DOWNLOADING, PullStatus.LOADING)

    def start(self) -> None:
        if not self.is_running:
            self._set(PullStatus.DOWNLOADING, Progress("Looking up the download"))
            self._task = spawn(self._run(), self._fail)

    def cancel(self) -> None:
        """Stops; what was downloaded stays for the next time."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        core, starter = self._core, self._core.starter
        loop = asyncio.get_running_loop()

        def on_progress(progress: Progress) -> None:
            loop.call_soon_threadsafe(self._show, progress)

        control = JobControl(on_progress)
        try:
            await asyncio.to_thread(
                self._pull, starter, core.models_dir, core.paths.cache_dir, control
            )
            model = await asyncio.to_thread(core.library.find, starter.id)
            self._set(PullStatus.LOADING)
            core.library.changed.emit(None)
            await load_model(core, model)
        except (asyncio.CancelledError, JobCancelled):
            control.cancel()
            self._set(PullStatus.IDLE)
            raise
        self._set(PullStatus.FINISHED)
        self.finished.emit()

    def _show(self, progress: Progress) -> None:
        if self.status is PullStatus.DOWNLOADING:
            self._set(PullStatus.DOWNLOADING, progress)

    def _fail(self, error: OctavoError) -> None:
        self.error = error
        self._set(PullStatus.FAILED)

    def _set(self, status: PullStatus, progress: Progress | None = None) -> None:
        self.status = status
        self.progress = progress
        if status is not PullStatus.FAILED:
            self.error = None
        self.changed.emit()

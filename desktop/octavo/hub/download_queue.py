"""`DownloadQueue`: models fetched one after the other, over pauses, crashes and restarts."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from octavo.errors import ModelNotFoundError, OctavoError, StorageError
from octavo.events import Event
from octavo.hub.download_list import Download, DownloadFile, DownloadState
from octavo.jobs import JobControl, Progress

__all__ = ["Download", "DownloadQueue", "DownloadState", "Transfer"]

DOWNLOADING = "Downloading"
"""How the stages begin in which bytes come over the network."""
OFFLINE = "Waiting: Octavo is offline by its settings."
TICK_S = 0.1
RATE_WINDOW_S = 4.0
SAVE_INTERVAL_S = 5.0
ROOM_INTERVAL_S = 1.0
CLOSE_WITHIN_S = 1.0

logger = logging.getLogger(__name__)


class Transfer(Protocol):
    """What fetches a model; called on threads of the queue's own."""

    def run(self, download: Download, control: JobControl) -> Path:
        """Fetches the model and returns where it is; goes on with what an earlier run left.

        Raises:
            OctavoError: what stands in the way; what has arrived is kept.
            JobCancelled: the work is to stop; what has arrived is kept.
        """

    def discard(self, download: Download) -> None:
        """Deletes what has arrived of a model that is not wanted any more; raises OctavoError."""

    def require_room(self) -> None:
        """Raises StorageError when the disk is nearly full; asked each second of a download."""


class _Rate:
    """Bytes a second over the last seconds; 0 while nothing arrives."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, progress: Progress) -> float:
        is_back = bool(self._samples) and progress.done < self._samples[-1][1]
        if is_back or not progress.stage.startswith(DOWNLOADING):
            # What is read from the disk or waited for says nothing about the network.
            self._samples.clear()
            return 0.0
        self._samples.append((now, progress.done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_WINDOW_S:
            self._samples.popleft()
        began, done_then = self._samples[0]
        return (progress.done - done_then) / (now - began) if now > began else 0.0


class _Run:
    """The thread of one download, or of the deletion of what has arrived of one."""

    def __init__(
        self,
        download: Download,
        work: Callable[[JobControl], Path | None],
        require_room: Callable[[], None],
    ) -> None:
        self.id = download.id
        self.control = JobControl(self._keep)
        self.progress: Progress | None = None
        """The latest; replaced on the thread, read on the loop, as what follows."""
        self.path: Path | None = None
        self.error: OctavoError | None = None
        self.rate = _Rate()
        self._title = download.title
        self._do = work
        self._require_room = require_room
        self._checked_at = 0.0

    def start(self, on_end: Callable[[], None]) -> None:
        # A thread of its own, and a daemon: a request that hangs keeps no worker of the window's
        # and no program alive.
        threading.Thread(
            target=self._work, args=(on_end,), name="octavo-download-queue", daemon=True
        ).start()

    def _keep(self, progress: Progress) -> None:
        self.progress = progress
        now = time.monotonic()
        if now - self._checked_at >= ROOM_INTERVAL_S:
            self._checked_at = now
            self._require_room()

    def _work(self, on_end: Callable[[], None]) -> None:
        # Stands for what nobody expected; the thread's own hook writes that down.
        self.error = OctavoError(
            f"Octavo made a mistake with {self._title}.",
            hint="What has arrived is kept. The log file has the details.",
        )
        try:
            self.path = self._do(self.control)
            self.error = None
        except OctavoError as error:
            self.error = error
        finally:
            on_end()


class DownloadQueue:
    """The downloads in their order; one runs at a time.

    Belongs to the thread of the event loop that it is first used on. Its file has one owner: a
    second Octavo shows what stands there and changes nothing.
    """

    def __init__(
        self, file: Path, transfer: Transfer, *, is_offline: Callable[[], bool] = lambda: False
    ) -> None:
        """Args:
        file: where the list is kept.
        is_offline: whether nothing may be sent now; call `refresh` when that changes.
        """
        self.changed: Event[None] = Event()
        """Emitted about ten times a second while something moves."""
        self.finished: Event[Download] = Event()
        """Emitted for each download that is done."""
        self._file = DownloadFile(file)
        self._transfer = transfer
        self._is_offline = is_offline
        self._downloads, self._cancelled = self._file.read()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._run: _Run | None = None
        """The download that runs; threads that were told to stop are in `_threads` alone."""
        self._threads: set[_Run] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._saved_at = 0.0
        self._is_closed = False

    @property
    def downloads(self) -> tuple[Download, ...]:
        """All of them, in the order in which they were asked for."""
        return tuple(self._downloads)

    @property
    def problem(self) -> str:
        """What happened to the list's file, in a sentence; empty if nothing did."""
        return self._file.problem

    @property
    def is_owner(self) -> bool:
        """Whether downloads run here; False until `start`, and in a second Octavo."""
        return self._file.is_ours

    def start(self) -> None:
        """Goes on with what was waiting or running when the app ended.

        In a second Octavo nothing happens; `problem` says so.
        """
        if self._file.is_ours or self._is_closed:
            return
        self._loop = asyncio.get_running_loop()
        self._file.problem = ""
        try:
            if not self._file.own():
                self._file.problem = "Another Octavo window fetches the downloads."
                self.changed.emit(None)
                return
            self._downloads, self._cancelled = self._file.read()
        except StorageError as error:
            self._file.problem = str(error)
            self.changed.emit(None)
            return
        for download in self._downloads:
            if download.state is DownloadState.RUNNING:
                self._replace(download.id, state=DownloadState.WAITING)
        self._discard_cancelled()
        self.refresh()

    def add(
        self, repository: str, label: str, revision: str = "main", size_bytes: int = 0
    ) -> Download:
        """Puts a model at the end; one that is in the list already goes on where it is.

        Raises:
            StorageError: another Octavo fetches the downloads, or the list cannot be kept.
        """
        self._require_owner()
        for download in tuple(self._downloads):
            if (download.repository, download.label, download.revision) == (
                repository,
                label,
                revision,
            ):
                if download.state is not DownloadState.DONE:
                    self.resume(download.id)
                    return self._find(download.id)
                # It may have been deleted meanwhile; if not, that is seen at once.
                self._downloads.remove(download)
        download = Download(uuid.uuid4().hex, repository, label, revision, size_bytes)
        self._downloads.append(download)
        self.refresh()
        return self._find(download.id)

    def pause(self, download_id: str) -> None:
        """Stops a download for now; what has arrived is kept. Raises as `add`."""
        self._require_owner()
        download = self._find(download_id)
        if download.state in (DownloadState.WAITING, DownloadState.RUNNING):
            self._leave_run(download_id)
            self._replace(download_id, state=DownloadState.PAUSED, stage="", bytes_per_second=0.0)
            self.refresh()

    def resume(self, download_id: str) -> None:
        """Lets a paused or failed download wait for its turn again. Raises as `add`."""
        self._require_owner()
        download = self._find(download_id)
        if download.state in (DownloadState.PAUSED, DownloadState.FAILED):
            self._replace(download_id, state=DownloadState.WAITING, error="", hint="")
            self.refresh()

    def cancel(self, download_id: str) -> None:
        """Takes a download off the list and deletes what has arrived of it. Raises as `add`.

        Of one that is done only the line goes, not the model.
        """
        self._require_owner()
        self._leave_run(download_id)
        download = self._find(download_id)
        self._downloads.remove(download)
        if download.state is not DownloadState.DONE:
            self._cancelled.append(download)
            self._discard_cancelled()
        self.refresh()

    def clear_done(self) -> None:
        """Takes what is done off the list; the models stay. Raises as `add`."""
        self._require_owner()
        self._downloads = [
            download for download in self._downloads if download.state is not DownloadState.DONE
        ]
        self.refresh()

    def refresh(self) -> None:
        """Begins what may run now; call it when the settings have changed."""
        if not self._file.is_ours:
            return
        is_offline = self._is_offline()
        if is_offline and self._run is not None:
            self._put_back(self._run)
        waiting = [each for each in self._downloads if each.state is DownloadState.WAITING]
        for download in waiting:
            self._replace(download.id, stage=OFFLINE if is_offline else "")
        if waiting and self._run is None and not is_offline and not self._is_closed:
            self._begin(waiting[0])
        self._save()
        self.changed.emit(None)

    async def close(self) -> None:
        """Stops what runs, within a second; it goes on at the next start."""
        self._is_closed = True
        if not self._file.is_ours:
            return
        if self._run is not None:
            self._put_back(self._run)
        # A thread that hangs in a request is left behind: all it will do is to see that it ends.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), CLOSE_WITHIN_S)
        if self._timer is not None:
            self._timer.cancel()
        self._save()
        self._file.disown()

    def _begin(self, download: Download) -> None:
        self._run = _Run(
            download, functools.partial(self._transfer.run, download), self._transfer.require_room
        )
        self._replace(download.id, state=DownloadState.RUNNING, stage="Starting")
        self._start_thread(self._run, self._on_end)
        if self._timer is None:
            assert self._loop is not None
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _start_thread(self, run: _Run, on_end: Callable[[_Run], None]) -> None:
        loop = self._loop
        assert loop is not None
        self._threads.add(run)
        self._idle.clear()

        def post_end() -> None:
            # The loop is closed where the app has not waited for a request that hangs.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(end)

        def end() -> None:
            self._threads.discard(run)
            if not self._threads:
                self._idle.set()
            on_end(run)

        run.start(post_end)

    def _leave_run(self, download_id: str) -> None:
        """Tells the download's threads to end, and does not wait for them."""
        for run in self._threads:
            if run.id == download_id:
                run.control.cancel()
        if self._run is not None and self._run.id == download_id:
            self._take_progress(self._run)
            self._run = None

    def _put_back(self, run: _Run) -> None:
        """Stops what runs and lets it wait for its turn again."""
        self._leave_run(run.id)
        self._replace(run.id, state=DownloadState.WAITING, stage="", bytes_per_second=0.0)

    def _on_end(self, run: _Run) -> None:
        # One that was told to stop may have come to its end in that very moment.
        is_whole = run.error is None and any(each.id == run.id for each in self._downloads)
        if run is self._run or (is_whole and self._run is None):
            self._take_progress(run)
            self._run = None
            self._finish(run)
        self._discard_cancelled()

    def _finish(self, run: _Run) -> None:
        """Enters what became of a download that was not told to stop."""
        download = self._replace(run.id, stage="", bytes_per_second=0.0)
        error = run.error
        if error is not None:
            logger.warning("%s: %s", download.title, error, exc_info=error.__cause__)
            self._replace(run.id, state=DownloadState.FAILED, error=error.message, hint=error.hint)
            self.refresh()
            return
        size_bytes = download.size_bytes or download.done_bytes
        done = self._replace(
            run.id,
            state=DownloadState.DONE,
            path=run.path,
            size_bytes=size_bytes,
            done_bytes=size_bytes,
        )
        self.refresh()
        self.finished.emit(done)

    def _discard_cancelled(self) -> None:
        """Deletes what has arrived of cancelled downloads that no thread writes any more."""
        busy = {run.id for run in self._threads}
        for download in tuple(self._cancelled):
            if any(_is_same_model(download, other) for other in self._downloads):
                # Wanted again meanwhile.
                self._cancelled.remove(download)
            elif download.id not in busy and not self._is_closed:
                self._discard(download)

    def _discard(self, download: Download) -> None:
        def discard(_control: JobControl) -> None:
            self._transfer.discard(download)

        def on_end(run: _Run) -> None:
            if run.error is not None:
                # It stays in the file: the next start tries again.
                logger.warning("%s: %s", download.title, run.error)
            elif download in self._cancelled:
                self._cancelled.remove(download)
                self._save()

        self._start_thread(_Run(download, discard, self._transfer.require_room), on_end)

    def _tick(self) -> None:
        """Shows what the running thread has reported since, and when nothing has arrived."""
        self._timer = None
        if self._run is None or self._loop is None:
            return
        before = self._find(self._run.id)
        if self._take_progress(self._run) != before:
            if time.monotonic() - self._saved_at >= SAVE_INTERVAL_S:
                self._save()
            self.changed.emit(None)
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def _take_progress(self, run: _Run) -> Download:
        download = self._find(run.id)
        progress = run.progress
        if progress is None:
            return download
        rate = run.rate.add(time.monotonic(), progress)
        if progress.total is None:
            # A question to the hub: nothing about how much is here.
            return self._replace(run.id, stage=progress.stage, bytes_per_second=rate)
        return self._replace(
            run.id,
            stage=progress.stage,
            done_bytes=progress.done,
            size_bytes=max(download.size_bytes, progress.total),
            bytes_per_second=rate,
        )

    def _replace(self, download_id: str, **fields: Any) -> Download:
        download = self._find(download_id)
        changed = dataclasses.replace(download, **fields)
        self._downloads[self._downloads.index(download)] = changed
        return changed

    def _find(self, download_id: str) -> Download:
        for download in self._downloads:
            if download.id == download_id:
                return download
        raise ModelNotFoundError("This download is not in the list any more.")

    def _require_owner(self) -> None:
        self.start()
        if not self._file.is_ours:
            raise StorageError(
                self._file.problem or "Octavo is closing its downloads.",
                hint="Try again in that window, or when it is closed.",
            )

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        self._file.write(self._downloads, self._cancelled)


def _is_same_model(one: Download, other: Download) -> bool:
    return (one.repository, one.label) == (other.repository, other.label)

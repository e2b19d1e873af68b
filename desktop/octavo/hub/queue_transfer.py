"""How the download queue fetches a model: from the hub as it is set up now, into its cache."""

import shutil
from collections.abc import Callable
from pathlib import Path

from octavo.errors import DownloadError, StorageError
from octavo.hub.disk import KEPT
from octavo.hub.download_list import Download
from octavo.hub.file_lock import file_lock
from octavo.hub.hub_cache import HubCache
from octavo.hub.hub_files import HubAddress, choose_variant
from octavo.hub.hub_pull import Check, pull_variant
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobControl, Progress
from octavo.units import format_bytes

FREE_FLOOR_BYTES = 512 << 20
"""What a download leaves of a disk: a full one takes the whole desktop down."""


class QueueTransfer:
    """Fetches and discards models of the hub; keeps nothing, for any thread."""

    def __init__(
        self,
        make_hub: Callable[[], HuggingFace],
        cache: Callable[[], HubCache],
        *,
        check: Check,
        looks_dir: Path,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        """Args:
        make_hub: asked for each download, so that changed settings count from the next.
        check: raises an OctavoError if the engine cannot run a model of that header.
        looks_dir: where headers that were looked at before are kept.
        """
        self._make_hub = make_hub
        self._cache = cache
        self._check = check
        self._looks_dir = looks_dir
        self._free_bytes = free_bytes

    def run(self, download: Download, control: JobControl) -> Path:
        """Fetches the model and returns where it is; raises as `pull_variant` does."""
        control.report(Progress(f"Asking about {download.repository}"))
        hub = self._make_hub()
        address = HubAddress(download.repository, download.label, download.revision)
        repository = hub.repository(address)
        control.raise_if_cancelled()
        return pull_variant(
            hub,
            repository,
            choose_variant(address, repository),
            self._cache(),
            control,
            check=self._check,
            cache_dir=self._looks_dir,
        )

    def discard(self, download: Download) -> None:
        """Deletes what has arrived, unless another Octavo is fetching this very model now."""
        cache = self._cache()
        lock = cache.lock_path(download.repository, download.label)
        if not cache.download_folder(download.repository, download.label).exists():
            return
        try:
            with file_lock(lock, _give_up):
                cache.discard_download(download.repository, download.label)
        except _FetchedElsewhereError:
            return
        except OSError as error:
            raise StorageError(
                f"What had arrived of {download.title} cannot be deleted: {error.strerror}.",
                path=lock,
            ) from error

    def require_room(self) -> None:
        """Raises StorageError when the disk is nearly full."""
        folder = self._cache().root
        try:
            free_bytes = self._free_bytes(folder)
        except OSError:
            # The folder is not made yet, or its drive is gone: writing will say so.
            return
        if free_bytes < FREE_FLOOR_BYTES:
            raise StorageError(
                f"The disk of {folder} is nearly full: {format_bytes(free_bytes)} are free, and"
                f" downloads leave {format_bytes(FREE_FLOOR_BYTES)}.",
                hint=f"Make room, then resume. {KEPT}",
                path=folder,
            )


class _FetchedElsewhereError(DownloadError):
    def __init__(self) -> None:
        super().__init__("Another Octavo fetches this model.")


def _give_up() -> None:
    raise _FetchedElsewhereError

"""Fetches one GGUF file of a hub, after its header has said that it is of use here."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from octavo.checkpoint.gguf import GGUFHeader, read_gguf_header
from octavo.checkpoint.header import CheckpointHeader
from octavo.errors import DownloadError, OctavoError, StorageError
from octavo.hub.disk import holds, make_folder, storage_error
from octavo.hub.download import Patience, RemoteFile, fetch
from octavo.hub.file_lock import file_lock
from octavo.hub.hub_files import HubAddress, HubFile, choose_file
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.transport import HUB_ADVICE, make_opener
from octavo.jobs import JobControl, Progress
from octavo.units import format_bytes

Check = Callable[[CheckpointHeader], object]

PARTS_FOLDER = ".downloads"
"""In the models folder, so that a finished file is renamed and not copied; no scan enters it."""

_LOCK_INTERVAL_S = 0.2
_FIRST_BYTES = 1 << 20
_MOST_HEADER_BYTES = 256 << 20
_FILLING_BYTES = 16 << 20
"""Longer than any one list of numbers in a header, which a reader skips at once."""


@dataclass(frozen=True, slots=True)
class HubPull:
    """What was pulled."""

    file: HubFile
    path: Path
    was_here: bool


def pull_from_hub(
    hub: HuggingFace,
    address: HubAddress,
    models_dir: Path,
    control: JobControl,
    *,
    check: Check,
    patience: Patience | None = None,
) -> HubPull:
    """Makes sure that the file which `address` means is below `models_dir`. Blocks.

    It comes to ORG/NAME/FILE. What has arrived before a cancel, an error or a crash waits under
    the file's checksum, so that it can only ever be continued with the same content.

    Args:
        check: raises an OctavoError if the engine cannot run a model of that header.

    Raises:
        ModelNotFoundError: no such repository or file.
        UnsupportedModelError, CheckpointError: what `check` and the header's reader say.
        DownloadError: the hub cannot be reached, or sends something else.
        StorageError: a folder cannot be written, or the disk is too small.
        JobCancelled: the work is to stop.
    """
    control.report(Progress(f"Asking about {address.repository}"))
    repository = hub.repository(address)
    file = choose_file(address, repository.files)
    if not file.sha256 or not file.size_bytes:
        raise DownloadError(
            f"The hub gives no checksum for {file.path}, so Octavo could not tell whether it"
            " arrives whole.",
            hint="Choose another file or repository.",
        )
    target = models_dir.joinpath(*repository.name.split("/"), *PurePosixPath(file.path).parts)
    hub.require_access(repository, file)
    parts = models_dir / PARTS_FOLDER
    make_folder(parts)
    lock = parts / f"{file.sha256}.lock"

    def wait_for_other() -> None:
        control.report(Progress(f"Waiting for another Octavo that fetches {target.name}"))
        control.wait(_LOCK_INTERVAL_S)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(lock, wait_for_other))
        except OSError as error:
            raise storage_error(error, lock) from error
        if target.exists():
            control.report(Progress(f"Checking {target.name}, which is here already"))
        if holds(target, file.size_bytes, file.sha256, control):
            return HubPull(file, target, was_here=True)
        part = parts / f"{file.sha256}.part"
        _require_space(file, part)
        remote = RemoteFile(
            hub.file_url(repository, file), file.size_bytes, file.sha256, hub.token, HUB_ADVICE
        )
        _HubDownload(remote, target, part, control, patience or Patience()).run(check)
    return HubPull(file, target, was_here=False)


class _HubDownload:
    """One file on its way from the hub to its place."""

    def __init__(
        self,
        remote: RemoteFile,
        target: Path,
        part: Path,
        control: JobControl,
        patience: Patience,
    ) -> None:
        self._remote = remote
        self._target = target
        self._part = part
        self._control = control
        self._patience = patience
        self._opener = make_opener()

    def run(self, check: Check) -> None:
        try:
            check(self._header())
        except OctavoError as error:
            if isinstance(error, StorageError | DownloadError):
                raise
            # What is refused is not continued: its first bytes are of no use to anybody.
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)
                self._part.with_suffix(".etag").unlink(missing_ok=True)
            raise
        self._fetch(f"Downloading {self._target.name}")
        make_folder(self._target.parent)
        try:
            with self._part.open("rb+") as file:
                os.fsync(file.fileno())
            self._part.replace(self._target)
        except OSError as error:
            raise storage_error(error, self._target) from error

    def _header(self) -> GGUFHeader:
        """Reads the header from the first bytes of the part file, and fetches as many as it takes.

        Raises:
            CheckpointError, UnsupportedModelError: as `read_gguf_header`.
            DownloadError, StorageError, JobCancelled: as `fetch`.
        """
        num_bytes = _FIRST_BYTES
        while True:
            num_bytes = min(num_bytes, self._remote.size_bytes)
            if not self._part.exists() or self._part.stat().st_size < num_bytes:
                self._fetch(f"Reading what {self._target.name} is", until_bytes=num_bytes)
            is_all = num_bytes in (self._remote.size_bytes, _MOST_HEADER_BYTES)
            # What has not arrived is stood in for by one filling, then by another: only what does
            # not depend on the filling has been read from the file itself.
            outcome = self._read_with(b"\0", num_bytes)
            if isinstance(outcome, GGUFHeader):
                if outcome.data_offset <= num_bytes:
                    return outcome
            elif is_all or str(self._read_with(b"\xff", num_bytes)) == str(outcome):
                raise outcome
            if is_all:
                raise DownloadError(
                    f"The header of {self._target.name} is longer than {format_bytes(num_bytes)}.",
                    hint="Choose another file or repository.",
                )
            num_bytes *= 4

    def _read_with(self, filling: bytes, num_bytes: int) -> GGUFHeader | OctavoError:
        """The header of a stand-in: as long as the file, with its first bytes and a filling."""
        # Under a name of its own, so that what a killed process left is written over.
        stand_in = self._part.with_suffix(".header") / self._target.name
        try:
            stand_in.parent.mkdir(exist_ok=True)
            with self._part.open("rb") as source, stand_in.open("wb") as file:
                file.write(source.read(num_bytes))
                if filling != b"\0":
                    left_bytes = self._remote.size_bytes - num_bytes
                    file.write(filling * min(left_bytes, _FILLING_BYTES))
                # A hole: it takes no room on the disk.
                file.truncate(self._remote.size_bytes)
            try:
                return read_gguf_header(stand_in)
            except OctavoError as error:
                return error
        except OSError as error:
            raise storage_error(error, self._part) from error
        finally:
            shutil.rmtree(stand_in.parent, ignore_errors=True)

    def _fetch(self, stage: str, until_bytes: int | None = None) -> None:
        fetch(
            self._remote,
            self._part,
            self._control,
            stage=stage,
            opener=self._opener,
            patience=self._patience,
            until_bytes=until_bytes,
        )


def _require_space(file: HubFile, part: Path) -> None:
    """Raises StorageError if what is still to come does not fit."""
    try:
        here_bytes = part.stat().st_size if part.exists() else 0
        free_bytes = shutil.disk_usage(part.parent).free
    except OSError as error:
        raise storage_error(error, part) from error
    needed_bytes = max(0, file.size_bytes - here_bytes)
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{PurePosixPath(file.path).name} needs {format_bytes(needed_bytes)} in {part.parent}, "
            f"and {format_bytes(free_bytes)} are free there.",
            hint=f"Make {format_bytes(needed_bytes - free_bytes)} of room, or choose another "
            "models folder in the settings.",
            path=part.parent,
        )

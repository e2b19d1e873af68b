"""Fetches one model of a hub into the cache, after its header has said that it is of use here."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from octavo.checkpoint.header import CheckpointHeader
from octavo.errors import ModelError, StorageError
from octavo.hub.disk import holds, storage_error
from octavo.hub.download import Patience, Share
from octavo.hub.file_lock import locked
from octavo.hub.hub_cache import HubCache
from octavo.hub.hub_files import GGUF, HubFile, HubRepository, HubVariant
from octavo.hub.hub_inspect import beginning_path, inspect_variant
from octavo.hub.hub_transfer import HubTransfer
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobControl, Progress
from octavo.units import format_bytes

Check = Callable[[CheckpointHeader], object]


def is_here(repository: HubRepository, variant: HubVariant, cache: HubCache) -> bool:
    """Whether every file of the variant is in the cache, by its size."""
    return all(cache.find(repository.name, repository.commit, file) for file in variant.files)


def pull_variant(
    hub: HuggingFace,
    repository: HubRepository,
    variant: HubVariant,
    cache: HubCache,
    control: JobControl,
    *,
    check: Check,
    cache_dir: Path | None = None,
    patience: Patience | None = None,
) -> Path:
    """Makes sure that a variant is in the cache, and returns the model's path. Blocks.

    What has arrived before a cancel, an error or a crash waits under the contents' checksums, so
    that it can only ever be continued with the same content. A model that is here already is
    checked, and what is damaged of it fetched anew.

    Args:
        check: raises an OctavoError if the engine cannot run a model of that header.
        cache_dir: where `inspect_variant` has been told to keep what it read, to go on from that.

    Raises:
        UnsupportedModelError, CheckpointError: what `check` and the header's reader say.
        DownloadError: the hub cannot be reached, or sends something else.
        StorageError: a folder cannot be written, or the disk is too small.
        JobCancelled: the work is to stop.
    """
    pull = _Pull(hub, repository, variant, cache, control, patience)
    lock = cache.lock_path(repository.name, variant.label)
    with locked(lock, control, f"Waiting for another Octavo that fetches {pull.title}"):
        if not pull.is_whole():
            hub.require_access(repository, variant.files[0])
            pull.run(check, cache_dir)
    return cache.publish(repository.name, repository.commit, repository.revision, variant)


class _Pull:
    """One variant on its way from the hub to the cache."""

    def __init__(
        self,
        hub: HuggingFace,
        repository: HubRepository,
        variant: HubVariant,
        cache: HubCache,
        control: JobControl,
        patience: Patience | None,
    ) -> None:
        self.title = variant.files[0].name if variant.kind == GGUF else repository.name
        self._hub = hub
        self._repository = repository
        self._variant = variant
        self._cache = cache
        self._control = control
        self._patience = patience
        self._folder = cache.download_folder(repository.name, variant.label)

    def is_whole(self) -> bool:
        """Whether all files are here and right; what is damaged is deleted."""
        if not is_here(self._repository, self._variant, self._cache):
            return False
        is_right = True
        for file in self._variant.files:
            self._control.report(Progress(f"Checking {self.title}, which is here already"))
            path = self._find(file)
            if path is None or not self._is_right(path, file):
                is_right = False
                if path is not None:
                    _unlink(path)
        return is_right

    def run(self, check: Check, cache_dir: Path | None) -> None:
        self._cache.prepare(self._repository.name, self._variant.label)
        self._drop_strangers()
        self._require_space()
        looks_dir = cache_dir or self._folder
        try:
            check(
                inspect_variant(
                    self._hub,
                    self._repository,
                    self._variant,
                    looks_dir,
                    self._control,
                    patience=self._patience,
                )
            )
        except ModelError:
            # What is refused is not continued: its first bytes are of no use to anybody.
            self._cache.discard_download(self._repository.name, self._variant.label)
            raise
        before_bytes = 0
        transfer = HubTransfer(self._hub, self._repository, self._control, self._patience)
        for file in self._variant.files:
            self._bring(file, transfer, looks_dir, before_bytes)
            before_bytes += file.size_bytes
        self._cache.discard_download(self._repository.name, self._variant.label)

    def _bring(
        self, file: HubFile, transfer: HubTransfer, looks_dir: Path, before_bytes: int
    ) -> None:
        """Makes sure that one file's content is in the cache."""
        # `huggingface_hub` takes the same lock, and finds the content once it has it.
        lock = self._cache.lock_path(self._repository.name, file.blob_id)
        with locked(lock, self._control, f"Waiting for another program that fetches {file.name}"):
            if self._find(file) is not None:
                return
            part = self._part(file)
            self._seed(part, beginning_path(looks_dir, self._repository, file))
            transfer.fetch(
                file,
                part,
                stage=f"Downloading {self.title}",
                share=Share(before_bytes, self._variant.size_bytes),
            )
            self._cache.keep(part, self._repository.name, file)

    def _seed(self, part: Path, beginning: Path) -> None:
        """Begins a part file with what was read for the header."""
        try:
            if not beginning.exists() or part.exists():
                return
            # Under another name until it is whole: a kill must not leave half of it.
            draft = part.with_suffix(".seed")
            shutil.copyfile(beginning, draft)
            draft.replace(part)
            tag = beginning.with_suffix(".etag")
            if tag.exists():
                shutil.copyfile(tag, part.with_suffix(".etag"))
        except OSError as error:
            raise storage_error(error, part) from error

    def _require_space(self) -> None:
        """Raises StorageError if what is still to come of all files does not fit."""
        needed_bytes = 0
        try:
            for file in self._variant.files:
                if self._find(file) is None:
                    part = self._part(file)
                    here_bytes = part.stat().st_size if part.exists() else 0
                    needed_bytes += max(0, file.size_bytes - here_bytes)
            free_bytes = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise storage_error(error, self._folder) from error
        if free_bytes < needed_bytes:
            raise StorageError(
                f"{self.title} needs {format_bytes(needed_bytes)} in {self._cache.root}, "
                f"and {format_bytes(free_bytes)} are free there.",
                hint=f"Make {format_bytes(needed_bytes - free_bytes)} of room, or choose another "
                "models folder in the settings.",
                path=self._cache.root,
            )

    def _drop_strangers(self) -> None:
        """Deletes parts of contents that the variant has no more, after a new commit."""
        ours = {file.blob_id for file in self._variant.files}
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.is_file() and path.stem not in ours:
                    path.unlink()

    def _find(self, file: HubFile) -> Path | None:
        return self._cache.find(self._repository.name, self._repository.commit, file)

    def _is_right(self, path: Path, file: HubFile) -> bool:
        return holds(path, file.size_bytes, file.sha256, self._control, git_sha1=file.blob_id)

    def _part(self, file: HubFile) -> Path:
        return self._folder / f"{file.blob_id}.part"


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise storage_error(error, path) from error

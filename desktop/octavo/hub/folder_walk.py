"""Looks through folders for model files, folders of models and caches of a hub."""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.checkpoint.folder import CONFIG_FILE, WEIGHTS_SUFFIX
from octavo.hub.hub_cache import CachedModel, HubCache

SUFFIX = ".gguf"
# Deep enough for other apps' layouts; keeps a home folder given by mistake from being read whole.
_MAX_DEPTH = 6
_MAX_ENTRIES = 50_000
_CACHED = re.compile(r"(models|datasets|spaces)--.+")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class FileKey:
    """One version of a file or of a folder's files."""

    path: Path
    size_bytes: int
    modified_ns: int
    repository: str = ""
    """ORG/NAME, where it lies in a hub's cache."""
    label: str = ""
    """Which of the repository's models."""


class FolderWalk:
    """Looks for models; no folder is entered twice, so loops of links end."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._entered: set[tuple[int, int]] = set()
        self._num_entries = 0

    def refusal(self, folder: Path, *, may_be_missing: bool) -> str:
        """Why the folder cannot be read, in a sentence; empty if it can."""
        try:
            with os.scandir(folder):
                return ""
        except FileNotFoundError:
            # The parent of the default folder is missing, too, before the first download.
            if may_be_missing:
                return ""
            return f"The model folder {folder} is missing; its models come back with it."
        except NotADirectoryError:
            return f"The model folder {folder} is a file. Choose another one in the settings."
        except OSError as error:
            return f"The model folder {folder} cannot be read: {error.strerror}."

    def files(self, folder: Path, depth: int = 0) -> Iterator[FileKey]:
        """Models in and below a folder, in the order of their names; the folder itself first."""
        try:
            status = folder.stat()
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if depth:
                self.problems.append(f"The folder {folder} cannot be read: {error.strerror}.")
            return
        if (status.st_dev, status.st_ino) in self._entered:
            return
        self._entered.add((status.st_dev, status.st_ino))
        if self._num_entries < _MAX_ENTRIES <= self._num_entries + len(entries):
            self.problems.append(
                f"{folder} and the folders before it hold more than {_MAX_ENTRIES:,} files; "
                "Octavo did not look further. Choose a folder of models alone."
            )
        self._num_entries += len(entries)
        if self._num_entries >= _MAX_ENTRIES:
            return
        names = {entry.name for entry in entries}
        if CONFIG_FILE in names and any(name.endswith(WEIGHTS_SUFFIX) for name in names):
            yield folder_key(folder, [Path(entry.path) for entry in entries])
        if any(_CACHED.fullmatch(name) for name in names):
            yield from _cached(HubCache(folder))
            # Below lie the same files again, under the names of their contents.
            entries = [entry for entry in entries if not _CACHED.fullmatch(entry.name)]
        for entry in entries:
            path = Path(entry.path)
            try:
                if entry.is_dir():
                    if depth < _MAX_DEPTH and not entry.name.startswith("."):
                        yield from self.files(path, depth + 1)
                elif _is_model_file(entry.name, names):
                    yield file_key(path)
            except OSError as error:
                # A link that leads nowhere, or a file that vanished meanwhile.
                self.problems.append(f"{path} cannot be read: {error.strerror}.")


def cache_of(path: Path) -> HubCache | None:
    """The hub's cache that a model lies in; None if it lies in none."""
    for folder in path.absolute().parents:
        if folder.name == "snapshots" and _CACHED.fullmatch(folder.parent.name):
            return HubCache(folder.parent.parent)
    return None


def part_paths(path: Path) -> list[Path]:
    """The files of a GGUF model: the one, or all parts of a split one that are there."""
    part = _part(path.name)
    if part is None:
        return [path]
    same = (other for other in path.parent.iterdir() if _part(other.name) == part)
    return sorted(same)


def _part(name: str) -> tuple[str, str, str] | None:
    """What the parts of one split model have in common; None if a name says nothing of parts."""
    stem, _, suffix = name.rpartition(".")
    match = _PART.fullmatch(stem)
    return (match[1], match[3], suffix.lower()) if match else None


def file_key(path: Path) -> FileKey:
    """Of a GGUF file; of the first part of a split one, all parts count. Raises OSError."""
    status = path.stat()
    others = [part.stat() for part in part_paths(path) if part != path]
    return FileKey(
        path,
        status.st_size + sum(other.st_size for other in others),
        max(status.st_mtime_ns, *(other.st_mtime_ns for other in others), 0),
    )


def folder_key(folder: Path, files: Iterable[Path], repository: str = "") -> FileKey:
    """Changes with any file of the folder; what cannot be looked at counts nothing."""
    size_bytes, modified_ns = 0, 0
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                size_bytes += status.st_size
                modified_ns = max(modified_ns, status.st_mtime_ns)
    return FileKey(folder, size_bytes, modified_ns, repository)


def _is_model_file(name: str, names: Iterable[str]) -> bool:
    """Whether it stands for a model: of a split one, only the first part does."""
    path = Path(name)
    if path.suffix.lower() != SUFFIX or name.startswith("."):
        return False
    match = _PART.fullmatch(path.stem)
    first = f"{match[1]}-00001-of-{match[3]}{path.suffix}" if match else name
    return first == name or first not in names


def _cached(cache: HubCache) -> Iterator[FileKey]:
    """The whole models of a hub's cache, whichever program put them there."""
    for model in cache.models():
        with contextlib.suppress(OSError):
            if model.path.is_dir():
                files = list(model.path.iterdir())
                if _are_all_here(files):
                    yield folder_key(model.path, files, model.repository)
            else:
                yield _cached_file(model)


def _cached_file(model: CachedModel) -> FileKey:
    key = file_key(model.path)
    return FileKey(key.path, key.size_bytes, key.modified_ns, model.repository, model.label)


def _are_all_here(files: Sequence[Path]) -> bool:
    """Whether no link of a snapshot leads nowhere, and no part of its weights is missing."""
    if not all(file.exists() for file in files):
        return False
    parts = [part for file in files if (part := _part(file.name)) is not None]
    return all(parts.count(part) == int(part[1]) for part in set(parts))

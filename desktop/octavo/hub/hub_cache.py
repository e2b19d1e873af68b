"""The hub's own cache layout, which other programs read and write, too: blobs, refs, snapshots.

models--ORG--NAME/
  blobs/ETAG                  each content once
  refs/main                   the commit that a branch stood at
  snapshots/COMMIT/PATH       the files of a commit: links to blobs
  .octavo/LABEL/ETAG.part     what is on its way; other programs do not look here
.locks/models--ORG--NAME/     one lock an ETAG, as `huggingface_hub` takes them
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from octavo.errors import StorageError
from octavo.hub.disk import make_folder, storage_error
from octavo.hub.file_lock import file_lock
from octavo.hub.hub_files import GGUF, HubFile, HubVariant, variants_of

_REPOSITORY_PREFIX = "models--"
_DOWNLOADS = ".octavo"
_WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack")


def default_hub_cache_dir() -> Path:
    """Where `huggingface_hub` keeps its cache for this person, as its documentation says."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return _expanded(folder)
    if home := os.environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(caches) / "huggingface" / "hub"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One model of a cache, whoever put it there."""

    repository: str
    """ORG/NAME."""
    commit: str
    label: str
    """As the variant's of the repository: `Q4_K_M`, `safetensors`."""
    path: Path
    """A .gguf file, the first of a split one, or the snapshot's folder."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HubCache:
    """One cache folder. Any thread and any process may use it at the same time."""

    root: Path

    def model_path(self, repository_name: str, commit: str, variant: HubVariant) -> Path:
        """Where the variant is once it has been pulled."""
        snapshot = self._snapshot(repository_name, commit)
        return snapshot / variant.files[0].path if variant.kind == GGUF else snapshot

    def blob_path(self, repository_name: str, file: HubFile) -> Path:
        return self._folder(repository_name) / "blobs" / file.blob_id

    def lock_path(self, repository_name: str, name: str) -> Path:
        """The lock of an etag, under the name that `huggingface_hub` has for it, or of a label."""
        locks = self.root / ".locks" / _folder_name(repository_name)
        return locks / f"{_one_name(name)}.lock"

    def download_folder(self, repository_name: str, label: str) -> Path:
        """Where the parts of one download wait; on the drive of the blobs, so that they move."""
        return self._folder(repository_name) / _DOWNLOADS / _one_name(label)

    def prepare(self, repository_name: str, label: str) -> Path:
        """Makes the folders that a download needs, and returns `download_folder`.

        Raises:
            StorageError: they cannot be made.
        """
        folder = self._folder(repository_name)
        # Without this one `huggingface_hub` takes the repository for damaged.
        make_folder(folder / "snapshots")
        make_folder(folder / "blobs")
        downloads = self.download_folder(repository_name, label)
        make_folder(downloads)
        return downloads

    def discard_download(self, repository_name: str, label: str) -> int:
        """Deletes what has arrived of a download that is not wanted any more; freed bytes."""
        folder = self.download_folder(repository_name, label)
        freed_bytes = sum(_size(path) for path in folder.rglob("*")) if folder.is_dir() else 0
        shutil.rmtree(folder, ignore_errors=True)
        self._remove_if_empty(folder.parent)
        self._clear_empty_repository(self._folder(repository_name))
        return freed_bytes

    def find(self, repository_name: str, commit: str, file: HubFile) -> Path | None:
        """The file's content, if it is here with the right size."""
        # Where there are no links, other programs keep the content in the snapshot alone.
        entry = self._snapshot(repository_name, commit) / file.path
        for path in (self.blob_path(repository_name, file), entry):
            if path.is_file() and _size(path) == file.size_bytes:
                return path
        return None

    def keep(self, part: Path, repository_name: str, file: HubFile) -> None:
        """Makes a whole and checked part file the blob of its content.

        Raises:
            StorageError: it cannot be moved.
        """
        blob = self.blob_path(repository_name, file)
        try:
            with part.open("rb+") as content:
                os.fsync(content.fileno())
            part.replace(blob)
        except OSError as error:
            raise storage_error(error, blob) from error

    def publish(
        self, repository_name: str, commit: str, revision: str, variant: HubVariant
    ) -> Path:
        """Makes a variant whose files are all here visible to every program; `model_path`.

        Raises:
            StorageError: the snapshot cannot be written.
        """
        snapshot = self._snapshot(repository_name, commit)
        try:
            for file in variant.files:
                _link(self.blob_path(repository_name, file), snapshot / file.path)
            if revision != commit:
                self._write_ref(repository_name, revision, commit)
        except OSError as error:
            raise storage_error(error, snapshot) from error
        return self.model_path(repository_name, commit, variant)

    def models(self) -> list[CachedModel]:
        """Every model of the cache; of one that several commits share, the newest commit's."""
        found: dict[Path, CachedModel] = {}
        for snapshot in self._snapshots(self.root):
            name = _repository_name(snapshot.parent.parent)
            for variant in _variants_in(snapshot):
                path = snapshot / variant.files[0].path
                content = path.resolve()
                if variant.kind != GGUF:
                    path, content = snapshot, (snapshot / variant.files[-1].path).resolve()
                found.setdefault(
                    content,
                    CachedModel(name, snapshot.name, variant.label, path, variant.size_bytes),
                )
        return list(found.values())

    def remove(self, path: Path) -> int:
        """Deletes a model that `models` lists, and returns how many bytes that frees.

        Of every commit that has it the entries go, then the contents which no entry leads to any
        more. What is no part of the model stays while the commit has other weights.

        Raises:
            StorageError: it is no model of this cache, or cannot be deleted.
        """
        place = Path(os.path.normpath(path.absolute()))
        snapshots = [
            snapshot for snapshot in self._snapshots(self.root) if place.is_relative_to(snapshot)
        ]
        variants = [
            (snapshot, variant)
            for snapshot in snapshots
            for variant in _variants_in(snapshot)
            if place == (snapshot / variant.files[0].path if variant.kind == GGUF else snapshot)
        ]
        if not variants:
            raise StorageError(
                f"{path} is no model of the hub cache {self.root}, so Octavo does not delete it.",
                hint="Delete it yourself.",
                path=path,
            )
        ((snapshot, variant),) = variants
        try:
            return self._remove_variant(snapshot.parent.parent, snapshot, variant)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be deleted: {error.strerror or error}.",
                hint="Close the programs that use it, and check who owns the folder.",
                path=path,
            ) from error

    def _remove_variant(self, folder: Path, snapshot: Path, variant: HubVariant) -> int:
        weights = {(snapshot / file.path).resolve() for file in _weights_of(variant)}
        freed_bytes = 0
        for other in list(self._snapshots_of(folder)):
            for same in _variants_in(other):
                contents = {(other / file.path).resolve() for file in _weights_of(same)}
                if same.files == variant.files if other == snapshot else contents == weights:
                    freed_bytes += self._remove_entries(folder, other, same)
        self._clear_empty_repository(folder)
        return freed_bytes

    def _remove_entries(self, folder: Path, snapshot: Path, variant: HubVariant) -> int:
        entries = [snapshot / file.path for file in variant.files]
        others = [path for path in _files_below(snapshot) if path not in entries]
        if not any(path.suffix.lower() in _WEIGHTS for path in others):
            # A read-me and the like without any model beside it.
            entries += others
        elif variant.kind != GGUF and any(path.suffix == ".bin" for path in others):
            # The small files belong to the other weights as well.
            entries = [snapshot / file.path for file in _weights_of(variant)]
        freed_bytes = 0
        blobs = set()
        for entry in entries:
            if entry.is_symlink():
                blobs.add(Path(os.path.normpath(entry.parent / entry.readlink())))
            else:
                blobs.update(_same_content(entry, folder / "blobs"))
                freed_bytes += _freed_by(entry)
            entry.unlink()
            _remove_empty_folders(entry.parent, snapshot)
        for blob in blobs:
            freed_bytes += self._remove_blob(folder, blob)
        if not any(_files_below(snapshot)):
            self._forget_commit(folder, snapshot.name)
        return freed_bytes

    def _remove_blob(self, folder: Path, blob: Path) -> int:
        """Deletes a content unless an entry still leads to it; freed bytes."""
        if blob.parent != folder / "blobs":
            return 0
        lock = self.root / ".locks" / folder.name / f"{blob.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        # Whoever is about to link to this very content holds its lock; then it stays.
        with contextlib.suppress(BlockingIOError), file_lock(lock, _give_up):
            if self._is_used(folder, blob):
                return 0
            freed_bytes = _freed_by(blob)
            shared = blob.resolve() if blob.is_symlink() else None
            blob.unlink(missing_ok=True)
            if shared is None:
                return freed_bytes
            from octavo.hub.hugging_face import collect_shared_content

            return collect_shared_content(shared, self.root)
        return 0

    def _is_used(self, folder: Path, blob: Path) -> bool:
        return any(
            entry.is_symlink() and Path(os.path.normpath(entry.parent / entry.readlink())) == blob
            for snapshot in self._snapshots_of(folder)
            for entry in _files_below(snapshot)
        )

    def _forget_commit(self, folder: Path, commit: str) -> None:
        """Deletes an empty snapshot with the branches that point to it."""
        refs = folder / "refs"
        for ref in list(_files_below(refs)):
            # A branch that leads nowhere is damage in the eyes of `huggingface_hub`.
            if ref.read_text(encoding="utf-8").strip() == commit:
                ref.unlink()
                _remove_empty_folders(ref.parent, refs)
        shutil.rmtree(folder / "snapshots" / commit, ignore_errors=True)
        shutil.rmtree(folder / ".no_exist" / commit, ignore_errors=True)
        (folder / "trees" / f"{commit}.json").unlink(missing_ok=True)

    def _clear_empty_repository(self, folder: Path) -> None:
        """Deletes a repository's folder in which nothing is left."""
        if folder.is_dir() and not any(_files_below(folder)):
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_if_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            folder.rmdir()

    def _write_ref(self, repository_name: str, revision: str, commit: str) -> None:
        folder = self._folder(repository_name)
        ref = folder.joinpath("refs", *PurePosixPath(revision).parts)
        if ref.is_file() and ref.read_text(encoding="utf-8") == commit:
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        # Not beside the ref: there another program would take it for a branch.
        draft = folder / f".ref-{os.getpid()}"
        draft.write_text(commit, encoding="utf-8")
        draft.replace(ref)

    def _snapshots(self, root: Path) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for folder in sorted(root.glob(f"{_REPOSITORY_PREFIX}*--*")):
                yield from self._snapshots_of(folder)

    def _snapshots_of(self, folder: Path) -> Iterator[Path]:
        """The newest first."""
        with contextlib.suppress(OSError):
            snapshots = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
            yield from sorted(snapshots, key=lambda path: -path.stat().st_mtime)

    def _folder(self, repository_name: str) -> Path:
        return self.root / _folder_name(repository_name)

    def _snapshot(self, repository_name: str, commit: str) -> Path:
        return self._folder(repository_name) / "snapshots" / commit


def _give_up() -> None:
    raise BlockingIOError("The content is in use.")


def _folder_name(repository_name: str) -> str:
    return _REPOSITORY_PREFIX + repository_name.replace("/", "--")


def _repository_name(folder: Path) -> str:
    return folder.name.removeprefix(_REPOSITORY_PREFIX).replace("--", "/", 1)


def _one_name(label: str) -> str:
    """A label, which may be a path, as the name of one file."""
    return label.replace("/", "--")


def _variants_in(snapshot: Path) -> tuple[HubVariant, ...]:
    """The models of a snapshot, as the hub would list them from these files alone."""
    files = [
        HubFile(path.relative_to(snapshot).as_posix(), _size(path), "", "")
        for path in _files_below(snapshot)
    ]
    return variants_of(sorted(files, key=lambda file: file.path))


def _weights_of(variant: HubVariant) -> list[HubFile]:
    return [file for file in variant.files if file.path.endswith((".gguf", ".safetensors"))]


def _files_below(folder: Path) -> Iterator[Path]:
    """Files and links at any depth, also links that lead nowhere."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)


def _link(blob: Path, entry: Path) -> None:
    """Makes an entry of a snapshot: a link where the file system has them."""
    if entry.is_file() and (not blob.exists() or entry.samefile(blob)):
        return
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.unlink(missing_ok=True)
    try:
        entry.symlink_to(os.path.relpath(blob, entry.parent))
    except FileExistsError:
        # Another program made it in this very moment.
        return
    except (OSError, NotImplementedError):
        try:
            entry.hardlink_to(blob)
        except OSError:
            # As `huggingface_hub` does it there: the content lies in the snapshot and nowhere else.
            shutil.move(blob, entry)


def _same_content(entry: Path, blobs: Path) -> list[Path]:
    """The blob that is the same file as an entry, where entries are hard links."""
    if entry.stat().st_nlink < 2:
        return []
    return [blob for blob in _files_below(blobs) if blob.samefile(entry)]


def _freed_by(path: Path) -> int:
    """How many bytes deleting one name of a file frees; 0 of a link and of one of several names."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        return 0 if path.is_symlink() or status.st_nlink > 1 else status.st_size
    return 0


def _remove_empty_folders(folder: Path, root: Path) -> None:
    while folder != root and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _expanded(folder: str) -> Path:
    return Path(os.path.expandvars(folder)).expanduser()

"""The models on this machine, files and folders: what they are, found by name, and deleted."""

import contextlib
import dataclasses
import difflib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.checkpoint.folder import CONFIG_FILE, WEIGHTS_SUFFIX, is_model_folder
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.errors import ModelNotFoundError, OctavoError, StorageError
from octavo.events import Event
from octavo.hub.catalog import CatalogEntry
from octavo.hub.model_removal import remove_file, remove_folder
from octavo.units import format_bytes

SUFFIX = ".gguf"
# Deep enough for other apps' layouts; keeps a home folder given by mistake from being read whole.
_MAX_DEPTH = 6
_MAX_ENTRIES = 50_000


@dataclass(frozen=True, slots=True)
class LibraryModel:
    """One model, as far as its header tells."""

    name: str
    """As typed on the command line: lower case, from the name on disk, unique in the library."""
    title: str
    path: Path
    """A .gguf file, or a folder with config.json and safetensors."""
    size_bytes: int
    """Of a folder: all files in it."""
    architecture: str = ""
    quantization: str = ""
    num_parameters: int = 0
    context_length: int = 0
    license: str = ""
    problem: str = ""
    """Empty if the model can be used, else the sentence why it cannot."""


@dataclass(frozen=True, slots=True)
class _FileKey:
    """One version of a file or of a folder's files."""

    path: Path
    size_bytes: int
    modified_ns: int


class ModelLibrary:
    """The models below some folders.

    Any thread may scan. A header is read once for each version of its file.
    """

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        *,
        starter: CatalogEntry | None = None,
        check: Callable[[CheckpointHeader], object] | None = None,
    ) -> None:
        """Args:
        folders: where models lie now; the first one is where downloads go and may not exist yet.
        starter: the model that its id, "starter", stands for.
        check: raises an OctavoError if the engine cannot run a model of that header.
        """
        self.changed: Event[None] = Event()
        self._folders = folders
        self._starter = starter
        self._check = check
        self._lock = threading.Lock()
        self._known: dict[_FileKey, LibraryModel] = {}
        self._listed: list[LibraryModel] = []
        self._problems: list[str] = []

    @property
    def problems(self) -> list[str]:
        """Sentences about folders that the last scan could not read."""
        return list(self._problems)

    def scan(self) -> list[LibraryModel]:
        """Every model, by name; what is damaged or out of reach says so in `problem`."""
        with self._lock:
            walk = _FolderWalk()
            found: dict[Path, LibraryModel] = {}
            seen: set[_FileKey] = set()
            for index, folder in enumerate(self._folders()):
                listed = [model for model in self._listed if model.path.is_relative_to(folder)]
                problem = walk.refusal(folder, may_be_missing=index == 0 and not listed)
                if problem:
                    walk.problems.append(problem)
                    # Models of an unplugged drive stay in the list, greyed.
                    for model in listed:
                        found[model.path] = dataclasses.replace(model, problem=problem)
                for key in walk.files(folder):
                    identity = key.path.resolve()
                    if identity not in found:
                        seen.add(key)
                        found[identity] = self._known.get(key) or self._read(key)
            self._known = {key: model for key, model in self._known.items() if key in seen}
            self._listed = _with_unique_names(found.values())
            self._problems = walk.problems
            return list(self._listed)

    def find(self, name_or_path: str) -> LibraryModel:
        """The model of that name, title, unique beginning of a name, or path.

        Raises:
            ModelNotFoundError: no model is meant, or several are.
        """
        models = self.scan()
        wanted = _short_name(name_or_path.removesuffix(SUFFIX))
        if self._starter is not None and wanted == self._starter.id:
            return self._find_starter(models, self._starter)
        for model in models:
            if wanted in (model.name, _short_name(model.title)):
                return model
        matches = [model for model in models if wanted and model.name.startswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        path = Path(name_or_path).expanduser()
        try:
            if path.is_file() or (wanted and is_model_folder(path)):
                return self._find_path(models, path)
        except OSError as error:
            raise ModelNotFoundError(
                f"{path} cannot be looked at: {error.strerror}.", hint="Check the path."
            ) from error
        if len(matches) > 1:
            names = ", ".join(model.name for model in matches)
            raise ModelNotFoundError(
                f"{name_or_path!r} fits {len(matches)} models: {names}.",
                hint="Type more of the name.",
            )
        if wanted and path.is_dir():
            raise ModelNotFoundError(
                f"{path} is a folder, not a model file, and has no {CONFIG_FILE}.",
                hint="Give the .gguf file in it, or add the folder to the library.",
            )
        if path.suffix.lower() == SUFFIX and path.name != name_or_path:
            raise ModelNotFoundError(f"There is no file at {path}.", hint="Check the path.")
        raise self._no_such_name(name_or_path, models)

    def remove(self, model: LibraryModel) -> int:
        """Deletes the model's files, and returns how many bytes that frees.

        A link goes, what it points to stays. Of a folder only the files of a model go, and the
        folder itself if nothing else is in it.

        Raises:
            StorageError: the model lies outside the library's folders, or cannot be deleted.
        """
        path = model.path
        is_folder = path.suffix.lower() != SUFFIX or path.is_dir()
        is_whole = path.is_dir() and not path.is_symlink()
        # A name such as ".." must not lead out; a link's own place counts, not its target's.
        real_path = path.resolve() if is_whole else path.parent.resolve() / path.name
        roots = [folder.resolve() for folder in self._folders()]
        inside = any(real_path.is_relative_to(root) for root in roots)
        if not inside or (is_folder and path.exists() and not is_model_folder(path)):
            raise StorageError(
                f"{path} lies outside the library's folders, so Octavo does not delete it.",
                hint="Delete it yourself.",
                path=path,
            )
        if is_whole:
            freed_bytes = remove_folder(real_path, keep_folder=real_path in roots)
        else:
            freed_bytes = remove_file(path)
        self.changed.emit(None)
        return freed_bytes

    def _read(self, key: _FileKey) -> LibraryModel:
        path = key.path
        model = LibraryModel(_name_of(path), _stem(path), path, key.size_bytes)
        is_starter = self._starter is not None and path.name == self._starter.file_name
        if is_starter and self._starter is not None:
            model = dataclasses.replace(model, title=self._starter.title)
        try:
            header = read_checkpoint(path)
        except StorageError as error:
            # Not remembered: who may read a file changes without the file.
            return dataclasses.replace(model, problem=str(error))
        except OctavoError as error:
            self._known[key] = model = dataclasses.replace(model, problem=str(error))
            return model
        problem = ""
        if self._check is not None:
            try:
                self._check(header)
            except OctavoError as error:
                problem = str(error)
        self._known[key] = model = dataclasses.replace(
            model,
            title=model.title if is_starter else header.title or model.title,
            architecture=header.architecture,
            quantization=header.quantization,
            num_parameters=header.num_parameters,
            context_length=header.context_length,
            license=header.license,
            problem=problem,
        )
        return model

    def _find_starter(self, models: Sequence[LibraryModel], starter: CatalogEntry) -> LibraryModel:
        for model in models:
            # A shorter or damaged file of that name does not count: pulling again repairs it.
            if model.path.name == starter.file_name and model.size_bytes == starter.size_bytes:
                return model
        raise ModelNotFoundError(
            f"The starter model {starter.title} is not on this machine yet.",
            hint=f"`octavo pull {starter.id}` fetches it ({format_bytes(starter.download_bytes)}).",
        )

    def _find_path(self, models: Sequence[LibraryModel], path: Path) -> LibraryModel:
        identity = path.resolve()
        for model in models:
            if model.path.resolve() == identity:
                return model
        # Resolved, or a folder given as "." would have no name.
        if path.is_dir():
            return self._read(_folder_key(identity, list(path.iterdir())))
        return self._read(_file_key(path.absolute(), path.stat()))

    def _no_such_name(self, name: str, models: Sequence[LibraryModel]) -> ModelNotFoundError:
        names = [model.name for model in models]
        if self._starter is not None:
            names.append(self._starter.id)
        wanted = _short_name(name)
        near = sorted(
            (known for known in names if _likeness(wanted, known) > 0.6),
            key=lambda known: -_likeness(wanted, known),
        )
        message = f"No model named {name!r} is in the library."
        if near:
            message += f" Nearest: {', '.join(near[:3])}."
        if not models:
            return ModelNotFoundError(
                message, hint="The library is empty; `octavo pull starter` fetches a small model."
            )
        return ModelNotFoundError(message, hint="`octavo list` shows all.")


class _FolderWalk:
    """Looks for model files; no folder is entered twice, so loops of links end."""

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

    def files(self, folder: Path, depth: int = 0) -> Iterator[_FileKey]:
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
            yield _folder_key(folder, [Path(entry.path) for entry in entries])
        for entry in entries:
            path = Path(entry.path)
            try:
                if entry.is_dir():
                    if depth < _MAX_DEPTH and not entry.name.startswith("."):
                        yield from self.files(path, depth + 1)
                elif path.suffix.lower() == SUFFIX and not entry.name.startswith("."):
                    yield _file_key(path, entry.stat())
            except OSError as error:
                # A link that leads nowhere, or a file that vanished meanwhile.
                self.problems.append(f"{path} cannot be read: {error.strerror}.")


def _likeness(wanted: str, name: str) -> float:
    """0 to 1; who mistypes a long name often types only its beginning."""
    if len(wanted) > 1 and wanted in name:
        return 1.0
    beginning = name[: len(wanted)]
    return max(difflib.SequenceMatcher(None, wanted, text).ratio() for text in (name, beginning))


def _short_name(text: str) -> str:
    """`SmolLM2-135M-Instruct.Q4_1` becomes `smollm2-135m-instruct-q4_1`."""
    return re.sub(r"\s+|\.(?=(?:i?q\d|t?q\d|bf16|f16|f32|mxfp4))", "-", text.strip().lower())


def _file_key(path: Path, status: os.stat_result) -> _FileKey:
    return _FileKey(path, status.st_size, status.st_mtime_ns)


def _folder_key(folder: Path, files: Sequence[Path]) -> _FileKey:
    """Changes with any file of the folder; what cannot be looked at counts nothing."""
    size_bytes, modified_ns = 0, 0
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                size_bytes += status.st_size
                modified_ns = max(modified_ns, status.st_mtime_ns)
    return _FileKey(folder, size_bytes, modified_ns)


def _stem(path: Path) -> str:
    """The name without .gguf; a folder's may have dots of its own."""
    return path.stem if path.suffix.lower() == SUFFIX else path.name


def _name_of(path: Path) -> str:
    return _short_name(_stem(path))


def _with_unique_names(models: Iterable[LibraryModel]) -> list[LibraryModel]:
    """Gives the second file of one name the name with "-2", in the order of the folders."""
    taken: set[str] = set()
    named = []
    for model in models:
        name, number = _name_of(model.path), 1
        while name in taken:
            number += 1
            name = f"{_name_of(model.path)}-{number}"
        taken.add(name)
        named.append(dataclasses.replace(model, name=name))
    return sorted(named, key=lambda model: model.name)

"""The models on this machine, files and folders: what they are, found by name, and deleted."""

import dataclasses
import difflib
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.checkpoint.folder import CONFIG_FILE, is_model_folder
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.errors import ModelNotFoundError, OctavoError, StorageError
from octavo.events import Event
from octavo.hub.catalog import CatalogEntry
from octavo.hub.folder_walk import (
    SUFFIX,
    FileKey,
    FolderWalk,
    cache_of,
    file_key,
    folder_key,
    part_paths,
)
from octavo.hub.model_removal import remove_file, remove_folder
from octavo.units import format_bytes


@dataclass(frozen=True, slots=True)
class LibraryModel:
    """One model, as far as its header tells."""

    name: str
    """As typed on the command line: lower case, from the name on disk, unique in the library."""
    title: str
    path: Path
    """A .gguf file, of a split one the first part, or a folder with config.json and safetensors."""
    size_bytes: int
    """Of all parts, and of all files in a folder."""
    architecture: str = ""
    quantization: str = ""
    num_parameters: int = 0
    context_length: int = 0
    license: str = ""
    problem: str = ""
    """Empty if the model can be used, else the sentence why it cannot."""
    repository: str = ""
    """ORG/NAME, where it lies in a hub's cache."""


class ModelLibrary:
    """The models below some folders.

    Any thread may scan. A header is read once for each version of its file.
    """

    def __init__(
        self,
        folders: Callable[[], Sequence[Path]],
        *,
        hub_caches: Callable[[], Sequence[Path]] = tuple,
        starter: CatalogEntry | None = None,
        check: Callable[[CheckpointHeader], object] | None = None,
        forget: Callable[[Path], int] | None = None,
    ) -> None:
        """Args:
        folders: where models lie now; the first one is where downloads go and may not exist yet.
        hub_caches: caches of a hub, which may be missing.
        starter: the model that its id, "starter", stands for.
        check: raises an OctavoError if the engine cannot run a model of that header.
        forget: removes what is kept of a model elsewhere, and returns the bytes that this frees.
        """
        self.changed: Event[None] = Event()
        self._folders = folders
        self._hub_caches = hub_caches
        self._starter = starter
        self._check = check
        self._forget = forget
        self._lock = threading.Lock()
        self._known: dict[FileKey, LibraryModel] = {}
        self._listed: list[LibraryModel] = []
        self._problems: list[str] = []

    @property
    def problems(self) -> list[str]:
        """Sentences about folders that the last scan could not read."""
        return list(self._problems)

    def scan(self) -> list[LibraryModel]:
        """Every model, by name; what is damaged or out of reach says so in `problem`."""
        with self._lock:
            walk = FolderWalk()
            found: dict[Path, LibraryModel] = {}
            seen: set[FileKey] = set()
            downloads, *others = self._folders()
            caches = self._hub_caches()
            for folder in dict.fromkeys((downloads, *caches, *others)):
                listed = [model for model in self._listed if model.path.is_relative_to(folder)]
                is_optional = folder in caches or (folder == downloads and not listed)
                problem = walk.refusal(folder, may_be_missing=is_optional)
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
        matches = _of_repository(models, name_or_path) or [
            model for model in models if wanted and model.name.startswith(wanted)
        ]
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

    def find_at(self, path: Path) -> LibraryModel | None:
        """The model whose files lie there, under whatever path it is listed; None if none does."""
        try:
            identity = path.expanduser().resolve()
        except (OSError, RuntimeError):
            return None
        return next((model for model in self.scan() if model.path.resolve() == identity), None)

    def remove(self, model: LibraryModel) -> int:
        """Deletes the model's files, and returns how many bytes that frees.

        A link goes, what it points to stays. Of a folder only the files of a model go, and the
        folder itself if nothing else is in it. Of a hub's cache go the contents that no other
        model there uses.

        Raises:
            StorageError: the model lies outside the library's folders, or cannot be deleted.
        """
        path = model.path
        is_folder = path.suffix.lower() != SUFFIX or path.is_dir()
        is_whole = path.is_dir() and not path.is_symlink()
        # A name such as ".." must not lead out; a link's own place counts, not its target's.
        real_path = path.resolve() if is_whole else path.parent.resolve() / path.name
        roots = [folder.resolve() for folder in (*self._folders(), *self._hub_caches())]
        inside = any(real_path.is_relative_to(root) for root in roots)
        if not inside or (is_folder and path.exists() and not is_model_folder(path)):
            raise StorageError(
                f"{path} lies outside the library's folders, so Octavo does not delete it.",
                hint="Delete it yourself.",
                path=path,
            )
        forgotten_bytes = 0 if self._forget is None else self._forget(path)
        if cache := cache_of(path):
            freed_bytes = cache.remove(path)
        elif is_whole:
            freed_bytes = remove_folder(real_path, keep_folder=real_path in roots)
        else:
            freed_bytes = sum(map(remove_file, part_paths(path)))
        self.changed.emit(None)
        return freed_bytes + forgotten_bytes

    def _read(self, key: FileKey) -> LibraryModel:
        path = key.path
        model = LibraryModel(
            _name_of(key), _stem(path), path, key.size_bytes, repository=key.repository
        )
        if key.repository:
            model = dataclasses.replace(model, title=_repository_title(key))
        is_starter = self._starter is not None and path.name == self._starter.file_name
        if is_starter and self._starter is not None:
            model = dataclasses.replace(model, title=self._starter.title)
        is_snapshot = bool(key.repository) and path.is_dir()
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
            # A snapshot's folder is called by its commit, which is no title.
            title=model.title if is_starter or is_snapshot else self._title(header, model.title),
            architecture=header.architecture,
            quantization=header.quantization,
            num_parameters=header.num_parameters,
            context_length=header.context_length,
            license=header.license,
            problem=problem,
        )
        return model

    def _title(self, header: CheckpointHeader, file_title: str) -> str:
        """What the header says; of copies of the starter, and what was made of it, its own."""
        starter = self._starter
        if starter is not None and header.title and header.title == starter.header_title:
            return starter.title
        return header.title or file_title

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
            return self._read(folder_key(identity, list(path.iterdir())))
        return self._read(file_key(path.absolute()))

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


def _of_repository(models: Sequence[LibraryModel], address: str) -> list[LibraryModel]:
    """The models of ORG/NAME, or of ORG/NAME:QUANT those of that quantisation."""
    repository, _, quant = address.strip().casefold().partition(":")
    of_it = [model for model in models if repository and model.repository.casefold() == repository]
    return [
        model
        for model in of_it
        if not quant or quant == model.quantization.casefold() or model.name.endswith(f"-{quant}")
    ]


def _likeness(wanted: str, name: str) -> float:
    """0 to 1; who mistypes a long name often types only its beginning."""
    if len(wanted) > 1 and wanted in name:
        return 1.0
    beginning = name[: len(wanted)]
    return max(difflib.SequenceMatcher(None, wanted, text).ratio() for text in (name, beginning))


def _short_name(text: str) -> str:
    """`SmolLM2-135M-Instruct.Q4_1` becomes `smollm2-135m-instruct-q4_1`."""
    return re.sub(r"\s+|\.(?=(?:i?q\d|t?q\d|bf16|f16|f32|mxfp4))", "-", text.strip().lower())


def _stem(path: Path) -> str:
    """The name without .gguf; a folder's may have dots of its own."""
    return path.stem if path.suffix.lower() == SUFFIX else path.name


def _name_of(key: FileKey) -> str:
    return _short_name(_repository_title(key) if key.repository else _stem(key.path))


def _repository_title(key: FileKey) -> str:
    """`SmolLM2-135M-Instruct-Q4_1` of a GGUF file, `SmolLM2-135M-Instruct` of a folder."""
    title = key.repository.rpartition("/")[2]
    if not key.label:
        return title
    if key.label.lower().endswith(SUFFIX):
        # Several files of one quantisation: only their names tell them apart.
        return key.path.stem
    return f"{re.sub('[-_.]gguf$', '', title, flags=re.IGNORECASE)}-{key.label}"


def _with_unique_names(models: Iterable[LibraryModel]) -> list[LibraryModel]:
    """Gives the second file of one name the name with "-2", in the order of the folders."""
    taken: set[str] = set()
    named = []
    for model in models:
        name, number = model.name, 1
        while name in taken:
            number += 1
            name = f"{model.name}-{number}"
        taken.add(name)
        named.append(dataclasses.replace(model, name=name))
    return sorted(named, key=lambda model: model.name)

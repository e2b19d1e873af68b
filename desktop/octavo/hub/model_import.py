"""Takes a model that lies elsewhere into the library by a link: nothing is copied or moved."""

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from octavo.checkpoint.folder import is_model_folder, is_pickled_weights, pickled_file_error
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.errors import ModelNotFoundError, StorageError
from octavo.hub.disk import make_folder, storage_error
from octavo.hub.folder_walk import SUFFIX, part_paths


class LinkKind(StrEnum):
    """What stands in the library for the model."""

    SYMLINK = "link"
    HARD_LINK = "hard link"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class ModelImport:
    """What was imported."""

    path: Path
    """In the models folder."""
    source: Path
    kind: LinkKind
    was_here: bool = False


def import_model(
    source: Path, models_dir: Path, *, check: Callable[[CheckpointHeader], object]
) -> ModelImport:
    """Puts links to a GGUF file, to all parts of a split one, or to a folder into `models_dir`.

    Where the system makes no links (Windows without developer mode), other names of the same files
    are made, and copies where the drive differs.

    Args:
        check: raises an OctavoError if the engine cannot run a model of that header.

    Raises:
        ModelNotFoundError: there is no model at that path.
        UnsupportedModelError, CheckpointError: what `check` and the header's reader say.
        StorageError: a folder cannot be read or written.
    """
    sources = _sources(source)
    check(read_checkpoint(sources[0]))
    make_folder(models_dir)
    for folder in _candidates(models_dir):
        targets = [folder / path.name for path in sources]
        if all(map(_is_same, targets, sources)):
            return ModelImport(targets[0], sources[0], LinkKind.SYMLINK, was_here=True)
        if not any(os.path.lexists(target) for target in targets):
            return _link_all(sources, targets)
    raise StorageError(
        f"{models_dir} holds too many models named {sources[0].name}.",
        hint="Rename the file, then import it.",
        path=models_dir,
    )


def _sources(source: Path) -> list[Path]:
    """Where the files, or the folder, really lie; the model's own first."""
    path = source.expanduser()
    try:
        path = path.resolve(strict=True)
        if path.is_dir():
            if is_model_folder(path):
                return [path]
            raise ModelNotFoundError(
                f"{source} is no model: the folder has no config.json.",
                hint="Give the .gguf file or the model's own folder in it, or add the folder in the"
                " settings to list all of its models.",
            )
        if is_pickled_weights(path.name):
            raise pickled_file_error(path)
        if path.suffix.lower() != SUFFIX:
            raise ModelNotFoundError(
                f"{source} is no GGUF file and no folder of a model.",
                hint="Octavo runs .gguf files, and folders with config.json and safetensors.",
            )
        return part_paths(path)
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"There is nothing at {source}.", hint="Check the path."
        ) from error
    except (OSError, RuntimeError) as error:
        # RuntimeError: links that run in a circle.
        raise StorageError(f"{source} cannot be read: {error}.", path=source) from error


def _candidates(models_dir: Path) -> list[Path]:
    """The models folder, then ones below it: another model may have the same name."""
    return [models_dir, *(models_dir / f"imported-{number}" for number in range(2, 100))]


def _is_same(target: Path, source: Path) -> bool:
    with contextlib.suppress(OSError):
        return target.samefile(source)
    return False


def _link_all(sources: Sequence[Path], targets: Sequence[Path]) -> ModelImport:
    made: list[Path] = []
    kinds: list[LinkKind] = []
    try:
        targets[0].parent.mkdir(exist_ok=True)
        for source, target in zip(sources, targets, strict=True):
            made.append(target)
            kinds.append(_link(source, target))
    except OSError as error:
        for path in made:
            _take_back(path)
        raise storage_error(error, targets[0]) from error
    return ModelImport(targets[0], sources[0], kinds[-1])


def _link(source: Path, target: Path) -> LinkKind:
    """Makes the best link that the system allows; raises OSError."""
    with contextlib.suppress(OSError, NotImplementedError):
        target.symlink_to(source, target_is_directory=source.is_dir())
        return LinkKind.SYMLINK
    if not source.is_dir():
        return _link_or_copy(source, target)
    target.mkdir()
    files = sorted(path for path in source.iterdir() if path.is_file())
    kinds = {_link_or_copy(path, target / path.name) for path in files}
    return LinkKind.COPY if LinkKind.COPY in kinds else LinkKind.HARD_LINK


def _link_or_copy(source: Path, target: Path) -> LinkKind:
    with contextlib.suppress(OSError):
        target.hardlink_to(source)
        return LinkKind.HARD_LINK
    shutil.copy2(source, target)
    return LinkKind.COPY


def _take_back(path: Path) -> None:
    """Removes what was made of an import that failed."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

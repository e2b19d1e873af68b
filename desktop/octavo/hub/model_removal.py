"""Deletes a model's files, and nothing that is not a model's."""

import fnmatch
import os
import stat
from pathlib import Path

from octavo.checkpoint.folder import CONFIG_FILE
from octavo.errors import StorageError
from octavo.hub.folder_walk import cache_of

_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    CONFIG_FILE,
)
"""What a folder of a model consists of. The last one goes last: while it stands, the model is
still listed and deleting it can be tried again."""
_COMPANIONS = ("README.md", "LICENSE*", "USE_POLICY.md", "NOTICE*", ".gitattributes")
"""What comes along from a hub; it goes only if nothing else is left."""


def link_target(path: Path) -> Path | None:
    """Where an imported model really lies; None if deleting it deletes the model itself."""
    # Of a hub's cache the content goes along with the links to it.
    if not path.is_symlink() or cache_of(path) is not None:
        return None
    return path.resolve()


def remove_file(path: Path) -> int:
    """Deletes a file, or the link to one, and returns how many bytes that frees.

    Raises:
        StorageError: it cannot be deleted; one that is gone already frees nothing.
    """
    try:
        status = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _cannot_be_deleted(path, error) from error
    is_elsewhere = stat.S_ISLNK(status.st_mode) or status.st_nlink > 1
    return 0 if is_elsewhere else _allocated(status)


def remove_folder(folder: Path, *, keep_folder: bool) -> int:
    """Deletes the model's files directly in a folder, then the folder if it is empty.

    Args:
        folder: no link.
        keep_folder: leaves the folder even if it is empty.

    Raises:
        StorageError: a file cannot be deleted; what is left is still a model of the library.
    """
    freed_bytes = 0
    for pattern in _MODEL_FILES:
        freed_bytes += sum(map(remove_file, _files(folder, (pattern,))))
    companions = _files(folder, _COMPANIONS)
    try:
        is_rest_ours = len(companions) == len(list(folder.iterdir()))
    except OSError as error:
        raise _cannot_be_deleted(folder, error) from error
    if is_rest_ours:
        freed_bytes += sum(map(remove_file, companions))
        if not keep_folder:
            try:
                folder.rmdir()
            except OSError as error:
                raise _cannot_be_deleted(folder, error) from error
    return freed_bytes


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files and links of these names; never a folder."""
    try:
        with os.scandir(folder) as listing:
            return sorted(
                Path(entry.path)
                for entry in listing
                if not entry.is_dir(follow_symlinks=False)
                and any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns)
            )
    except OSError as error:
        raise _cannot_be_deleted(folder, error) from error


def _cannot_be_deleted(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be deleted: {error.strerror}.",
        hint="Check who owns it, and that no other program holds it open.",
        path=path,
    )


def _allocated(status: os.stat_result) -> int:
    """Bytes on the disk, where the system says so: a sparse file frees less than its size."""
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)

"""What downloads ask of a disk: folders, files that are whole, and errors as sentences."""

import errno
import hashlib
import os
from pathlib import Path

from octavo.errors import StorageError
from octavo.jobs import JobControl

KEPT = "What has arrived is kept; the next try goes on from there."
_HASH_BYTES = 1 << 20


def storage_error(error: OSError, path: Path) -> StorageError:
    """What the system says about writing a file, with the next step."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"The disk is full: {path} cannot be written any further.",
            hint=f"Make room, then try again. {KEPT}",
            path=path,
        )
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}.",
        hint="Check that the folder exists and belongs to you, or choose another in the settings.",
        path=path,
    )


def make_folder(folder: Path) -> None:
    """Makes a folder that can be written to; raises StorageError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    if not os.access(folder, os.W_OK):
        raise StorageError(
            f"The folder {folder} cannot be written to.",
            hint="Check who owns it, or choose another folder in the settings.",
            path=folder,
        )


def new_digest(size_bytes: int, sha256: str) -> "hashlib._Hash":
    """What a file's content is fed to: sha256, or git's sha1 of a file where none is known."""
    if sha256:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)


def holds(
    path: Path, size_bytes: int, sha256: str, control: JobControl, *, git_sha1: str = ""
) -> bool:
    """Whether the file is there, whole and right; `git_sha1` counts where there is no sha256."""
    try:
        if path.stat().st_size != size_bytes:
            return False
        digest = new_digest(size_bytes, sha256)
        with path.open("rb") as file:
            while chunk := file.read(_HASH_BYTES):
                control.raise_if_cancelled()
                digest.update(chunk)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}.",
            hint="Check who owns the file, or move it away.",
            path=path,
        ) from error
    return digest.hexdigest() == (sha256 or git_sha1)

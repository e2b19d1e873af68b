"""Says whether a checkpoint's files are still those that were read."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.header import CheckpointHeader


def files_of(header: CheckpointHeader) -> list[Path]:
    """Every file that says something about the model: all parts, or all of a folder."""
    if isinstance(header, FolderHeader):
        return sorted(path for path in header.path.iterdir() if path.is_file())
    return sorted({header.path, *(tensor.path for tensor in header.tensors.values())})


def identity_of(header: CheckpointHeader) -> str:
    """Changes with the place, the size or the time of change of any file; 32 hexadecimal digits.

    Raises:
        OSError: a file is gone.
    """
    return hashlib.blake2b("\n".join(_stamps(header)).encode(), digest_size=16).hexdigest()


def _stamps(header: CheckpointHeader) -> Iterator[str]:
    for path in files_of(header):
        status = path.stat()
        yield f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"

"""`TileStore`: weights as the CPU's kernels read them, kept on disk for the next load. No torch.

A file of tiles is mapped into memory, which takes no time and no private memory. It begins with
what lies in it:

    8 bytes      "OCTTILES"
    uint64       length of the index
    index        JSON: the model's path, and of each matrix its name, form, shape and place
    zeros        up to a multiple of 4096
    tiles        matrix by matrix, each at a multiple of 64

Which file belongs to a model is said by its name: identity of the model's files, and version of the
tiles. All tiers of processors read the same tiles.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from octavo.jobs import JobControl

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

_MAGIC = b"OCTTILES"
_SUFFIX = ".tiles"
_PAGE_BYTES = 4096
_ALIGNMENT = 64
_MAX_INDEX_BYTES = 64 << 20
_MAX_BYTES = 32 << 30
"""Of all files; those used longest ago go first."""
_LEFT_FREE_BYTES = 4 << 30
"""A disk with less room than this and the file itself is left alone."""

_ABANDONED_S = 3600.0

Bytes: TypeAlias = "npt.NDArray[np.uint8]"


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """One matrix of a file; its fields are those of `PackedMatrix` in plain numbers."""

    form: str
    num_rows: int
    num_columns: int
    group_size: int
    num_tiles: int
    tile_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_tiles * self.tile_bytes


@dataclass(frozen=True, slots=True)
class TileFile:
    """An open file of tiles."""

    memory: Bytes
    """All of it, private to this process: nobody writes, but who did would change no file."""
    matrices: Mapping[str, StoredMatrix]
    offsets: Mapping[str, int]
    """Where each matrix begins."""


class TileStore:
    """The files of tiles in one folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, key: str) -> TileFile | None:
        """Maps what is kept under a key; None if that is nothing, or not whole."""
        import numpy as np  # here, because the window has this class before anything is loaded

        path = self._path(key)
        try:
            index = _read_index(path)
            memory: Bytes = np.memmap(path, dtype=np.uint8, mode="c")
            matrices = {name: StoredMatrix(**fields) for name, fields in index["matrices"].items()}
            offsets, end = _places(matrices, len(_head(index)))
            # What is used counts as new, so that others are removed before it.
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not used: %s", path, error)
            return None
        if len(memory) != end:
            logger.warning("%s is not used: it has %d bytes, not %d", path, len(memory), end)
            return None
        return TileFile(memory, matrices, offsets)

    def write(
        self,
        key: str,
        model: Path,
        matrices: Mapping[str, tuple[StoredMatrix, Bytes]],
        control: JobControl,
    ) -> bool:
        """Keeps tiles under a key; False, and a line in the log, if there is no room for them.

        The file appears whole or not at all. Older ones of the same model go.

        Raises:
            JobCancelled: `control` was cancelled; nothing is left behind.
        """
        stored = {name: matrix for name, (matrix, _) in matrices.items()}
        index = _index(model, stored)
        offsets, end = _places(stored, len(_head(index)))
        part = self._path(key).with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_of(model)
            if not self._make_room(end):
                logger.info("No room in %s for %d bytes of arranged weights", self._folder, end)
                return False
            with part.open("xb") as file:
                file.write(_head(index))
                for name, (_, tiles) in matrices.items():
                    control.raise_if_cancelled()
                    file.seek(offsets[name])
                    file.write(tiles.data)
                file.truncate(end)
                file.flush()
                # A name for what never reached the disk would be wrong weights after a power cut.
                os.fsync(file.fileno())
            part.replace(self._path(key))
        except OSError as error:
            logger.warning("Arranged weights are not kept in %s: %s", self._folder, error)
            return False
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return True

    def num_bytes(self) -> int:
        """Of all files."""
        return sum(status.st_size for _, status in self._files())

    def num_models(self) -> int:
        return len(self._files())

    def remove(self, model: Path) -> int:
        """Removes what belongs to a model, and returns how many bytes that frees."""
        return self._remove_of(model)

    def clear(self) -> int:
        """Removes everything, and returns how many bytes that frees."""
        return sum(_unlink(path, status) for path, status in self._files())

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """The one used latest first."""
        try:
            files = [(path, path.stat()) for path in self._folder.glob(f"*{_SUFFIX}")]
        except OSError:
            return []
        return sorted(files, key=lambda one: one[1].st_mtime_ns, reverse=True)

    def _remove_of(self, model: Path) -> int:
        freed_bytes = 0
        for path, status in self._files():
            with contextlib.suppress(OSError, ValueError, KeyError):
                if Path(_read_index(path)["model"]) == model.resolve():
                    freed_bytes += _unlink(path, status)
        return freed_bytes

    def _make_room(self, num_bytes: int) -> bool:
        """Removes what was used longest ago, and says whether there is room then."""
        for part in self._folder.glob("*.part"):
            # Of a process that was killed: nobody writes for so long.
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                part.unlink(missing_ok=True)
        kept_bytes = num_bytes
        for path, status in self._files():
            kept_bytes += status.st_size
            if kept_bytes > _MAX_BYTES:
                _unlink(path, status)
        free_bytes = shutil.disk_usage(self._folder).free
        return num_bytes <= min(_MAX_BYTES, free_bytes - _LEFT_FREE_BYTES)


def _index(model: Path, matrices: Mapping[str, StoredMatrix]) -> dict[str, Any]:
    return {
        "model": str(model.resolve()),
        "matrices": {name: dataclasses.asdict(matrix) for name, matrix in matrices.items()},
    }


def _head(index: Mapping[str, Any]) -> bytes:
    text = json.dumps(index).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + text
    return head + bytes(-len(head) % _PAGE_BYTES)


def _read_index(path: Path) -> dict[str, Any]:
    """Raises OSError, or ValueError for what is no such file."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + 8)
        length = int.from_bytes(start[len(_MAGIC) :], "little")
        if not start.startswith(_MAGIC) or length > _MAX_INDEX_BYTES:
            raise ValueError("it is no file of tiles")
        index: dict[str, Any] = json.loads(file.read(length))
        return index


def _places(matrices: Mapping[str, StoredMatrix], start: int) -> tuple[dict[str, int], int]:
    """Where each matrix begins, and where the last one ends."""
    offsets, end = {}, start
    for name, matrix in matrices.items():
        offsets[name] = end
        end += -(-matrix.num_bytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _unlink(path: Path, status: os.stat_result) -> int:
    try:
        path.unlink()
    except OSError as error:
        # Windows does not remove what is mapped; it goes when it is the oldest, or later.
        logger.warning("%s cannot be removed: %s", path, error)
        return 0
    return status.st_size

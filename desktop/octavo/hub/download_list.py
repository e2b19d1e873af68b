"""The downloads a person has asked for, as they stand in a file: kept over crashes and restarts."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from octavo.hub.disk import storage_error
from octavo.hub.file_lock import file_lock

FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


class DownloadState(StrEnum):
    """Where a download stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Download:
    """One model on its way, as it is shown."""

    id: str
    repository: str
    """ORG/NAME."""
    label: str
    """Which of the repository's variants."""
    revision: str = "main"
    size_bytes: int = 0
    """Of the whole variant; 0 while nobody has said it."""
    state: DownloadState = DownloadState.WAITING
    stage: str = ""
    """What is being done, or waited for, in words."""
    done_bytes: int = 0
    bytes_per_second: float = 0.0
    """Of the last seconds; 0 when nothing arrives."""
    error: str = ""
    """Why it failed: a sentence."""
    hint: str = ""
    """What to do about it."""
    path: Path | None = None
    """Where the model lies, once it is done."""

    @property
    def title(self) -> str:
        """`ORG/NAME Q4_K_M`."""
        return f"{self.repository} {self.label}".strip()

    @property
    def fraction(self) -> float | None:
        """0 to 1, or None while the size is unknown."""
        if self.state is DownloadState.DONE:
            return 1.0
        return min(1.0, self.done_bytes / self.size_bytes) if self.size_bytes else None

    @property
    def seconds_left(self) -> float | None:
        """None while it is unknown, as when nothing arrives."""
        is_moving = self.state is DownloadState.RUNNING and self.bytes_per_second > 0
        if not is_moving or not self.size_bytes:
            return None
        return max(0, self.size_bytes - self.done_bytes) / self.bytes_per_second


_TEXTS = ("id", "repository", "label", "revision", "error", "hint")
_COUNTS = ("size_bytes", "done_bytes")


class DownloadFile:
    """The list on disk; one process at a time may write it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = contextlib.ExitStack()
        self.is_ours = False
        """Whether this process may write."""
        self.problem = ""
        """What happened to the file, in a sentence; empty if nothing did."""

    def own(self) -> bool:
        """Tries to become the one who writes; False while another Octavo is.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self.is_ours:
            return True
        lock = self._path.with_suffix(".lock")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(file_lock(lock, _give_up))
        except _HeldByAnotherError:
            return False
        except OSError as error:
            raise storage_error(error, lock) from error
        self.is_ours = True
        return True

    def disown(self) -> None:
        """Lets another process write."""
        self.is_ours = False
        self._lock.close()

    def read(self) -> tuple[list[Download], list[Download]]:
        """The downloads, and cancelled ones of which part files may be left.

        A file that cannot be understood is put aside if it is ours, and `problem` says so.
        """
        try:
            document = json.loads(self._path.read_bytes())
            version = document["version"]
            if version != FORMAT_VERSION:
                return self._put_aside(f"it has format {version!r}, not {FORMAT_VERSION}")
            return (
                [_from_json(item) for item in document["downloads"]],
                [_from_json(item) for item in document["cancelled"]],
            )
        except FileNotFoundError:
            return [], []
        except OSError as error:
            self.problem = f"The list of downloads {self._path} cannot be read: {error.strerror}."
            return [], []
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return self._put_aside(str(error).rstrip(".") or type(error).__name__)

    def write(self, downloads: Sequence[Download], cancelled: Sequence[Download]) -> None:
        """Replaces the file; what stands in the way is logged and stands in `problem`."""
        document = {
            "version": FORMAT_VERSION,
            "downloads": [_as_json(download) for download in downloads],
            "cancelled": [_as_json(download) for download in cancelled],
        }
        temporary = ""
        try:
            with tempfile.NamedTemporaryFile(
                "w",
                dir=self._path.parent,
                prefix=f".{self._path.name}.",
                delete=False,
                encoding="utf-8",
            ) as file:
                temporary = file.name
                json.dump(document, file, indent=1)
            # No fsync: beside a download it takes seconds, and this runs on the window's thread.
            # After a power cut the list may be the one before; what has arrived is kept apart.
            Path(temporary).replace(self._path)
        except OSError as error:
            self.problem = (
                f"The list of downloads {self._path} cannot be written: {error.strerror}."
            )
            logger.warning("%s", self.problem)
            with contextlib.suppress(OSError):
                Path(temporary).unlink()

    def _put_aside(self, reason: str) -> tuple[list[Download], list[Download]]:
        if not self.is_ours:
            self.problem = f"The list of downloads {self._path} cannot be used: {reason}."
            return [], []
        aside = _unused_name(self._path)
        try:
            self._path.rename(aside)
        except OSError as error:
            raise storage_error(error, self._path) from error
        self.problem = (
            f"The list of downloads could not be used ({reason}), so it begins anew; the old one is"
            f" kept as {aside}. What had arrived is kept, too."
        )
        logger.warning("%s", self.problem)
        return [], []


class _HeldByAnotherError(Exception):
    pass


def _give_up() -> None:
    raise _HeldByAnotherError


def _unused_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.bak{number}")).exists():
        number += 1
    return aside


def _as_json(download: Download) -> dict[str, Any]:
    return {
        **{name: getattr(download, name) for name in (*_TEXTS, *_COUNTS)},
        "state": str(download.state),
        "path": str(download.path or ""),
    }


def _from_json(item: dict[str, Any]) -> Download:
    """Raises ValueError, LookupError or TypeError for what `_as_json` did not write."""
    texts = {name: item[name] for name in (*_TEXTS, "path")}
    counts = {name: item[name] for name in _COUNTS}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"a text of {item!r:.80} is none")
    if not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError(f"a number of {item!r:.80} is none")
    path = texts.pop("path")
    return Download(
        **texts,
        **counts,
        state=DownloadState(item["state"]),
        path=Path(path) if path else None,
    )

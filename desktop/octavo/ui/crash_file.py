"""`CrashFile`: what the interpreter writes when the process dies; found at the next start."""

import contextlib
import faulthandler
import logging
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from octavo import __version__

logger = logging.getLogger(__name__)

PATTERN = "crash-*.txt"
MAX_BYTES = 64 * 1024


class CrashFile:
    """A file that lies ready while Octavo runs; only a crash puts more than a line into it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def lying_ready(self) -> Iterator[list[Path]]:
        """Has all threads' stacks written there on a segmentation fault, an abort and the like.

        A folder that cannot be written costs only the report. An orderly end leaves nothing.

        Yields:
            What earlier processes left when they crashed.
        """
        crashes = take_crashes(self._folder)
        path = self._folder / time.strftime("crash-%Y%m%d-%H%M%S.txt")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = path.open("x", encoding="utf-8")
        except OSError as error:
            logger.warning("A crash would leave no report: %s", error)
            yield crashes
            return
        with file:
            file.write(
                f"Octavo {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
            )
            file.flush()
            faulthandler.enable(file, all_threads=True)
            try:
                yield crashes
            finally:
                faulthandler.disable()
        with contextlib.suppress(OSError):
            path.unlink()


def take_crashes(folder: Path) -> list[Path]:
    """What earlier processes left, oldest first; files without a crash in them are removed."""
    crashes = []
    for path in sorted(folder.glob(PATTERN)):
        with contextlib.suppress(OSError):
            with path.open(encoding="utf-8", errors="replace") as file:
                file.readline()
                has_more = bool(file.read(1))
            if has_more:
                crashes.append(path)
            else:
                # Killed from outside, which writes nothing.
                path.unlink()
    return crashes


def read_crashes(paths: list[Path]) -> str:
    """What the crashed processes left, one after another; of long ones the beginning."""
    texts = []
    for path in paths:
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
            texts.append(f"{path.name}:\n{file.read(MAX_BYTES).rstrip()}")
    return "\n\n".join(texts)


def remove_crashes(paths: list[Path]) -> None:
    """Forgets crashes that the person has been told of."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

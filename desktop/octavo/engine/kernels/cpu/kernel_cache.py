"""Where compiled kernels are kept, and a process beside ours that compiles them. No Numba here.

Compiling holds Python's lock for most of a minute, which would stop the window; so a child does it,
at low priority, and this process reads what the child has written.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from octavo.engine.kernels.cpu.simd_tier import cache_key

logger = logging.getLogger(__name__)

MODULES = (
    *("step_loop", "worker_threads", "embedding", "rotary", "rows", "attention", "moe", "linear"),
    *("sampling", "truncation"),
)
"""Importing one compiles what is in it."""
USUAL_FORMS = ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k")
"""Forms of tiles of the files that people download most."""
ReportParts = Callable[[int, int], None]
"""Told how many of how many parts are ready; what it raises ends the work."""
_VARIABLE = "NUMBA_CACHE_DIR"
_POLL_S = 0.1
_KEPT_FOLDERS = 3
"""Versions whose kernels are kept: two installations side by side, and the one before an update."""


def kernel_folder(cache_dir: str | None) -> Path | None:
    """The folder for this processor and these sources; None: where Numba keeps what it compiles.

    Args:
        cache_dir: of all kernels; a person's own `NUMBA_CACHE_DIR` counts more.
    """
    if given := os.environ.get(_VARIABLE):
        return Path(given)
    return None if cache_dir is None else Path(cache_dir) / cache_key()


def is_cache_given() -> bool:
    """Whether the environment says where Numba's cache is: then it is somebody else's to fill."""
    return bool(os.environ.get(_VARIABLE))


def parts(forms: Iterable[str]) -> list[str]:
    """What has to be compiled for a model with these forms of tiles."""
    return [*MODULES, *sorted(set(forms))]


def mark_ready(folder: Path, part: str) -> None:
    """Notes that a part is compiled and written."""
    folder.mkdir(parents=True, exist_ok=True)
    _marker(folder, part).touch()


def missing_parts(folder: Path | None, forms: Iterable[str]) -> list[str]:
    """What is not compiled yet."""
    return [part for part in parts(forms) if folder is None or not _marker(folder, part).exists()]


def mark_used(folder: Path) -> None:
    """Notes that kernels were read from a folder, and removes those used longest ago.

    Each version of Octavo, each tier and each compiler has a folder of its own beside this one.
    """
    folder.touch()
    try:
        others = [one for one in folder.parent.iterdir() if one.is_dir() and one != folder]
        others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
    except OSError as error:
        logger.warning("%s cannot be tidied: %s", folder.parent, error)
        return
    for old in others[_KEPT_FOLDERS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
        logger.info("Removed %s, kernels of another version", old)


def _marker(folder: Path, part: str) -> Path:
    return folder / f"{part}.ready"


class KernelCompiler:
    """A child process that compiles kernels into the cache."""

    def __init__(self, folder: Path, forms: Iterable[str]) -> None:
        """Starts it."""
        self._folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the child is)
        self.last_words = ""
        """Of a child that has ended: the last line that it wrote about an error."""
        self._forms = tuple(forms)
        self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
            [sys.executable, "-m", "octavo.engine.kernels.cpu.preparation", *self._forms],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            # Ctrl-C is for this process, which then ends the child.
            start_new_session=True,
            env={**os.environ, _VARIABLE: str(folder)},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, report: ReportParts) -> bool:
        """Waits until it is done; False if it failed, and then somebody else must compile.

        Args:
            report: told how many of how many parts are ready; what it raises ends the child.
        """
        total = len(parts(self._forms))
        try:
            while self.is_running:
                report(total - len(missing_parts(self._folder, self._forms)), total)
                time.sleep(_POLL_S)
        except BaseException:
            self.close()
            raise
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        self.last_words = said or f"it ended with the status {self._process.returncode}"
        self.close()
        return self._process.returncode == 0

    def close(self) -> None:
        """Ends the child, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

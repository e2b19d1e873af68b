"""The private environment of a checkout: `.venv` beside pyproject.toml, with its stamp."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher import system_packages
from launcher.console import SetupError, detail, say
from launcher.pip import failure_sentence
from launcher.stamp import Stage, Stamp, project_hash, read_stamp, write_stamp


class Environment:
    """`.venv` of one checkout.

    Invariant: from the first change on, until the set-up is through, the stamp says unfinished.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self._stamp_path = self.folder / "octavo-setup.json"

    @property
    def stamp(self) -> Stamp | None:
        """What was set up last, finished or not."""
        return read_stamp(self._stamp_path)

    @stamp.setter
    def stamp(self, stamp: Stamp) -> None:
        write_stamp(self._stamp_path, stamp)

    def is_current(self, torch_option: str, extras: tuple[str, ...]) -> bool:
        """Whether nothing needs to be installed. Without --torch, what was chosen once stays."""
        stamp = self.stamp
        return (
            stamp is not None
            and stamp.stage is Stage.FINISHED
            and stamp.project == project_hash(self.root)
            and stamp.root == str(self.root)
            and set(extras) <= set(stamp.extras)
            and torch_option in ("", stamp.torch)
            and self._has_python(stamp.python)
        )

    def make(self, torch: str, extras: tuple[str, ...], *, reset: bool) -> bool:
        """Makes `.venv`, or keeps the one that is there; True if it is new.

        Args:
            torch: what --torch said, now or in the set-up that this one continues.
            extras: the optional dependencies that will be installed.
        """
        project = project_hash(self.root)
        stamp = Stamp(Stage.MAKING, project, str(self.root), "", torch, extras, "")
        is_new = reset or not self._is_usable()
        if is_new:
            if self.folder.exists() and not (reset or self._stamp_path.exists()):
                raise SetupError(
                    f"{self.folder} is no working environment and was not made by this launcher: "
                    "delete it, or run `python3 packaging/launch.py --reset`."
                )
            ensure_venv_module()
            self._clear(stamp)
            self._create()
        version = version_of(self.python)
        if tuple(map(int, version.split("."))) < (3, 11):
            raise SetupError(
                f"{self.folder} was made by Python {version}, and Octavo needs 3.11 or newer: "
                "run `python3 packaging/launch.py --reset`."
            )
        self.stamp = stamp._replace(stage=Stage.INSTALLING, python=version)
        return is_new

    def finish(self, torch: str, qt_problem: str) -> None:
        """Notes that all of the set-up begun with `make` is done, and what was chosen."""
        stamp = self.stamp
        assert stamp is not None
        self.stamp = stamp._replace(stage=Stage.FINISHED, torch=torch, qt_problem=qt_problem)

    def remove_half_installed(self) -> None:
        """Makes pip install again what a killed pip left behind."""
        for record in half_installed(self.folder):
            shutil.rmtree(record, ignore_errors=True)

    def check_room(self, needed_gb: int) -> None:
        """Stops before gigabytes are downloaded onto a disk that is too small."""
        free_gb = shutil.disk_usage(self.folder).free / 1e9
        if free_gb < needed_gb:
            raise SetupError(
                f"The set-up needs about {needed_gb} GB and {free_gb:.1f} GB are free in "
                f"{self.root}: make room, then run the same command again."
            )

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Two set-ups of one checkout wait for each other, where the system can lock a folder."""
        if os.name != "posix":
            yield
            return
        import fcntl

        handle = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another set-up is running here; waiting for it.")
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError:
                # A network drive without locks: two set-ups at once are the person's own care.
                pass
            yield
        finally:
            os.close(handle)

    def _has_python(self, version: str) -> bool:
        """False if the Python that `.venv` was made from is gone or was replaced by another."""
        named = re.fullmatch(r"python(\d+\.\d+)", self.python.resolve().name)
        return self.python.exists() and (named is None or named[1] == version)

    def _is_usable(self) -> bool:
        """Whether pip can install into it."""
        stamp = self.stamp
        if not self.python.exists() or (stamp is not None and stamp.stage is Stage.MAKING):
            return False
        command = [str(self.python), "-m", "pip", "--version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _clear(self, stamp: Stamp) -> None:
        """Leaves nothing but the stamp; `venv --clear` would delete that, too."""
        try:
            self.folder.mkdir(exist_ok=True)
            self.stamp = stamp
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != self._stamp_path:
                    path.unlink()
        except OSError as error:
            raise SetupError(
                f"{self.folder} cannot be made ({error.strerror}): close what runs from it, or "
                "move the checkout to a folder you may write to."
            ) from error

    def _create(self) -> None:
        command = [sys.executable, "-m", "venv", str(self.folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            output = result.stdout + result.stderr
            raise SetupError(failure_sentence(output, "the environment", self.root))


def ensure_venv_module() -> None:
    """Debian packs venv and ensurepip apart from Python."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    detail(f"Python's venv module is missing; it is in the system package {package}.")
    if not system_packages.install([package]):
        raise SetupError(
            f"Python's venv module is missing: run `sudo apt-get install {package}` "
            "(or your system's package of that kind), then the same command again."
        )


def half_installed(venv: Path) -> list[Path]:
    """The records of packages whose installation did not come to its end."""
    pattern = "Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages"
    # pip writes INSTALLER and RECORD last.
    return [
        record
        for site_packages in venv.glob(pattern)
        for record in site_packages.glob("*.dist-info")
        if not (record / "INSTALLER").exists() or not (record / "RECORD").exists()
    ]


def version_of(python: Path) -> str:
    """`3.11`, as the environment's own Python says."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "0.0"

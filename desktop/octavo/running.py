"""Which models are loaded on this machine, across every Octavo process of this person.

psutil is loaded with the first model, not before the window's first paint.
"""

import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

# The start time of a process is counted from the boot time, which moves when the clock is set.
_START_TOLERANCE_S = 5.0


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A model that a living process has loaded."""

    model: str
    device: str
    memory_bytes: int
    since: float
    """Unix time of the load."""
    pid: int
    process_started: float
    """Unix time; tells the process from a later one with the same number."""


class RunningModels:
    """This process's record: one small JSON file while a model is loaded.

    The record is for other processes to read. Failing to write it is logged and never stops a load.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        # Two hosts of one process, as in tests, must not overwrite each other's record.
        self._path = run_dir / f"{os.getpid()}-{id(self):x}.json"

    def add(self, model: str, device: str, memory_bytes: int) -> None:
        """Writes down that this process has loaded a model; replaces what stood there."""
        import psutil

        process = psutil.Process()
        record = RunningModel(
            model, device, memory_bytes, time.time(), process.pid, process.create_time()
        )
        new = self._path.with_suffix(".new")
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(asdict(record)), encoding="utf-8")
            new.replace(self._path)
        except OSError as error:
            logger.warning("Cannot write %s: %s", self._path, error)

    def remove(self) -> None:
        """Takes the record away, if there is one."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("Cannot remove %s: %s", self._path, error)


def running_models(run_dir: Path) -> list[RunningModel]:
    """Models of living processes, oldest load first; clears the records of dead ones."""
    models = []
    for path in sorted(run_dir.glob("*.json")):
        model = _read_record(path)
        if model is not None and _is_alive(model):
            models.append(model)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return sorted(models, key=lambda model: model.since)


def _read_record(path: Path) -> RunningModel | None:
    """None for what is no record: half written by a crash, or of another version."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return RunningModel(**fields)
    except (OSError, ValueError, TypeError):
        return None


def _is_alive(model: RunningModel) -> bool:
    import psutil

    try:
        started = psutil.Process(model.pid).create_time()
    except psutil.AccessDenied:
        return True
    except (psutil.Error, TypeError, ValueError):
        return False
    return bool(abs(started - model.process_started) < _START_TOLERANCE_S)

"""`run_child`: one task in a process of its own, so that it can be killed and takes no memory."""

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from octavo.errors import EngineError
from octavo.jobs import JobControl, Progress
from octavo.quantize.error_lines import error_from_json

logger = logging.getLogger(__name__)

_MODULE = "octavo.quantize.worker"
_MAX_THREADS = 8
_POLL_S = 0.1
_GRACE_S = 10.0
_KEPT_LINES = 40


def run_child(task: Mapping[str, Any], control: JobControl) -> dict[str, Any]:
    """Runs one task to its result; blocking. Cancelling kills the process within a moment.

    Raises:
        OctavoError: what the task raised, or that its process died.
        JobCancelled: `control` was cancelled; the process is gone.
    """
    control.raise_if_cancelled()
    with _start() as process:
        try:
            return _Conversation(process, control).run({**task, "num_threads": _num_threads()})
        finally:
            process.kill()


class _Conversation:
    """What is said to one child and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], control: JobControl) -> None:
        self._process = process
        self._control = control
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._other_output: deque[str] = deque(maxlen=_KEPT_LINES)

    def run(self, task: Mapping[str, Any]) -> dict[str, Any]:
        threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_lines, self._read_errors)
        ]
        for thread in threads:
            thread.start()
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # It stays open: its end is how the child learns that this process is gone.
            stdin.write(json.dumps(task).encode() + b"\n")
            stdin.flush()
        while True:
            self._control.raise_if_cancelled()
            try:
                line = self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if line is None:
                raise self._died()
            content = json.loads(line)
            if "progress" in content:
                self._control.report(Progress(**content["progress"]))
            elif "error" in content:
                raise error_from_json(content["error"])
            else:
                result: dict[str, Any] = content["result"]
                return result

    def _died(self) -> EngineError:
        status = self._process.wait(_GRACE_S)
        logger.error("The process ended with %s:\n%s", status, "\n".join(self._other_output))
        if status < 0:
            return EngineError(
                f"The process that did the work was killed (signal {-status}).",
                hint="The system may have run out of memory. Run the same again: it goes on"
                " from what is finished.",
            )
        return EngineError(
            f"The process that did the work ended unexpectedly (status {status}).",
            hint="The log file has the details.",
        )

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._other_output.append(line.decode(errors="replace").rstrip())


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  (our own interpreter and module)
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Ctrl-C is for this process, which then ends the child.
        start_new_session=True,
        # As ModelHost does: threads that spin while they wait take the cores from each other.
        env={"GOMP_SPINCOUNT": "2000", **os.environ},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _num_threads() -> int:
    """Fixed on a machine, whatever the environment says: results depend on it."""
    return max(1, min(_MAX_THREADS, os.cpu_count() or 1))

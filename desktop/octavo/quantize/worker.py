"""The child process: `python -m octavo.quantize.worker`, a task on stdin, JSON lines on stdout.

The first line on standard input is the task. Standard input stays open for as long as the parent
lives: when it ends, so does this process, at once. What is finished by then is kept.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from octavo.errors import OctavoError
from octavo.jobs import JobControl, Progress
from octavo.quantize.error_lines import error_to_json
from octavo.quantize.recipe import QuantizeRecipe

QUANTIZE, EVALUATE = "quantize", "evaluate"

_ORPHANED = 3
_REPORT_INTERVAL_S = 0.1


def main() -> int:
    """Runs one task; 0 done, 1 failed with an error line."""
    # Nobody but `_Lines` may write there: a library's chatter would break the lines.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines = _Lines(out)
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        lines.write({"result": _run(task, JobControl(lines.progress))})
    except OctavoError as error:
        lines.write({"error": error_to_json(error)})
        return 1
    return 0


class _Lines:
    """JSON objects, one a line; progress at most ten times a second."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._stage = ""
        self._reported_at = 0.0

    def write(self, content: dict[str, Any]) -> None:
        self._out.write(json.dumps(content) + "\n")
        self._out.flush()

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        is_due = now - self._reported_at >= _REPORT_INTERVAL_S
        if is_due or progress.stage != self._stage or progress.done == progress.total:
            self._stage, self._reported_at = progress.stage, now
            self.write({"progress": dataclasses.asdict(progress)})


def _run(task: dict[str, Any], control: JobControl) -> dict[str, Any]:
    import torch

    # Sums depend on how many threads share them; the parent fixes the number.
    torch.set_num_threads(task["num_threads"])
    if task["kind"] == QUANTIZE:
        from octavo.quantize.writing import write_model

        recipe = QuantizeRecipe(
            source=Path(task["source"]), method=task["method"], output=Path(task["output"])
        )
        plan = write_model(recipe, control)
        return {"bits_per_weight": plan.bits_per_weight}
    from octavo.quantize.evaluation import evaluate_models

    against, text = task["against"], task["text"]
    evaluation = evaluate_models(
        Path(task["model"]),
        Path(against) if against else None,
        Path(text) if text else None,
        control,
    )
    return dataclasses.asdict(evaluation)


def _end_with_parent() -> None:
    """Waits for the end of standard input. Nothing is tidied up: all that counts is on the disk."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(_ORPHANED)


if __name__ == "__main__":
    sys.exit(main())

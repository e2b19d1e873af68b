"""What is put together when Octavo itself fails: the report that a person may copy and pass on."""

import platform
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import qVersion

from octavo import __version__
from octavo.engine.device import detect_devices
from octavo.log import log_file, read_log_tail

NUM_LOG_LINES = 40
MAX_MESSAGE_CHARS = 300

_SECRETS = (
    (re.compile(r"\b(?:hf|sk|ghp|gho|glpat)[-_][A-Za-z0-9_-]{8,}"), "[key]"),
    (re.compile(r"(?i)\b(bearer\s+)[^\s'\"]+"), r"\1[key]"),
    (
        re.compile(r"(?i)\b((?:api[_-]?key|token|password|secret)['\"]?\s*[=:]\s*['\"]?)[^\s'\"]+"),
        r"\1[key]",
    ),
    (re.compile(r"(?<=://)[^/\s@]+@"), ""),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A mistake of ours, as it is shown and reported."""

    title: str
    """The exception's class and the beginning of its words."""
    place: str
    """What failed, as in "a task of the window"."""
    traceback: str

    @classmethod
    def of(cls, error: BaseException, place: str) -> "Failure":
        title = f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARS]
        return cls(title, place, "".join(_format(error)))


def make_report(failures: str) -> str:
    """Versions, graphics cards, what failed, and the end of the log; without names and keys.

    Asks the driver and reads the log, so a worker makes it.

    Args:
        failures: tracebacks, or what a crashed process left.
    """
    gpus = [device.name for device in detect_devices() if device.kind == "cuda"]
    path = log_file()
    log = read_log_tail(path, NUM_LOG_LINES) if path is not None else []
    parts = [
        f"Octavo {__version__}",
        f"System: {platform.platform()}",
        f"Python {platform.python_version()}, Qt {qVersion()}, torch {_torch_version()}",
        f"Graphics cards: {', '.join(gpus) or 'none that Octavo can use'}",
        "",
        failures.rstrip(),
        "",
        f"The last {len(log)} lines of the log:",
        *log,
    ]
    return redact("\n".join(parts))


def redact(text: str) -> str:
    """Shortens the home folder to ~ and takes out what looks like a key."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?=[/\\\s'\":,)]|$)", "~", text, flags=re.MULTILINE)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _format(error: BaseException) -> list[str]:
    """The traceback, in which no exception's words are long: they may quote what somebody wrote."""
    lines = traceback.format_exception(error)
    return [line if len(line) <= 2_000 else f"{line[:2_000]}…\n" for line in lines]


def _torch_version() -> str:
    torch = sys.modules.get("torch")
    return str(getattr(torch, "__version__", "of an unknown version")) if torch else "not loaded"

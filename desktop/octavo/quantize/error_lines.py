"""An error of ours as a JSON object and back: how the child process says what went wrong."""

import inspect
from pathlib import Path
from typing import Any

from octavo import errors
from octavo.errors import EngineError, OctavoError
from octavo.jobs import JobCancelled


def error_to_json(error: OctavoError) -> dict[str, Any]:
    """Class, message, hint, and the numbers and names that belong to it."""
    facts = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(error).items()
    }
    return {"class": type(error).__name__, **facts}


def error_from_json(content: dict[str, Any]) -> OctavoError:
    """The error again; of a class that is not known, an EngineError with its sentence."""
    facts = dict(content)
    name = facts.pop("class", "")
    message, hint = str(facts.pop("message", "")), str(facts.pop("hint", ""))
    if name == JobCancelled.__name__:
        return JobCancelled()
    found = getattr(errors, str(name), None)
    if not (inspect.isclass(found) and issubclass(found, OctavoError)):
        return EngineError(message, hint=hint)
    if facts.get("path") is not None:
        facts["path"] = Path(facts["path"])
    error: OctavoError = found(message, hint=hint, **facts)
    return error

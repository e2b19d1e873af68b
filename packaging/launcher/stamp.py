"""The stamp in `.venv`: what it was set up from, and how far the set-up came."""

import enum
import hashlib
import json
import tomllib
from pathlib import Path
from typing import NamedTuple


class Stage(enum.StrEnum):
    """How far a set-up came."""

    MAKING = "making"
    """`.venv` may be half deleted or half made, and cannot be kept."""
    INSTALLING = "installing"
    """Python and pip are there; pip can go on."""
    FINISHED = "finished"


class Stamp(NamedTuple):
    """What a set-up is made from. A stamp with other fields is one of another launcher."""

    stage: Stage
    project: str
    """Hash of what pyproject.toml says about dependencies."""
    root: str
    python: str
    """The version, as in `3.11`; empty while the environment is being made."""
    torch: str
    """The word given with --torch, or the launcher's own choice."""
    extras: tuple[str, ...]
    qt_problem: str


def read_stamp(path: Path) -> Stamp | None:
    """None if there is none, or one by a launcher of another time."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        typed = {"stage": Stage(fields["stage"]), "extras": tuple(fields["extras"])}
        return Stamp(**{**fields, **typed})
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Puts the whole stamp into place at once."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(stamp._asdict(), indent=1), encoding="utf-8")
    new.replace(path)


def project_hash(root: Path) -> str:
    """Changes when a dependency or the way of building changes, not with every tool's setting."""
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    relevant = [
        project.get("build-system"),
        project.get("project"),
        project.get("tool", {}).get("hatch"),
    ]
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()

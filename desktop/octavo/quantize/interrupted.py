"""Quantisations that were cancelled or killed: what they were to become, and how to drop them."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import StorageError
from octavo.quantize.recipe import PARTIAL_SUFFIX, QuantizeRecipe

_RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, slots=True)
class InterruptedRun:
    """A run that goes on where it stopped when the same recipe runs again."""

    recipe: QuantizeRecipe
    num_bytes: int
    """On disk so far."""


def note_recipe(recipe: QuantizeRecipe) -> None:
    """Writes down in the growing output what it is to become.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        recipe.partial.mkdir(parents=True, exist_ok=True)
        content = {"source": str(recipe.source), "method": recipe.method}
        (recipe.partial / _RECIPE_FILE).write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{recipe.partial} cannot be written: {error.strerror or error}.",
            hint="Check the folder and its disk, or choose another place.",
            path=recipe.partial,
        ) from error


def find_interrupted(folder: Path) -> list[InterruptedRun]:
    """The interrupted runs whose results belong into a folder, by name."""
    runs = []
    with suppress(OSError):
        for partial in sorted(folder.glob(f"*{PARTIAL_SUFFIX}")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads((partial / _RECIPE_FILE).read_text(encoding="utf-8"))
                output = partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))
                recipe = QuantizeRecipe(Path(content["source"]), str(content["method"]), output)
                runs.append(InterruptedRun(recipe, _disk_bytes(partial)))
    return runs


def discard(run: InterruptedRun) -> None:
    """Deletes what an interrupted run has written.

    Raises:
        StorageError: it cannot be deleted.
    """
    partial = run.recipe.partial
    try:
        shutil.rmtree(partial)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"{partial} cannot be deleted: {error.strerror or error}.",
            hint="Delete it yourself.",
            path=partial,
        ) from error


def _disk_bytes(folder: Path) -> int:
    """What the files take; they are as long as the result from the start, but mostly holes."""
    num_bytes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            status = (Path(root) / name).stat()
            num_bytes += min(status.st_size, getattr(status, "st_blocks", 1 << 60) * 512)
    return num_bytes

"""Typed reading of a folder's config.json, whose values are a stranger's."""

import reprlib
from collections.abc import Mapping
from typing import Any

from octavo.checkpoint.folder import CONFIG_FILE, FolderHeader
from octavo.errors import CheckpointError, UnsupportedModelError

_MAX_NUMBER = 1e18


class ConfigValues:
    """The keys of one config.json, and the errors about them."""

    def __init__(self, header: FolderHeader) -> None:
        self.header = header
        self.keys: Mapping[str, Any] = header.config

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands; null counts as absent."""
        value = self.keys.get(key)
        return default if value is None else value

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.contradiction(f"{key} is {short(value)}, neither true nor false")
        return value

    def integer(self, key: str, least: int, most: int, *, default: int | None = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise self._missing(key)
        if type(value) is not int or not least <= value <= most:
            raise self.contradiction(
                f"{key} is {short(value)}; it must be a whole number from {least:,} to {most:,}"
            )
        return value

    def positive(
        self,
        key: str,
        *,
        default: float | None = None,
        below: float = _MAX_NUMBER,
        section: Mapping[str, Any] | None = None,
    ) -> float:
        """A number above zero.

        Args:
            section: a part of the file that is read instead of its top.
        """
        value = (self.keys if section is None else section).get(key)
        value = default if value is None else value
        if value is None:
            raise self._missing(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
            raise self.contradiction(f"{key} is {short(value)}, which is out of range")
        return float(value)

    def optional_positive(self, key: str) -> float | None:
        return None if self.get(key) is None else self.positive(key)

    def integers(self, key: str) -> list[int]:
        """A list of whole numbers; empty if there is none."""
        values = self.get(key, [])
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise self.contradiction(f"{key} is {short(values)}, not a list of whole numbers")
        return values

    def contradiction(self, problem: str, *, tensor: str | None = None) -> CheckpointError:
        return CheckpointError(
            f"{CONFIG_FILE} in {self.header.path.name} is inconsistent: {problem}.",
            path=self.header.path / CONFIG_FILE,
            tensor=tensor,
            hint="Download the files of this model again.",
        )

    def unsupported(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.header.path.name} {problem}, which Octavo does not run yet.",
            hint="Choose another model.",
        )

    def _missing(self, key: str) -> CheckpointError:
        return CheckpointError(
            f"{CONFIG_FILE} in {self.header.path.name} does not say its {key}.",
            path=self.header.path / CONFIG_FILE,
            hint="Download the file again.",
        )


def short(value: object) -> str:
    """The value as Python writes it, cut to a readable length: files may claim anything."""
    return reprlib.repr(value)

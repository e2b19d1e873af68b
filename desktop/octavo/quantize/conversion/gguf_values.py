"""`GGUFValue`: a metadata value together with the type that a GGUF file gives it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from octavo.checkpoint.gguf_types import GGUFValueType

__all__ = [
    "GGUFScalar",
    "GGUFValue",
    "GGUFValueType",
    "array",
    "boolean",
    "float32",
    "plain_values",
    "string",
    "uint32",
]

GGUFScalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True, slots=True)
class GGUFValue:
    """One value of a GGUF file's metadata. Readers refuse numbers of another type than theirs."""

    type: GGUFValueType
    """Of the value, or of each element where `is_array`; never ARRAY itself."""
    value: GGUFScalar | tuple[GGUFScalar, ...]

    @property
    def is_array(self) -> bool:
        """Whether this is an array of `type`."""
        return isinstance(self.value, tuple)

    @property
    def plain(self) -> GGUFScalar | list[GGUFScalar]:
        """The value as a header that was read has it."""
        return list(self.value) if isinstance(self.value, tuple) else self.value


def uint32(value: int) -> GGUFValue:
    """Makes a count, a length or a token id."""
    return GGUFValue(GGUFValueType.UINT32, value)


def float32(value: float) -> GGUFValue:
    """Makes a real number."""
    return GGUFValue(GGUFValueType.FLOAT32, value)


def boolean(value: bool) -> GGUFValue:
    """Makes a flag."""
    return GGUFValue(GGUFValueType.BOOL, value)


def string(value: str) -> GGUFValue:
    """Makes a text."""
    return GGUFValue(GGUFValueType.STRING, value)


def array(element_type: GGUFValueType, values: Iterable[GGUFScalar]) -> GGUFValue:
    """Makes an array of one type."""
    return GGUFValue(element_type, tuple(values))


def plain_values(values: Mapping[str, GGUFValue]) -> dict[str, GGUFScalar | list[GGUFScalar]]:
    """Metadata as a header that was read has it."""
    return {key: value.plain for key, value in values.items()}

"""`METHODS`: the ways to quantise a model, in plain numbers; the arithmetic stands in files beside.

A method that follows (AWQ, GPTQ, K-quants) is one entry here and one encoder in `encoders`.
"""

from dataclasses import dataclass
from typing import Literal

from octavo.errors import InvalidInputError

Container = Literal["gguf", "safetensors"]

ROW = -1
"""As a group size: a whole row shares one scale."""


@dataclass(frozen=True, slots=True)
class QuantizeMethod:
    """One form that a model can be written in."""

    id: str
    """As typed on the command line."""
    title: str
    summary: str
    """One sentence for whoever chooses."""
    container: Container
    bits: int
    """Of each weight, its share of the scales not counted."""
    group_size: int
    """Weights that share a scale, or `ROW`."""


_INT8_SUMMARY = (
    "8 bits a weight in a folder of safetensors, one scale for each row; next to no loss."
)
_INT4_SUMMARY = "4 bits a weight in a folder of safetensors, one scale for {} weights; {}."

METHODS: tuple[QuantizeMethod, ...] = (
    QuantizeMethod(
        "q8_0",
        "Q8_0",
        "8 bits a weight in one GGUF file, which llama.cpp reads, too; next to no loss.",
        "gguf",
        8,
        32,
    ),
    QuantizeMethod(
        "q4_0",
        "Q4_0",
        "4 bits a weight in one GGUF file, which llama.cpp reads, too; the smallest file.",
        "gguf",
        4,
        32,
    ),
    QuantizeMethod("int8", "INT8", _INT8_SUMMARY, "safetensors", 8, ROW),
    QuantizeMethod(
        "int4-g32",
        "INT4, groups of 32",
        _INT4_SUMMARY.format(32, "closest to the original of the 4-bit forms"),
        "safetensors",
        4,
        32,
    ),
    QuantizeMethod(
        "int4-g64",
        "INT4, groups of 64",
        _INT4_SUMMARY.format(64, "between the other two"),
        "safetensors",
        4,
        64,
    ),
    QuantizeMethod(
        "int4-g128",
        "INT4, groups of 128",
        _INT4_SUMMARY.format(128, "the most common form elsewhere"),
        "safetensors",
        4,
        128,
    ),
)

OFFERED_GROUP_SIZES = tuple(
    sorted({method.group_size for method in METHODS if method.container == "safetensors"} - {ROW})
)
"""Of methods for folders: what rows that a method's own groups do not divide may have instead."""


def find_method(method_id: str) -> QuantizeMethod:
    """The method of that id, in capitals or not.

    Raises:
        InvalidInputError: there is none.
    """
    for method in METHODS:
        if method.id == method_id.strip().lower():
            return method
    raise InvalidInputError(
        f"Octavo knows no way to quantise that is called {method_id!r}.",
        hint=f"Choose one of {', '.join(method.id for method in METHODS)}.",
    )

"""`WeightFormat`: how a model folder's weights are quantised, module by module; no torch."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Layout(StrEnum):
    """How the tensors of one weight lie, whoever wrote them."""

    PACKED_INTEGERS = "pack-quantized"
    """compressed-tensors: several values a word along the input features."""
    INTEGERS = "int-quantized"
    """compressed-tensors: one byte a value."""
    FLOAT8 = "float8"
    """One byte a value, scales per tensor, output feature or block; several writers."""
    GPTQ = "gptq"
    AWQ = "awq"
    BITSANDBYTES_4BIT = "bitsandbytes 4-bit"
    BITSANDBYTES_8BIT = "bitsandbytes 8-bit"
    MXFP4 = "mxfp4"
    """Of gpt-oss: the experts' matrices, stacked."""


ROW = -1
"""As a group size: all input features of an output feature share a scale."""
WHOLE = 0
"""As a group size: the whole weight shares one scale."""


@dataclass(frozen=True, slots=True)
class LinearFormat:
    """How the weight of one linear layer is stored."""

    layout: Layout
    bits: int
    group_size: int = ROW
    """Input features that share a scale, or `ROW`, or `WHOLE`."""
    block_shape: tuple[int, int] | None = None
    """Output and input features that share a scale, where blocks do."""
    has_zero_points: bool = False
    stores_zeros_less_one: bool = False
    """Of GPTQ's first version: its zero points are stored less one."""
    is_symmetric: bool = False
    """The zero point is the middle of the range, whatever is stored."""
    has_float8_inputs: bool = False
    """The layer is meant to round its inputs to 8-bit floats, too."""


@dataclass(frozen=True, slots=True)
class ModuleRule:
    """What holds for modules of some names instead of the default."""

    pattern: str
    is_regex: bool
    """Matched from the start of a name; otherwise the whole name is meant."""
    format: LinearFormat | None
    """None: these modules are not quantised."""

    def matches(self, module: str) -> bool:
        if self.is_regex:
            return re.match(self.pattern, module) is not None
        return module == self.pattern


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """What the configuration says of all quantised weights.

    Which modules are quantised is said by the tensors that they have; this says how.
    """

    title: str
    """For people: `GPTQ 4-bit g128`, `NF4`, `FP8`, …"""
    default: LinearFormat | None
    rules: tuple[ModuleRule, ...] = ()
    """Before the default; the first that matches holds."""

    def linear(self, *names: str) -> LinearFormat | None:
        """The format of a module by any of its names; None: it is not quantised."""
        for rule in self.rules:
            if any(rule.matches(name) for name in names):
                return rule.format
        return self.default

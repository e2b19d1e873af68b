"""`check_same_model`: reads the other kind of file as the engine would, and compares.

The tables of a conversion say what they can. That they have said all of it is not left to them.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.model_config import ModelConfig, RopeConfig
from octavo.errors import ModelError
from octavo.quantize.conversion.no_place import no_place

_TOLERANCE = 1e-6
"""Relative; a GGUF file has its numbers in float32."""
_OF_THE_FILE = frozenset(
    {
        "architecture",
        "name",
        "num_parameters",
        "checkpoint_bytes",
        "quantization",
        "stored",
        "matrix_types",
        "weight_format",
    }
)
_IN_THE_WEIGHTS = frozenset({"norm_offset"})
"""What the conversion of the weights takes care of."""
_DIVISORS = frozenset({"llama3", "factors"})


def check_same_model(source: CheckpointHeader, target: CheckpointHeader) -> None:
    """Compares everything that the engine reads of two headers.

    Args:
        source: of the model as it is.
        target: what the other kind of file would say, before any of it is written.

    Raises:
        UnsupportedModelError: the other would be another model.
    """
    before = read_model_config(source)
    try:
        after = read_model_config(target)
    except ModelError as error:
        raise no_place(source, f"is a model of which a copy would be refused ({error})") from error
    if (before.rope.scaling, after.rope.scaling) == ("factors", "none"):
        # All of them are 1, or the conversion would have refused them.
        before = dataclasses.replace(before, rope=dataclasses.replace(before.rope, scaling="none"))
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        if name in _OF_THE_FILE or name in _IN_THE_WEIGHTS:
            continue
        meaning = _MEANINGS.get(name, operator.attrgetter(name))
        expected, found = meaning(before), meaning(after)
        if not _is_same(expected, found):
            raise no_place(
                source, f"has the {name} {_short(expected)} (a copy would have {_short(found)})"
            )


def _attention_scale(config: ModelConfig) -> float:
    return config.attention_scale or float(config.head_dim**-0.5)


def _windows(config: ModelConfig) -> list[int | None]:
    return [config.window(layer) for layer in range(config.num_layers)]


def _rope(config: ModelConfig) -> dict[str, Any]:
    return _rotation(config.rope)


def _local_rope(config: ModelConfig) -> dict[str, Any] | None:
    """None where no layer has a window, and so none turns by it."""
    return _rotation(config.local_rope or config.rope) if any(config.windows) else None


def _rotation(rope: RopeConfig) -> dict[str, Any]:
    """What counts of a rule; divisors are translated number by number, or refused there."""
    facts = {
        "rotary_dim": rope.rotary_dim,
        "theta": rope.theta,
        "attn_factor": rope.attn_factor,
        "scaling": "divisors" if rope.scaling in _DIVISORS else rope.scaling,
    }
    if rope.scaling in ("linear", "yarn"):
        facts["factor"] = rope.factor
    if rope.scaling in ("longrope", "yarn"):
        facts["original_max_position"] = rope.original_max_position
    if rope.scaling == "yarn":
        facts["ramp"] = (rope.beta_fast, rope.beta_slow, rope.is_truncated)
    return facts


_MEANINGS: Mapping[str, Callable[[ModelConfig], Any]] = MappingProxyType(
    {
        "attention_scale": _attention_scale,
        "windows": _windows,
        "rope": _rope,
        "local_rope": _local_rope,
    }
)
"""What fields say that can say the same in several ways."""


def _is_same(expected: Any, found: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(expected, found, rel_tol=_TOLERANCE)
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            _is_same(value, found[key]) for key, value in expected.items()
        )
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        return len(expected) == len(found) and all(map(_is_same, expected, found))
    if dataclasses.is_dataclass(expected) and dataclasses.is_dataclass(found):
        return _is_same(_fields(expected), _fields(found))
    return bool(expected == found)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."

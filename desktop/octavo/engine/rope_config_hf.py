"""How positions turn queries and keys, from config.json as transformers 4 and 5 write it."""

import math
from collections.abc import Mapping
from typing import Any

from octavo.engine.config_values import ConfigValues, short
from octavo.engine.families import Family
from octavo.engine.model_config import RopeConfig
from octavo.errors import UnsupportedModelError

_MAX_CONTEXT = 1 << 28
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


def read_ropes(
    values: ConfigValues, family: Family, head_dim: int, context_length: int
) -> tuple[RopeConfig, RopeConfig | None]:
    """The rule of the layers that see everything, and of those with a window where it differs.

    Raises:
        UnsupportedModelError: a scaling that is not run.
        CheckpointError: a number is missing, out of range or contradicts another.
    """
    rope = _merged(values)
    local = None
    if family.default_local_theta is not None:
        local = {"rope_theta": values.get("rope_local_base_freq", family.default_local_theta)}
    if rope.keys() & _LAYER_TYPES:
        local = _section(values, rope, "sliding_attention")
        rope = _section(values, rope, "full_attention")
    elif any(isinstance(value, dict) for value in rope.values()):
        raise _unsupported(values, "a rule for each kind of layer")
    reader = _RopeReader(values, head_dim, context_length)
    full = reader.read(rope, family.default_theta)
    if local is None:
        return full, None
    return full, reader.read(local, family.default_local_theta or family.default_theta)


def _merged(values: ConfigValues) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` (transformers 4) below `rope_parameters` (5)."""
    rope: dict[str, Any] = {}
    if values.get("rope_theta") is not None:
        rope["rope_theta"] = values.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        given = values.get(key)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise values.contradiction(f"{key} is {short(given)}, not an object")
        rope.update({name: value for name, value in given.items() if value is not None})
    return rope


def _section(values: ConfigValues, rope: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = rope.get(key)
    if not isinstance(section, dict):
        raise values.contradiction(f"{key} of rope_parameters is {short(section)}, not an object")
    return section


def _unsupported(values: ConfigValues, scaling: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{values.header.path.name} scales its positions by {scaling}, "
        "which Octavo does not run yet.",
        hint="Octavo runs none, linear, dynamic, yarn, longrope and Llama 3's scaling.",
    )


class _RopeReader:
    """Reads one rule."""

    def __init__(self, values: ConfigValues, head_dim: int, context_length: int) -> None:
        self._values = values
        self._head_dim = head_dim
        self._context_length = context_length

    def read(self, rope: Mapping[str, Any], default_theta: float) -> RopeConfig:
        rotary_dim = self._rotary_dim(rope)
        theta = self._positive(rope, "rope_theta", default=default_theta)
        scaling = rope.get("rope_type", rope.get("type", "default"))
        match scaling:
            # Dynamic scaling begins beyond the trained context, where Octavo ends.
            case "default" | "dynamic":
                return RopeConfig(rotary_dim, theta)
            case "linear":
                factor = self._positive(rope, "factor")
                return RopeConfig(rotary_dim, theta, "none" if factor == 1.0 else "linear", factor)
            case "llama3":
                return self._llama3(rope, rotary_dim, theta)
            case "yarn":
                return self._yarn(rope, rotary_dim, theta)
            # "su" is what the first files of Phi 3 call it.
            case "longrope" | "su":
                return self._longrope(rope, rotary_dim, theta)
        raise _unsupported(self._values, short(scaling))

    def _rotary_dim(self, rope: Mapping[str, Any]) -> int:
        key = "partial_rotary_factor"
        section = rope if rope.get(key) is not None else self._values.keys
        share = self._values.positive(key, default=1.0, below=1.0 + 1e-9, section=section)
        rotary_dim = int(self._head_dim * share)
        if rotary_dim < 2 or rotary_dim % 2:
            raise self._values.contradiction(
                f"{key} {share:g} turns {rotary_dim} of {self._head_dim} dimensions"
            )
        return rotary_dim

    def _llama3(self, rope: Mapping[str, Any], rotary_dim: int, theta: float) -> RopeConfig:
        low = self._positive(rope, "low_freq_factor")
        high = self._positive(rope, "high_freq_factor")
        if low >= high:
            raise self._values.contradiction(
                f"low_freq_factor is {low:g}, not less than high_freq_factor, {high:g}"
            )
        return RopeConfig(
            rotary_dim,
            theta,
            "llama3",
            self._positive(rope, "factor"),
            original_max_position=self._original_context(rope),
            low_freq_factor=low,
            high_freq_factor=high,
        )

    def _yarn(self, rope: Mapping[str, Any], rotary_dim: int, theta: float) -> RopeConfig:
        original = self._original_context(rope)
        factor = self._positive(rope, "factor", default=self._context_length / original)
        truncate = rope.get("truncate", True)
        if not isinstance(truncate, bool):
            raise self._values.contradiction(f"truncate is {short(truncate)}")
        return RopeConfig(
            rotary_dim,
            theta,
            "yarn",
            factor,
            original_max_position=original,
            beta_fast=self._positive(rope, "beta_fast", default=32.0),
            beta_slow=self._positive(rope, "beta_slow", default=1.0),
            attn_factor=self._yarn_magnitude(rope, factor),
            is_truncated=truncate,
        )

    def _longrope(self, rope: Mapping[str, Any], rotary_dim: int, theta: float) -> RopeConfig:
        """Source: Ding et al. 2024, arXiv:2402.13753, section 3; the factor as Phi 3 has it."""
        original = self._original_context(rope)
        factor = self._positive(rope, "factor", default=self._context_length / original)
        magnitude = 1.0
        if factor > 1.0 and original > 1:
            magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
        return RopeConfig(
            rotary_dim,
            theta,
            "longrope",
            factor,
            original_max_position=original,
            attn_factor=self._positive(rope, "attention_factor", default=magnitude),
            short_divisors=self._divisors(rope, "short_factor", rotary_dim),
            long_divisors=self._divisors(rope, "long_factor", rotary_dim),
        )

    def _divisors(self, rope: Mapping[str, Any], key: str, rotary_dim: int) -> tuple[float, ...]:
        divisors = rope.get(key)
        if (
            not isinstance(divisors, list)
            or len(divisors) != rotary_dim // 2
            or not all(type(one) in (int, float) and 0 < one < _MAX_CONTEXT for one in divisors)
        ):
            raise self._values.contradiction(
                f"{key} is {short(divisors)}, not {rotary_dim // 2} numbers above zero"
            )
        return tuple(float(divisor) for divisor in divisors)

    def _original_context(self, rope: Mapping[str, Any]) -> int:
        key = "original_max_position_embeddings"
        original = rope.get(key, self._values.get(key, self._context_length))
        if type(original) is not int or not 1 <= original <= _MAX_CONTEXT:
            raise self._values.contradiction(f"{key} is {short(original)}")
        return original

    def _yarn_magnitude(self, rope: Mapping[str, Any], factor: float) -> float:
        """Source: Peng et al. 2023, arXiv:2309.00071, section 3.4."""

        def magnitude(scale: float) -> float:
            return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0

        if "attention_factor" in rope:
            return self._positive(rope, "attention_factor")
        if rope.get("mscale") and rope.get("mscale_all_dim"):
            return magnitude(self._positive(rope, "mscale")) / magnitude(
                self._positive(rope, "mscale_all_dim")
            )
        return magnitude(1.0)

    def _positive(
        self, rope: Mapping[str, Any], key: str, *, default: float | None = None
    ) -> float:
        return self._values.positive(key, default=default, section=rope)

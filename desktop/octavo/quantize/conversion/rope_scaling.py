"""Rotary scaling as each kind of file states it: keys, an object of config.json, or divisors."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGMLType, GGUFHeader
from octavo.checkpoint.gguf_names import FREQ_FACTORS, ROPE_FACTORS_TENSOR
from octavo.checkpoint.safetensors import unreadable
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.families import Family
from octavo.engine.model_config import ModelConfig, RopeConfig
from octavo.engine.model_config_gguf import ROPE_LONG_TENSOR, ROPE_SHORT_TENSOR
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.quantize.conversion.gguf_values import GGUFValue, float32, string, uint32
from octavo.quantize.conversion.no_place import no_place

_ROUNDING = 1e-5
"""Relative; what the float32 arithmetic of converters may add up to. Another original context,
one token longer, would already change some divisor by ten times as much."""
_MAX_CONTEXT = 1 << 28
_PARTLY_TURNED = frozenset({"phi3"})
"""Families whose config.json may say that a part of each head does not turn."""
SHORT_FACTORS, LONG_FACTORS = "model.rotary_emb.short_factors", "model.rotary_emb.long_factors"
DIVISOR_PARAMETERS = frozenset({FREQ_FACTORS, SHORT_FACTORS, LONG_FACTORS})
"""The engine's names for what a config.json says in numbers and a GGUF file holds as tensors."""


def rope_factors(header: FolderHeader) -> Mapping[str, tuple[float, ...]]:
    """The divisors of the rotary frequencies that a GGUF of this model holds as tensors.

    By the engine's names of them, as float32; empty: the model needs none.

    Raises:
        ModelError: the header cannot be understood.
    """
    rope = read_model_config(header).rope
    if rope.scaling == "llama3":
        return {FREQ_FACTORS: tuple(llama3_divisors(rope))}
    if rope.scaling == "longrope":
        return {SHORT_FACTORS: rope.short_divisors, LONG_FACTORS: rope.long_divisors}
    return {}


def llama3_divisors(rope: RopeConfig) -> list[float]:
    """By how much Llama 3's scaling slows each pair of channels, as GGUF states it.

    Source: Llama 3.1's reference code, `apply_scaling`.
    """
    original = rope.original_max_position or 0
    divisors = []
    for channel in range(0, rope.rotary_dim, 2):
        turns = original * rope.theta ** -(channel / rope.rotary_dim) / (2 * math.pi)
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1.0 / ((1.0 - smooth) / rope.factor + smooth))
    return [float(one) for one in np.array(divisors, dtype=np.float32)]


def gguf_rope_values(config: ModelConfig, header: FolderHeader) -> dict[str, GGUFValue]:
    """The keys `rope.*` of a model from a folder, without the architecture in front.

    Raises:
        UnsupportedModelError: a scaling for which GGUF has no keys.
    """
    rope = config.rope
    values = {
        "rope.dimension_count": uint32(rope.rotary_dim),
        "rope.freq_base": float32(rope.theta),
    }
    if config.local_rope is not None and any(config.windows):
        values["rope.freq_base_swa"] = float32(config.local_rope.theta)
    if rope.scaling in ("none", "llama3"):
        if rope.attn_factor != 1.0:
            raise no_place(header, "scales its attention without stretching its positions")
        return values
    attn_factor = rope.attn_factor
    original = rope.original_max_position or config.max_position_embeddings
    if rope.scaling == "longrope":
        values["rope.scaling.original_context_length"] = uint32(original)
    elif rope.scaling in ("linear", "yarn"):
        values["rope.scaling.type"] = string(rope.scaling)
        values["rope.scaling.factor"] = float32(rope.factor)
    else:
        raise no_place(header, f"scales its positions by {rope.scaling!r}")
    if rope.scaling == "yarn":
        if not rope.is_truncated:
            raise no_place(header, "scales its positions by yarn without truncation")
        values["rope.scaling.original_context_length"] = uint32(original)
        if (rope.beta_fast, rope.beta_slow) != (32.0, 1.0):
            values["rope.scaling.yarn_beta_fast"] = float32(rope.beta_fast)
            values["rope.scaling.yarn_beta_slow"] = float32(rope.beta_slow)
        # Readers of GGUF multiply by yarn's own magnitude themselves.
        attn_factor /= 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1.0 else 1.0
    if not math.isclose(attn_factor, 1.0, rel_tol=1e-7):
        values["rope.scaling.attn_factor"] = float32(attn_factor)
    return values


def config_rope_values(config: ModelConfig, family: Family, header: GGUFHeader) -> dict[str, Any]:
    """The keys of a config.json that say how positions turn a model from a GGUF file.

    Raises:
        UnsupportedModelError: no config.json can say it.
        CheckpointError: divisors are damaged.
        StorageError: the file cannot be read.
    """
    rope = config.rope
    values: dict[str, Any] = {
        "rope_theta": shortest_float32(rope.theta),
        "rope_scaling": config_rope_scaling(config, header),
    }
    if rope.rotary_dim != config.head_dim:
        if family.model_type not in _PARTLY_TURNED:
            raise no_place(
                header,
                f"turns only {rope.rotary_dim} of the {config.head_dim} channels of each head",
            )
        values["partial_rotary_factor"] = rope.rotary_dim / config.head_dim
    if rope.scaling == "longrope":
        values["original_max_position_embeddings"] = rope.original_max_position
    if config.local_rope is not None:
        values["rope_local_base_freq"] = shortest_float32(config.local_rope.theta)
    return values


def config_rope_scaling(config: ModelConfig, header: GGUFHeader) -> dict[str, Any] | None:
    """`rope_scaling` of a config.json for a model from a GGUF file; None: it is not scaled.

    Divisors are written back as the scaling of Llama 3 that gives them, or as longrope's lists.

    Raises:
        UnsupportedModelError: no config.json can say it.
        CheckpointError: the divisors are damaged.
        StorageError: the file cannot be read.
    """
    rope = config.rope
    if rope.scaling == "yarn":
        return {
            "rope_type": "yarn",
            "factor": shortest_float32(rope.factor),
            "original_max_position_embeddings": rope.original_max_position,
            "beta_fast": shortest_float32(rope.beta_fast),
            "beta_slow": shortest_float32(rope.beta_slow),
            "attention_factor": rope.attn_factor,
        }
    if rope.scaling == "longrope":
        return _longrope(config, header)
    if rope.attn_factor != 1.0:
        raise no_place(header, f"scales its attention by {rope.attn_factor:g}")
    if rope.scaling == "none":
        return None
    if rope.scaling == "linear":
        return {"rope_type": "linear", "factor": shortest_float32(rope.factor)}
    if rope.scaling != "factors":
        raise no_place(header, f"scales its positions by {rope.scaling!r}")
    divisors = stored_factors(header, ROPE_FACTORS_TENSOR)
    if all(one == 1.0 for one in divisors):
        return None
    found = find_llama3_scaling(divisors, rope)
    if found is None:
        raise no_place(
            header,
            f"scales its positions by {len(divisors)} divisors that no scaling of Llama 3 gives",
        )
    return {
        "rope_type": "llama3",
        "factor": shortest_float32(found.factor),
        "low_freq_factor": found.low_freq_factor,
        "high_freq_factor": found.high_freq_factor,
        "original_max_position_embeddings": found.original_max_position,
    }


def _longrope(config: ModelConfig, header: GGUFHeader) -> dict[str, Any]:
    """Three keys and no more where they do: older readers of such files refuse others."""
    rope = config.rope
    scaling: dict[str, Any] = {
        "type": "longrope",
        "short_factor": [
            shortest_float32(one) for one in stored_factors(header, ROPE_SHORT_TENSOR)
        ],
        "long_factor": [shortest_float32(one) for one in stored_factors(header, ROPE_LONG_TENSOR)],
    }
    original = rope.original_max_position or config.max_position_embeddings
    factor, implied = config.max_position_embeddings / original, 1.0
    if factor > 1.0 and original > 1:
        implied = math.sqrt(1 + math.log(factor) / math.log(original))
    if not math.isclose(rope.attn_factor, implied, rel_tol=1e-6):
        scaling["attention_factor"] = shortest_float32(rope.attn_factor)
    return scaling


def find_llama3_scaling(divisors: Sequence[float], rope: RopeConfig) -> RopeConfig | None:
    """Finds the scaling of Llama 3 that gives these divisors, to the rounding of float32."""
    for candidate in _llama3_candidates(divisors, rope):
        computed = llama3_divisors(candidate)
        if all(
            math.isclose(ours, theirs, rel_tol=_ROUNDING)
            for ours, theirs in zip(computed, divisors, strict=True)
        ):
            return candidate
    return None


def _llama3_candidates(divisors: Sequence[float], rope: RopeConfig) -> Iterator[RopeConfig]:
    factor = max(divisors)
    if min(divisors) < 1.0 or factor <= 1.0:
        return

    def scaling(original: int, high: float) -> RopeConfig:
        return RopeConfig(
            rope.rotary_dim,
            rope.theta,
            "llama3",
            factor,
            original_max_position=original,
            low_freq_factor=1.0,
            high_freq_factor=high,
        )

    # What the models are that use it; 8,192 is Llama 3's own.
    for original in (8192, *(1 << power for power in range(4, 21))):
        yield scaling(original, 4.0)
    # Between the fast channels and the slow ones, what is kept of a frequency grows linearly with
    # it. Two points give the line; low_freq_factor is 1, as only the ratios of the three count.
    points = []
    for channel, divisor in enumerate(divisors):
        if 1.0 < divisor < factor:
            frequency = rope.theta ** -(2 * channel / rope.rotary_dim)
            points.append((frequency, (1 / divisor - 1 / factor) / (1 - 1 / factor)))
    for (fast, kept), (slow, kept_less) in itertools.pairwise(points):
        slope = (kept - kept_less) / (fast - slow)
        offset = kept - slope * fast
        if slope <= 0 or offset >= 0:
            continue
        high = float(f"{1 - 1 / offset:.3g}")
        original = round(slope * 2 * math.pi * (high - 1.0))
        if 0 < original <= _MAX_CONTEXT and high > 1.0:
            yield scaling(original, high)


def stored_factors(header: GGUFHeader, name: str) -> tuple[float, ...]:
    """The divisors in a tensor of a GGUF file.

    Raises:
        UnsupportedModelError: they are stored in another type than F32.
        CheckpointError: they are missing, or no divisors.
        StorageError: the file cannot be read.
    """
    tensor = header.tensors[name]
    if tensor.ggml_type is not GGMLType.F32:
        raise UnsupportedModelError(
            f"{tensor.path.name} holds its tensor {tensor.name!r} as {tensor.ggml_type.name} "
            "instead of F32.",
            hint="Choose another conversion of this model.",
        )
    try:
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            content = file.read(tensor.num_bytes)
    except OSError as error:
        raise unreadable(tensor.path, error) from error
    factors = np.frombuffer(content, dtype="<f4")
    if len(factors) != tensor.num_elements or not np.all(np.isfinite(factors) & (factors > 0)):
        raise CheckpointError(
            f"{tensor.path.name} is damaged: its tensor {tensor.name!r} holds divisors that are "
            "missing, infinite, zero or negative.",
            path=tensor.path,
            tensor=tensor.name,
            hint="Download the file again.",
        )
    return tuple(factors.tolist())


def shortest_float32(value: float) -> float:
    """The shortest number that is the same in float32: 0.1 and not 0.10000000149011612."""
    return float(str(np.float32(value)))

"""`ModelConfig` from the metadata of a GGUF file."""

import math
import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGUFHeader
from octavo.checkpoint.gguf_names import EMBEDDING_TENSOR, OUTPUT_TENSOR, ROPE_FACTORS_TENSOR
from octavo.engine.families import FAMILIES, Family
from octavo.engine.model_config import (
    SUPPORTED_TYPES,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    StoredSizes,
    unsupported_type,
)
from octavo.errors import CheckpointError, UnsupportedModelError

ROPE_LONG_TENSOR = "rope_factors_long.weight"
ROPE_SHORT_TENSOR = "rope_factors_short.weight"

_BY_ARCHITECTURE: Mapping[str, Family] = MappingProxyType(
    # Backwards: "llama" holds Mistral and Mixtral, too, and differs by its other keys.
    {family.gguf_architecture: family for family in reversed(FAMILIES)}
)
_WIDE_GEMMAS = frozenset({("gemma2", 46), ("gemma3", 62)})
"""Gemma 2 and 3 with 27 billion parameters scale scores by hidden_size / num_heads; no key of the
file says so."""
_PATTERN_LAYERS = 6
_ROTATED_LAYERS = 4


def model_config_from_gguf(header: GGUFHeader) -> ModelConfig:
    """Reads the model's numbers and checks that Octavo can run it.

    Raises:
        UnsupportedModelError: an architecture, a variant of it or a storage type not run.
        CheckpointError: a number is missing, out of range or contradicts another.
    """
    family = _BY_ARCHITECTURE.get(header.architecture)
    if family is None:
        raise _unsupported_architecture(header)
    for tensor in header.tensors.values():
        if tensor.ggml_type not in SUPPORTED_TYPES:
            where = f"The tensor {tensor.name!r} in {header.path.name}"
            raise unsupported_type(tensor.ggml_type, where)
    return _GGUFReader(header, family).read()


def _unsupported_architecture(header: GGUFHeader) -> UnsupportedModelError:
    kind = header.metadata.get("general.type", "model")
    if header.architecture == "clip" or kind == "mmproj":
        problem = "is the vision part of a model, not a language model"
    else:
        problem = (
            f"is of the architecture {_short(header.architecture)}, which Octavo does not run yet"
        )
    return UnsupportedModelError(
        f"{header.path.name} {problem}.",
        hint=f"Octavo runs today: {'; '.join(family.covers for family in FAMILIES)}.",
    )


class _GGUFReader:
    """Reads the keys of one header that begin with its architecture."""

    def __init__(self, header: GGUFHeader, family: Family) -> None:
        self._header = header
        self._family = family
        self._metadata = header.metadata

    def read(self) -> ModelConfig:
        self._refuse_variants()
        num_layers = self._integer("block_count", 1, 1024)
        hidden_size = self._integer("embedding_length", 1, 1 << 17)
        num_heads = self._integer("attention.head_count", 1, 4096)
        num_kv_heads = self._integer("attention.head_count_kv", 1, 4096, default=num_heads)
        if num_heads % num_kv_heads:
            raise self._contradiction(
                f"{num_heads} query heads cannot share {num_kv_heads} key-value heads evenly"
            )
        head_dim = self._head_dim(hidden_size, num_heads)
        context_length = self._integer("context_length", 1, 1 << 28)
        family, tensors = self._family, self._header.tensors
        rope = self._rope(head_dim, context_length)
        moe = self._moe()
        # A mixture without any dense layer may leave this number out.
        dense_size = moe.intermediate_size if moe else None
        return ModelConfig(
            architecture=self._header.architecture,
            name=self._name(),
            num_layers=num_layers,
            hidden_size=hidden_size,
            intermediate_size=self._integer("feed_forward_length", 1, 1 << 20, default=dense_size),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self._vocab_size(hidden_size),
            max_position_embeddings=context_length,
            rms_norm_eps=self._positive("attention.layer_norm_rms_epsilon", below=1.0),
            rope=rope,
            tie_word_embeddings=OUTPUT_TENSOR not in tensors,
            num_parameters=self._header.num_parameters,
            checkpoint_bytes=self._header.tensor_bytes,
            quantization=self._header.quantization,
            stored=StoredSizes.of(
                (
                    len(tensor.shape),
                    tensor.num_elements,
                    tensor.num_bytes,
                    BLOCK_LAYOUT[tensor.ggml_type][0] > 1,
                )
                for tensor in tensors.values()
            ),
            matrix_types=frozenset(
                tensor.ggml_type for tensor in tensors.values() if len(tensor.shape) > 1
            ),
            attention_bias="blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
            attention_output_bias="blk.0.attn_output.bias" in tensors,
            attention_scale=self._attention_scale(num_layers, hidden_size, num_heads),
            attention_softcap=self._softcap("attn_logit_softcapping"),
            final_softcap=self._softcap("final_logit_softcapping"),
            qk_norm=family.qk_norm,
            norm_placement=family.norm_placement,
            # Converters have added the family's offset to the weights.
            norm_offset=0.0,
            norm_in_float32=family.norm_in_float32,
            activation=family.activation,
            mlp_bias="blk.0.ffn_down.bias" in tensors,
            embedding_scale=hidden_size**0.5
            if family.scales_embedding
            else self._multiplier("embedding_scale"),
            residual_scale=self._multiplier("residual_scale"),
            logits_scale=1 / self._multiplier("logit_scale"),
            windows=self._windows(num_layers),
            local_rope=self._local_rope(rope),
            unrotated_layers=self._unrotated_layers(num_layers),
            has_sinks=family.has_sinks,
            moe=moe,
        )

    def _refuse_variants(self) -> None:
        if self._metadata.get("general.type") == "adapter":
            raise UnsupportedModelError(
                f"{self._header.path.name} is an adapter (LoRA) for another model.",
                hint="Choose a complete model.",
            )

    def _attention_scale(self, num_layers: int, hidden_size: int, num_heads: int) -> float | None:
        if self._get("attention.scale", None) is not None:
            return self._positive("attention.scale")
        if (self._header.architecture, num_layers) in _WIDE_GEMMAS:
            return float((hidden_size / num_heads) ** -0.5)
        return None

    def _softcap(self, key: str) -> float | None:
        is_there = self._family.has_softcaps and self._get(key, None) is not None
        return self._positive(key) if is_there else None

    def _multiplier(self, key: str) -> float:
        return self._positive(key, default=1.0) if self._family.has_multipliers else 1.0

    def _windows(self, num_layers: int) -> tuple[int | None, ...]:
        # Converters write 0 for none.
        if self._get("attention.sliding_window", 0) == 0:
            return ()
        window = self._integer("attention.sliding_window", 1, 1 << 28)
        match self._family.windows:
            case "none" | "all" if self._family.experts == "none":
                return (window,) * num_layers
            case "alternate":
                return tuple(window if layer % 2 == 0 else None for layer in range(num_layers))
            case "pattern":
                return tuple(
                    window if (layer + 1) % _PATTERN_LAYERS else None for layer in range(num_layers)
                )
        raise UnsupportedModelError(
            f"{self._header.path.name} has sliding windows of {window:,} tokens in layers that it"
            " does not name.",
            hint="Choose another conversion of this model.",
        )

    def _local_rope(self, rope: RopeConfig) -> RopeConfig | None:
        default = self._family.default_local_theta
        if default is None:
            return None
        return RopeConfig(rope.rotary_dim, self._positive("rope.freq_base_swa", default=default))

    def _unrotated_layers(self, num_layers: int) -> frozenset[int]:
        if not self._family.has_unrotated_layers:
            return frozenset()
        return frozenset(range(_ROTATED_LAYERS - 1, num_layers, _ROTATED_LAYERS))

    def _moe(self) -> MoEConfig | None:
        if self._get("expert_count", 0) == 0:
            return None
        if "blk.0.ffn_gate_exps.weight" not in self._header.tensors:
            raise UnsupportedModelError(
                f"{self._header.path.name} is a mixture of experts whose matrices are not stacked,"
                " as early converters wrote them.",
                hint="Choose a newer conversion of this model.",
            )
        num_experts = self._integer("expert_count", 1, 4096)
        shared_size = 0
        if self._family.has_shared_expert:
            shared_size = self._integer("expert_shared_feed_forward_length", 1, 1 << 20)
        return MoEConfig(
            num_experts=num_experts,
            num_experts_per_token=self._integer("expert_used_count", 1, num_experts),
            intermediate_size=self._expert_size(),
            # No key says so: it is as the family was trained.
            renormalizes=not self._family.has_shared_expert,
            shared_intermediate_size=shared_size,
            has_biases=self._family.has_expert_biases,
        )

    def _expert_size(self) -> int:
        if self._get("expert_feed_forward_length", None) is not None:
            return self._integer("expert_feed_forward_length", 1, 1 << 20)
        return self._integer("feed_forward_length", 1, 1 << 20)

    def _name(self) -> str:
        name = self._metadata.get("general.name")
        return name if isinstance(name, str) and name.strip() else self._header.path.stem

    def _head_dim(self, hidden_size: int, num_heads: int) -> int:
        if self._get("attention.key_length", None) is not None:
            head_dim = self._integer("attention.key_length", 2, 1024)
        elif hidden_size % num_heads:
            raise self._contradiction(
                f"its width {hidden_size} cannot be divided among {num_heads} heads"
            )
        else:
            head_dim = hidden_size // num_heads
        value_length = self._integer("attention.value_length", 2, 1024, default=head_dim)
        if value_length != head_dim:
            raise UnsupportedModelError(
                f"{self._header.path.name} has keys of {head_dim} and values of {value_length} "
                "dimensions per head, which Octavo does not run yet.",
                hint="Choose another model.",
            )
        if head_dim % 2:
            raise self._contradiction(f"its heads have the odd size {head_dim}")
        return head_dim

    def _vocab_size(self, hidden_size: int) -> int:
        embedding = self._header.tensors.get(EMBEDDING_TENSOR)
        if embedding is None:
            raise CheckpointError(
                f"{self._header.path.name} has no tensor {EMBEDDING_TENSOR!r}: "
                "it holds no complete model.",
                path=self._header.path,
                tensor=EMBEDDING_TENSOR,
                hint="Download the model's main .gguf file.",
            )
        if len(embedding.shape) != 2 or embedding.shape[1] != hidden_size:
            raise self._contradiction(
                f"its embedding has the shape {list(embedding.shape)}, "
                f"but {self._key('embedding_length')} is {hidden_size}"
            )
        vocab_size = embedding.shape[0]
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and len(tokens) > vocab_size:
            raise self._contradiction(
                f"it lists {len(tokens):,} tokens, but its embedding has {vocab_size:,} rows"
            )
        return vocab_size

    def _rope(self, head_dim: int, context_length: int) -> RopeConfig:
        rotary_dim = self._integer("rope.dimension_count", 2, head_dim, default=head_dim)
        if rotary_dim % 2:
            raise self._contradiction(f"{self._key('rope.dimension_count')} is {rotary_dim}")
        theta = self._positive("rope.freq_base", default=10000.0)
        factor = self._scaling_factor()
        # llama.cpp takes a factor without a type as linear scaling.
        scaling = self._get("rope.scaling.type", "linear")
        if scaling == "linear" and factor == 1.0:
            scaling = "none"
        attn_factor = self._positive("rope.scaling.attn_factor", default=1.0)
        original = self._integer(
            "rope.scaling.original_context_length", 1, 1 << 28, default=context_length
        )
        if ROPE_FACTORS_TENSOR in self._header.tensors:
            self._check_rope_factors(rotary_dim, ROPE_FACTORS_TENSOR)
            if scaling != "none":
                raise self._unsupported_rope(f"{_short(scaling)} together with frequency factors")
            return RopeConfig(rotary_dim, theta, "factors", attn_factor=attn_factor)
        if ROPE_LONG_TENSOR in self._header.tensors:
            for tensor in (ROPE_LONG_TENSOR, ROPE_SHORT_TENSOR):
                self._check_rope_factors(rotary_dim, tensor)
            return RopeConfig(
                rotary_dim,
                theta,
                "longrope",
                original_max_position=original,
                attn_factor=attn_factor,
            )
        if scaling == "none":
            return RopeConfig(rotary_dim, theta, attn_factor=attn_factor)
        if scaling == "linear":
            return RopeConfig(rotary_dim, theta, "linear", factor, attn_factor=attn_factor)
        if scaling != "yarn":
            raise self._unsupported_rope(_short(scaling))
        return RopeConfig(
            rotary_dim,
            theta,
            "yarn",
            factor,
            original_max_position=original,
            beta_fast=self._positive("rope.scaling.yarn_beta_fast", default=32.0),
            beta_slow=self._positive("rope.scaling.yarn_beta_slow", default=1.0),
            attn_factor=attn_factor * self._yarn_magnitude(factor),
            is_truncated=self._family.truncates_yarn,
        )

    def _scaling_factor(self) -> float:
        """The factor, or 1 where it is absent or 0 (which some converters write for none)."""
        for key in ("rope.scaling.factor", "rope.scale_linear"):
            if self._get(key, 0) != 0:
                return self._positive(key)
        return 1.0

    def _yarn_magnitude(self, factor: float) -> float:
        """Source: Peng et al. 2023, arXiv:2309.00071, section 3.4."""
        if factor <= 1.0:
            return 1.0
        magnitude = 0.1 * math.log(factor) + 1.0
        log_multiplier = self._get("rope.scaling.yarn_log_multiplier", 0.0)
        if isinstance(log_multiplier, float) and log_multiplier > 0.0:
            magnitude /= 0.1 * log_multiplier * math.log(factor) + 1.0
        return magnitude

    def _check_rope_factors(self, rotary_dim: int, name: str) -> None:
        tensor = self._header.tensors.get(name)
        shape = None if tensor is None else tensor.shape
        if shape != (rotary_dim // 2,):
            raise self._contradiction(
                f"its tensor {name!r} has the shape {list(shape or ())}, "
                f"but {rotary_dim} rotary dimensions need {rotary_dim // 2} factors"
            )

    def _unsupported_rope(self, scaling: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._header.path.name} scales its positions by {scaling}, "
            "which Octavo does not run yet.",
            hint="Octavo runs none, linear, yarn, longrope and Llama 3's scaling.",
        )

    def _key(self, name: str) -> str:
        return f"{self._header.architecture}.{name}"

    def _get(self, name: str, default: Any) -> Any:
        return self._metadata.get(self._key(name), default)

    def _integer(self, name: str, least: int, most: int, *, default: int | None = None) -> int:
        value = self._get(name, default)
        if isinstance(value, list) and value:
            if any(one != value[0] for one in value):
                raise UnsupportedModelError(
                    f"{self._header.path.name} has a different {self._key(name)} in each layer, "
                    "which Octavo does not run yet.",
                    hint="Choose another model.",
                )
            value = value[0]
        if value is None:
            raise self._missing(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._contradiction(f"{self._key(name)} is {_short(value)}, not a whole number")
        if not least <= value <= most:
            raise self._contradiction(
                f"{self._key(name)} is {value:,}; it must be from {least:,} to {most:,}"
            )
        return value

    def _positive(
        self, name: str, *, default: float | None = None, below: float = math.inf
    ) -> float:
        value = self._get(name, default)
        if value is None:
            raise self._missing(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
            raise self._contradiction(
                f"{self._key(name)} is {_short(value)}, which is out of range"
            )
        return float(value)

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self._header.path.name} does not say its {self._key(name)}.",
            path=self._header.path,
            hint="Download the file again, or another conversion of this model.",
        )

    def _contradiction(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self._header.path.name} is inconsistent: {problem}.",
            path=self._header.path,
            hint="Download the file again, or another conversion of this model.",
        )


def _short(value: object) -> str:
    """The value as Python writes it, cut to a readable length: files may claim anything."""
    return reprlib.repr(value)

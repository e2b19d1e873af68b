"""`ModelConfig`: the numbers of a model's architecture, read from a checkpoint's metadata."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from octavo.checkpoint.gguf import GGMLType, GGUFHeader
from octavo.errors import CheckpointError, UnsupportedModelError

SUPPORTED_ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"llama": "Llama 1 to 3, Mistral, SmolLM, TinyLlama and others built like them"}
)
"""What `general.architecture` may be, and which models that covers."""

SUPPORTED_TYPES = frozenset(
    {
        GGMLType.F32,
        GGMLType.F16,
        GGMLType.BF16,
        GGMLType.Q4_0,
        GGMLType.Q4_1,
        GGMLType.Q5_0,
        GGMLType.Q5_1,
        GGMLType.Q8_0,
        GGMLType.Q2_K,
        GGMLType.Q3_K,
        GGMLType.Q4_K,
        GGMLType.Q5_K,
        GGMLType.Q6_K,
        GGMLType.IQ4_NL,
        GGMLType.IQ4_XS,
    }
)
"""Storage types of weights that `quantization` can unpack."""

EMBEDDING_TENSOR = "token_embd.weight"
OUTPUT_TENSOR = "output.weight"
ROPE_FACTORS_TENSOR = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn queries and keys."""

    rotary_dim: int
    """The first so many dimensions of a head are turned, the rest pass."""
    theta: float = 10000.0
    scaling: str = "none"
    """`none`, `linear`, `llama3`, `yarn`, `longrope`, or `factors`: inverse frequencies are
    divided by the weights `model.rotary_emb.freq_factors`, into which GGUF bakes Llama 3's
    scaling."""
    factor: float = 1.0
    """By how much the context was stretched."""
    original_max_position: int | None = None
    """The context before it was stretched, where `scaling` needs it."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attn_factor: float = 1.0
    """On cosine and sine; everything that yarn or longrope asks for is already in it."""
    is_truncated: bool = True
    """Whether the ends of yarn's ramp are whole channels."""
    short_divisors: tuple[float, ...] = ()
    """Of longrope: what each inverse frequency is divided by, [rotary_dim / 2], in contexts up to
    the original one."""
    long_divisors: tuple[float, ...] = ()
    """In longer ones."""


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """A feed-forward part of many experts, of which a router picks a few for each token."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    """Of one expert."""
    renormalizes: bool = True
    """Whether the weights of the picked experts are made to sum to one."""
    shared_intermediate_size: int = 0
    """Of the expert that sees every token; 0: there is none."""
    dense_layers: frozenset[int] = frozenset()
    """Layers with an ordinary feed-forward part."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder, and what is worth showing about its checkpoint."""

    architecture: str
    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    """The longest sequence the model was trained for, in tokens."""
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    num_parameters: int
    checkpoint_bytes: int
    quantization: str
    attention_bias: bool = False
    """Whether the projections to queries, keys and values add a bias."""
    attention_output_bias: bool = False
    attention_scale: float | None = None
    """Factor on the scores; None: head_dim ** -0.5."""
    attention_softcap: float | None = None
    final_softcap: float | None = None
    """Logits are squeezed between this and its negative."""
    qk_norm: str = "none"
    """RMS norm of queries and keys before they turn: `none`, `head` or `all` heads together."""
    norm_placement: str = "before"
    """Norms `before` each part, `after` it (before it is added), or `around` it."""
    norm_offset: float = 0.0
    """What is added to the norms' weights."""
    norm_in_float32: bool = False
    """Whether norms multiply by their weight before the cast back, not after it."""
    activation: str = "silu"
    """`silu` or `gelu_tanh`."""
    mlp_bias: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """On what each part adds to the residual stream."""
    logits_scale: float = 1.0
    windows: tuple[int | None, ...] = ()
    """Per layer, how many keys a query sees; None or no entry: all."""
    local_rope: RopeConfig | None = None
    """Of the layers with a window, where it differs."""
    unrotated_layers: frozenset[int] = frozenset()
    """Layers in which positions turn nothing."""
    has_sinks: bool = False
    """Whether each head has a learned score of no key."""
    moe: MoEConfig | None = None

    def window(self, layer: int) -> int | None:
        """How many keys a query of that layer sees; None: all."""
        return self.windows[layer] if layer < len(self.windows) else None

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_element


def model_config_from_gguf(header: GGUFHeader) -> ModelConfig:
    """Reads the model's numbers and checks that Octavo can run it.

    Raises:
        UnsupportedModelError: an architecture, a variant of it or a storage type not run.
        CheckpointError: a number is missing, out of range or contradicts another.
    """
    if header.architecture not in SUPPORTED_ARCHITECTURES:
        raise _unsupported_architecture(header)
    _check_storage_types(header)
    return _LlamaReader(header).read()


def unsupported_type(ggml_type: GGMLType, where: str) -> UnsupportedModelError:
    """The error for weights of a storage type that cannot be unpacked."""
    return UnsupportedModelError(
        f"{where} has the storage type {ggml_type.name}, which Octavo cannot unpack yet.",
        hint="Choose another quantisation of this model: Q4_K_M, Q5_K_M, Q6_K, Q8_0 or IQ4_XS.",
    )


def _unsupported_architecture(header: GGUFHeader) -> UnsupportedModelError:
    covered = "; ".join(f"{name} ({models})" for name, models in SUPPORTED_ARCHITECTURES.items())
    kind = header.metadata.get("general.type", "model")
    if header.architecture == "clip" or kind == "mmproj":
        problem = "is the vision part of a model, not a language model"
    else:
        problem = (
            f"is of the architecture {_short(header.architecture)}, which Octavo does not run yet"
        )
    return UnsupportedModelError(
        f"{header.path.name} {problem}.", hint=f"Octavo runs today: {covered}."
    )


def _check_storage_types(header: GGUFHeader) -> None:
    for tensor in header.tensors.values():
        if tensor.ggml_type not in SUPPORTED_TYPES:
            where = f"The tensor {tensor.name!r} in {header.path.name}"
            raise unsupported_type(tensor.ggml_type, where)


class _LlamaReader:
    """Reads the keys `llama.*` of one header."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
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
        return ModelConfig(
            architecture=self._header.architecture,
            name=self._name(),
            num_layers=num_layers,
            hidden_size=hidden_size,
            intermediate_size=self._integer("feed_forward_length", 1, 1 << 20),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self._vocab_size(hidden_size),
            max_position_embeddings=context_length,
            rms_norm_eps=self._positive("attention.layer_norm_rms_epsilon", below=1.0),
            rope=self._rope(head_dim, context_length),
            tie_word_embeddings=OUTPUT_TENSOR not in self._header.tensors,
            num_parameters=self._header.num_parameters,
            checkpoint_bytes=self._header.tensor_bytes,
            quantization=self._header.quantization,
            attention_bias="blk.0.attn_q.bias" in self._header.tensors,
            attention_output_bias="blk.0.attn_output.bias" in self._header.tensors,
        )

    def _refuse_variants(self) -> None:
        num_experts = self._get("expert_count", 0)
        if isinstance(num_experts, int) and num_experts > 0:
            raise UnsupportedModelError(
                f"{self._header.path.name} is a mixture of {num_experts:,} experts, "
                "which Octavo does not run yet.",
                hint="Choose a dense model.",
            )
        if self._metadata.get("general.type") == "adapter":
            raise UnsupportedModelError(
                f"{self._header.path.name} is an adapter (LoRA) for another model.",
                hint="Choose a complete model.",
            )

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
            self._check_rope_factors(rotary_dim)
            if scaling != "none":
                raise self._unsupported_rope(f"{_short(scaling)} together with frequency factors")
            return RopeConfig(rotary_dim, theta, "factors", attn_factor=attn_factor)
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

    def _check_rope_factors(self, rotary_dim: int) -> None:
        shape = self._header.tensors[ROPE_FACTORS_TENSOR].shape
        if shape != (rotary_dim // 2,):
            raise self._contradiction(
                f"its tensor {ROPE_FACTORS_TENSOR!r} has the shape {list(shape)}, "
                f"but {rotary_dim} rotary dimensions need {rotary_dim // 2} factors"
            )

    def _unsupported_rope(self, scaling: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._header.path.name} scales its positions by {scaling}, "
            "which Octavo does not run yet.",
            hint="Octavo runs none, linear, yarn and Llama 3's scaling.",
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

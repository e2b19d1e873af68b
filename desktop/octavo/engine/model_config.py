"""`ModelConfig`: the numbers of a model's architecture, whatever checkpoint they come from."""

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.weight_format import WeightFormat
from octavo.errors import UnsupportedModelError

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
        GGMLType.IQ1_S,
        GGMLType.IQ1_M,
        GGMLType.IQ2_XXS,
        GGMLType.IQ2_XS,
        GGMLType.IQ2_S,
        GGMLType.IQ3_XXS,
        GGMLType.IQ3_S,
        GGMLType.TQ1_0,
        GGMLType.TQ2_0,
        GGMLType.MXFP4,
        GGMLType.NVFP4,
        GGMLType.Q1_0,
    }
)
"""Storage types of weights that `quantization` can unpack."""


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
    the original one. Empty: the weights `model.rotary_emb.short_factors` and `long_factors`."""
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
    has_biases: bool = False
    """Whether router and experts add biases."""


@dataclass(frozen=True, slots=True)
class StoredSizes:
    """What a checkpoint's weights are, and what they take as they are stored."""

    quantized_elements: int = 0
    """Values of matrices in quantised formats."""
    quantized_bytes: int = 0
    """Of those, scales and zero points included."""
    wide_elements: int = 0
    """Values of matrices in float32."""
    half_elements: int = 0
    """Values of matrices in float16 or bfloat16."""
    vector_elements: int = 0
    """All others: norms, biases."""

    @classmethod
    def of(cls, weights: Iterable[tuple[int, int, int, bool]]) -> "StoredSizes":
        """Adds up weights.

        Args:
            weights: of each, its number of dimensions, of values and of bytes, and whether it is
                quantised.
        """
        sizes = dict.fromkeys(("quantized", "bytes", "wide", "half", "vector"), 0)
        for num_dimensions, num_elements, num_bytes, is_quantized in weights:
            if is_quantized and num_dimensions > 1:
                sizes["quantized"] += num_elements
                sizes["bytes"] += num_bytes
            elif num_dimensions > 1:
                sizes["half" if num_bytes < 4 * num_elements else "wide"] += num_elements
            else:
                sizes["vector"] += num_elements
        return cls(*sizes.values())

    def packed_bytes(self, element_bytes: int) -> int:
        """In memory, with matrices as they are stored: plain ones never above the model's type.

        Args:
            element_bytes: of the model's type.
        """
        half = self.half_elements * min(2, element_bytes)
        return self.quantized_bytes + half + self.dense_bytes(element_bytes)

    def dense_bytes(self, element_bytes: int) -> int:
        """The part of `packed_bytes` that is unpacked to the model's type at load."""
        return (self.wide_elements + self.vector_elements) * element_bytes


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
    """`silu`, `gelu_tanh` or `clamped_swiglu`."""
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
    stored: StoredSizes | None = None
    """What keeping the weights packed takes; None: it is not known."""
    matrix_types: frozenset[GGMLType] = frozenset()
    """How a GGUF file stores its matrices; empty: it is none."""
    weight_format: WeightFormat | None = None
    """How a folder's weights are quantised; None: they are not, or each tensor says it itself."""

    def window(self, layer: int) -> int | None:
        """How many keys a query of that layer sees; None: all."""
        return self.windows[layer] if layer < len(self.windows) else None

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_element


def unsupported_type(ggml_type: GGMLType, where: str) -> UnsupportedModelError:
    """The error for weights of a storage type that cannot be unpacked."""
    return UnsupportedModelError(
        f"{where} has the storage type {ggml_type.name}, which Octavo cannot unpack yet.",
        hint="Choose another quantisation of this model: Q4_K_M, Q5_K_M, Q6_K, Q8_0 or IQ4_XS.",
    )

"""The families of models Octavo runs: each is a configuration of one decoder, not a copy of it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Family:
    """What all models of one architecture have in common."""

    model_type: str
    """As config.json calls it."""
    causal_class: str
    """The one class of it that Octavo runs, as config.json calls it."""
    gguf_architecture: str
    """As `general.architecture` calls it; empty: not read from GGUF."""
    covers: str
    """Its models, as people know them."""
    qkv_bias: bool | None = False
    """Whether queries, keys and values add a bias; None: as the checkpoint says."""
    output_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: str = "none"
    norm_placement: str = "before"
    norm_offset: float = 0.0
    """In folders; converters to GGUF have added it to the weights."""
    norm_in_float32: bool = False
    activation: str = "silu"
    scales_embedding: bool = False
    """By the square root of the hidden size."""
    windows: str = "none"
    """Which layers have one where config.json does not list them: `none`, `all`, `late` (from
    max_window_layers on), `alternate` (the first, the third...) or `pattern` (all but each
    sixth)."""
    has_softcaps: bool = False
    has_multipliers: bool = False
    """Factors on embedding, residual, scores and logits (Granite)."""
    has_unrotated_layers: bool = False
    default_head_dim: int | None = None
    default_theta: float = 10000.0
    default_local_theta: float | None = None
    """Of the layers with a window, where they have another one."""
    default_tied: bool = False
    experts: str = "none"
    """How config.json describes experts: `none`, `mixtral` or `qwen`."""
    has_shared_expert: bool = False
    has_expert_biases: bool = False
    has_sinks: bool = False
    truncates_yarn: bool = True
    """Whether the ends of yarn's ramp are whole channels, which GGUF cannot say."""
    is_permuted_in_gguf: bool = False
    """Whether GGUF files hold the rows of q and k for rotating neighbours."""


_LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "llama",
    "Llama 1 to 3, SmolLM2, TinyLlama and others built like them",
    qkv_bias=None,
    output_bias=None,
    mlp_bias=None,
    is_permuted_in_gguf=True,
)
_GEMMA = Family(
    "gemma",
    "GemmaForCausalLM",
    "gemma",
    "Gemma 1",
    norm_offset=1.0,
    norm_in_float32=True,
    activation="gelu_tanh",
    scales_embedding=True,
    default_head_dim=256,
    default_tied=True,
)
_GEMMA2 = dataclasses.replace(
    _GEMMA,
    model_type="gemma2",
    causal_class="Gemma2ForCausalLM",
    gguf_architecture="gemma2",
    covers="Gemma 2",
    norm_placement="around",
    windows="alternate",
    has_softcaps=True,
)
_GEMMA3 = dataclasses.replace(
    _GEMMA2,
    model_type="gemma3_text",
    causal_class="Gemma3ForCausalLM",
    gguf_architecture="gemma3",
    covers="Gemma 3 (text)",
    qk_norm="head",
    windows="pattern",
    has_softcaps=True,
    default_theta=1e6,
    default_local_theta=1e4,
)
_QWEN2 = Family(
    "qwen2", "Qwen2ForCausalLM", "qwen2", "Qwen 2 and 2.5", qkv_bias=True, windows="late"
)
_QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    "qwen3",
    "Qwen 3",
    qkv_bias=None,
    output_bias=None,
    qk_norm="head",
    windows="late",
    default_head_dim=128,
)

FAMILIES: tuple[Family, ...] = (
    _LLAMA,
    Family(
        "mistral",
        "MistralForCausalLM",
        "llama",
        "Mistral 7B, Nemo and Small",
        windows="all",
        is_permuted_in_gguf=True,
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        "llama",
        "Mixtral",
        windows="all",
        default_theta=1e6,
        experts="mixtral",
        is_permuted_in_gguf=True,
    ),
    _QWEN2,
    dataclasses.replace(
        _QWEN2,
        model_type="qwen2_moe",
        causal_class="Qwen2MoeForCausalLM",
        gguf_architecture="qwen2moe",
        covers="Qwen 1.5 and 2 MoE",
        windows="none",
        experts="qwen",
        has_shared_expert=True,
    ),
    _QWEN3,
    dataclasses.replace(
        _QWEN3,
        model_type="qwen3_moe",
        causal_class="Qwen3MoeForCausalLM",
        gguf_architecture="qwen3moe",
        covers="Qwen 3 MoE",
        windows="none",
        default_head_dim=None,
        experts="qwen",
    ),
    Family("phi3", "Phi3ForCausalLM", "phi3", "Phi 3, 3.5, 4 and 4-mini", windows="all"),
    _GEMMA,
    _GEMMA2,
    _GEMMA3,
    Family(
        "granite",
        "GraniteForCausalLM",
        "granite",
        "Granite 3",
        qkv_bias=None,
        output_bias=None,
        mlp_bias=None,
        has_multipliers=True,
        is_permuted_in_gguf=True,
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        "olmo2",
        "OLMo 2",
        qkv_bias=None,
        output_bias=None,
        qk_norm="all",
        norm_placement="after",
        norm_in_float32=True,
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        "smollm3",
        "SmolLM3",
        qkv_bias=None,
        output_bias=None,
        mlp_bias=None,
        has_unrotated_layers=True,
        default_theta=2e6,
        default_tied=True,
        is_permuted_in_gguf=True,
    ),
    Family(
        "gpt_oss",
        "GptOssForCausalLM",
        "gpt-oss",
        "gpt-oss",
        qkv_bias=None,
        output_bias=None,
        norm_in_float32=True,
        activation="clamped_swiglu",
        windows="alternate",
        default_theta=150000.0,
        experts="mixtral",
        has_expert_biases=True,
        has_sinks=True,
        truncates_yarn=False,
    ),
)
BY_MODEL_TYPE: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in FAMILIES}
)

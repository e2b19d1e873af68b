"""`ModelConfig` from the config.json of a model folder, as transformers 4 and 5 write it."""

import re

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.config_values import ConfigValues, short
from octavo.engine.families import BY_MODEL_TYPE, FAMILIES, Family
from octavo.engine.model_config import ModelConfig, MoEConfig, StoredSizes
from octavo.engine.rope_config_hf import read_ropes
from octavo.errors import CheckpointError, UnsupportedModelError

EMBEDDING_TENSOR = "model.embed_tokens.weight"
OUTPUT_TENSOR = "lm_head.weight"

_MAX_CONTEXT = 1 << 28
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_CLAMPED = "clamped_swiglu"
_CLAMPED_SWIGLU = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
"""The only numbers that gpt-oss was trained with."""
_STACKED_EXPERTS = re.compile(r".+\.mlp\.experts\.(gate_up|down)_proj(_bias|_blocks|_scales|)")
_SLIDING, _FULL = "sliding_attention", "full_attention"


def model_config_from_folder(header: FolderHeader) -> ModelConfig:
    """Reads the model's numbers and checks that Octavo can run it.

    Raises:
        UnsupportedModelError: an architecture, a variant of it or a storage type not run.
        CheckpointError: a number is missing, out of range or contradicts another.
    """
    values = ConfigValues(header)
    family = BY_MODEL_TYPE.get(header.architecture)
    if family is None:
        raise UnsupportedModelError(
            f"{header.path.name} is of the architecture {short(header.architecture)}, "
            "which Octavo does not run yet.",
            hint=f"Octavo runs today: {'; '.join(item.covers for item in FAMILIES)}.",
        )
    _refuse_what_does_not_run(values, family)
    return _FamilyReader(values, family).read()


def _refuse_what_does_not_run(values: ConfigValues, family: Family) -> None:
    classes = values.get("architectures", [family.causal_class])
    if classes != [family.causal_class]:
        raise values.unsupported(f"is a {short(classes)}, not a {family.causal_class}")
    if values.get("clip_qkv") is not None:
        raise values.unsupported("clips its queries, keys and values")
    if values.get("use_bidirectional_attention"):
        raise values.unsupported("looks ahead")


class _FamilyReader:
    """Reads one config.json as those of its family are to be read."""

    def __init__(self, values: ConfigValues, family: Family) -> None:
        self._values = values
        self._family = family
        self._header = values.header
        self._weights = values.header.weights()

    def read(self) -> ModelConfig:
        values, family = self._values, self._family
        hidden_size = values.integer("hidden_size", 1, 1 << 17)
        num_layers = values.integer("num_hidden_layers", 1, 1024)
        num_heads = values.integer("num_attention_heads", 1, 4096)
        num_kv_heads = values.integer("num_key_value_heads", 1, 4096, default=num_heads)
        if num_heads % num_kv_heads:
            raise values.contradiction(
                f"{num_heads} query heads cannot share {num_kv_heads} key-value heads evenly"
            )
        head_dim = self._head_dim(hidden_size, num_heads)
        context_length = values.integer("max_position_embeddings", 1, _MAX_CONTEXT)
        rope, local_rope = read_ropes(values, family, head_dim, context_length)
        has_multipliers = family.has_multipliers
        return ModelConfig(
            architecture=self._header.architecture,
            name=self._header.title,
            num_layers=num_layers,
            hidden_size=hidden_size,
            intermediate_size=values.integer("intermediate_size", 1, 1 << 20),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=self._vocab_size(hidden_size),
            max_position_embeddings=context_length,
            rms_norm_eps=values.positive("rms_norm_eps", default=1e-6, below=1.0),
            rope=rope,
            # A folder that claims to tie but brings both matrices means the second one.
            tie_word_embeddings=values.flag("tie_word_embeddings", default=family.default_tied)
            and OUTPUT_TENSOR not in self._weights,
            num_parameters=self._header.num_parameters,
            checkpoint_bytes=self._header.tensor_bytes,
            quantization=self._header.quantization,
            stored=StoredSizes.of(
                (
                    2 if weight.format is not None else len(weight.main.shape),
                    weight.num_elements,
                    weight.num_bytes,
                    weight.format is not None,
                )
                for weight in self._weights.values()
            ),
            attention_bias=self._bias(family.qkv_bias, "attention_bias", "qkv_bias"),
            attention_output_bias=self._bias(family.output_bias, "attention_bias"),
            attention_scale=self._attention_scale(),
            attention_softcap=self._softcap("attn_logit_softcapping"),
            final_softcap=self._softcap("final_logit_softcapping"),
            qk_norm=family.qk_norm,
            norm_placement=family.norm_placement,
            norm_offset=family.norm_offset,
            norm_in_float32=family.norm_in_float32,
            activation=self._activation(),
            mlp_bias=self._bias(family.mlp_bias, "mlp_bias"),
            embedding_scale=hidden_size**0.5
            if family.scales_embedding
            else self._multiplier("embedding_multiplier"),
            residual_scale=self._multiplier("residual_multiplier"),
            logits_scale=1 / values.positive("logits_scaling") if has_multipliers else 1.0,
            windows=self._windows(num_layers),
            local_rope=local_rope,
            unrotated_layers=self._unrotated_layers(num_layers),
            has_sinks=family.has_sinks,
            moe=self._moe(num_layers),
            weight_format=self._header.weight_format(),
        )

    def _head_dim(self, hidden_size: int, num_heads: int) -> int:
        default = self._family.default_head_dim
        if default is not None or self._values.get("head_dim") is not None:
            head_dim = self._values.integer("head_dim", 2, 1024, default=default)
        elif hidden_size % num_heads:
            raise self._values.contradiction(
                f"its width {hidden_size} cannot be divided among {num_heads} heads"
            )
        else:
            head_dim = hidden_size // num_heads
        if head_dim % 2:
            raise self._values.contradiction(f"its heads have the odd size {head_dim}")
        return head_dim

    def _vocab_size(self, hidden_size: int) -> int:
        embedding = self._weights.get(EMBEDDING_TENSOR)
        if embedding is None:
            raise CheckpointError(
                f"{self._header.path.name} has no tensor {EMBEDDING_TENSOR!r}: "
                "it holds no complete model.",
                path=self._header.path,
                tensor=EMBEDDING_TENSOR,
                hint="Download the whole folder of the model, not an adapter for it.",
            )
        vocab_size = self._values.integer("vocab_size", 1, 1 << 24)
        if embedding.format is None and embedding.main.shape != (vocab_size, hidden_size):
            raise self._values.contradiction(
                f"the tensor {EMBEDDING_TENSOR!r} in {embedding.path.name} has the shape "
                f"{list(embedding.main.shape)} instead of {[vocab_size, hidden_size]}",
                tensor=EMBEDDING_TENSOR,
            )
        return vocab_size

    def _bias(self, rule: bool | None, *keys: str) -> bool:
        """The family's rule, or what the first of the keys says that is there."""
        for key in keys:
            if self._values.get(key) is not None and (rule is None or key == "qkv_bias"):
                return self._values.flag(key)
        return bool(rule)

    def _activation(self) -> str:
        if self._family.activation == _CLAMPED:  # It is called "silu" there.
            for key, expected in _CLAMPED_SWIGLU.items():
                if self._values.positive(key, default=expected) != expected:
                    raise self._values.unsupported(f"has the {key} {self._values.get(key)}")
            return _CLAMPED
        # Gemma's first files say "gelu" in one key and mean what the other one says.
        named = self._values.get("hidden_activation", self._values.get("hidden_act"))
        if named is None or (self._family.activation == "gelu_tanh" and named == "gelu"):
            return self._family.activation
        activation = _ACTIVATIONS.get(named) if isinstance(named, str) else None
        if activation is None:
            raise self._values.unsupported(f"uses the activation {short(named)}")
        return activation

    def _attention_scale(self) -> float | None:
        if self._family.has_multipliers:
            return self._values.positive("attention_multiplier")
        scalar = self._values.optional_positive("query_pre_attn_scalar")
        return None if scalar is None else scalar**-0.5

    def _softcap(self, key: str) -> float | None:
        return self._values.optional_positive(key) if self._family.has_softcaps else None

    def _multiplier(self, key: str) -> float:
        return self._values.positive(key) if self._family.has_multipliers else 1.0

    def _windows(self, num_layers: int) -> tuple[int | None, ...]:
        kinds = self._layer_kinds(num_layers)
        if _SLIDING not in kinds:
            return ()
        window = self._values.integer("sliding_window", 1, _MAX_CONTEXT)
        return tuple(window if kind == _SLIDING else None for kind in kinds)

    def _layer_kinds(self, num_layers: int) -> list[str]:
        values = self._values
        kinds = values.get("layer_types")
        if kinds is not None:
            if not isinstance(kinds, list) or len(kinds) != num_layers:
                raise values.contradiction(f"layer_types does not list {num_layers} layers")
            for kind in kinds:
                if kind not in (_SLIDING, _FULL):
                    raise values.unsupported(f"has layers of the kind {short(kind)}")
            return kinds
        if values.get("sliding_window") in (None, 0):
            return [_FULL] * num_layers
        layers = range(num_layers)
        match self._family.windows:
            case "all":
                slides = [True] * num_layers
            case "late" if values.flag("use_sliding_window"):
                first = values.integer("max_window_layers", 0, 1 << 20)
                slides = [layer >= first for layer in layers]
            case "alternate":
                slides = [layer % 2 == 0 for layer in layers]
            case "pattern":
                length = values.integer(
                    "sliding_window_pattern",
                    1,
                    1024,
                    default=values.get("_sliding_window_pattern", 6),
                )
                slides = [(layer + 1) % length != 0 for layer in layers]
            case _:
                if values.flag("use_sliding_window"):
                    raise values.unsupported("has sliding windows in layers it does not name")
                slides = [False] * num_layers
        return [_SLIDING if slide else _FULL for slide in slides]

    def _unrotated_layers(self, num_layers: int) -> frozenset[int]:
        if not self._family.has_unrotated_layers:
            return frozenset()
        is_rotated = self._values.integers("no_rope_layers")
        if not is_rotated:
            interval = self._values.integer("no_rope_layer_interval", 1, 1024, default=4)
            is_rotated = [int((layer + 1) % interval != 0) for layer in range(num_layers)]
        if len(is_rotated) != num_layers:
            raise self._values.contradiction(f"no_rope_layers does not list {num_layers} layers")
        return frozenset(layer for layer, rotated in enumerate(is_rotated) if not rotated)

    def _refuse_foreign_experts(self) -> None:
        """Writers of quantised gpt-oss have no agreed way to store its experts."""
        for name in self._header.tensors:
            if ".mlp.experts." in name and not _STACKED_EXPERTS.fullmatch(name):
                raise self._values.unsupported(f"stores its experts as {short(name)}")

    def _moe(self, num_layers: int) -> MoEConfig | None:
        values = self._values
        match self._family.experts:
            case "mixtral":
                num_experts = values.integer("num_local_experts", 1, 4096)
                size_key, renormalizes = "intermediate_size", True
            case "qwen":
                # transformers 5 writes Qwen 3's under Mixtral's name.
                named = values.get("num_local_experts")
                num_experts = values.integer("num_experts", 1, 4096, default=named)
                size_key, renormalizes = "moe_intermediate_size", values.flag("norm_topk_prob")
            case _:
                return None
        if self._family.has_expert_biases:
            self._refuse_foreign_experts()
        step = values.integer("decoder_sparse_step", 1, 1024, default=1)
        dense = set(values.integers("mlp_only_layers"))
        dense |= {layer for layer in range(num_layers) if (layer + 1) % step}
        shared_size = 0
        if self._family.has_shared_expert:
            shared_size = values.integer("shared_expert_intermediate_size", 1, 1 << 20)
        return MoEConfig(
            num_experts=num_experts,
            num_experts_per_token=values.integer("num_experts_per_tok", 1, num_experts),
            intermediate_size=values.integer(size_key, 1, 1 << 20),
            renormalizes=renormalizes,
            shared_intermediate_size=shared_size,
            dense_layers=frozenset(dense),
            has_biases=self._family.has_expert_biases,
        )

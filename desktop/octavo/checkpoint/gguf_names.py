"""What GGUF calls the tensors that Hugging Face names otherwise, for each architecture."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

EMBEDDING_TENSOR = "token_embd.weight"
OUTPUT_TENSOR = "output.weight"
ROPE_FACTORS_TENSOR = "rope_freqs.weight"
FREQ_FACTORS = "model.rotary_emb.freq_factors"
"""Ours for the divisors of the rotary frequencies, for which Hugging Face has no parameter."""

_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.(.+)")
_PARAMETER_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.(.+)")


@dataclass(frozen=True, slots=True)
class TensorNames:
    """The names of one architecture, both ways."""

    once: Mapping[str, str]
    """GGUF's name to Hugging Face's, of tensors that a model has once."""
    per_layer: Mapping[str, str]
    """As `once`, without the beginning that says which layer."""
    permuted: frozenset[str] = frozenset()
    """Hugging Face's names in a layer of those whose rows GGUF holds for rotating neighbours."""

    def parameter_name(self, tensor: str) -> str | None:
        """Hugging Face's name of a tensor of a GGUF file, None if there is none."""
        if layer := _LAYER.fullmatch(tensor):
            part = self.per_layer.get(layer[2])
            return None if part is None else f"model.layers.{layer[1]}.{part}"
        return self.once.get(tensor)

    def tensor_name(self, parameter: str) -> str | None:
        """GGUF's name of a parameter, None if there is none."""
        if layer := _PARAMETER_LAYER.fullmatch(parameter):
            part = _key_of(self.per_layer, layer[2])
            return None if part is None else f"blk.{layer[1]}.{part}"
        return _key_of(self.once, parameter)

    def is_permuted(self, parameter: str) -> bool:
        """Whether the rows of a parameter stand in another order in GGUF."""
        layer = _PARAMETER_LAYER.fullmatch(parameter)
        return layer is not None and layer[2] in self.permuted

    def all(self, num_layers: int) -> Iterator[tuple[str, str]]:
        """Every parameter that such a model may have, with GGUF's name of it."""
        for tensor, parameter in self.once.items():
            yield parameter, tensor
        for layer in range(num_layers):
            for tensor, parameter in self.per_layer.items():
                yield f"model.layers.{layer}.{parameter}", f"blk.{layer}.{tensor}"


def _key_of(names: Mapping[str, str], value: str) -> str | None:
    return next((key for key, one in names.items() if one == value), None)


_ONCE: Mapping[str, str] = MappingProxyType(
    {
        EMBEDDING_TENSOR: "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        OUTPUT_TENSOR: "lm_head.weight",
        ROPE_FACTORS_TENSOR: FREQ_FACTORS,
    }
)
_ATTENTION: Mapping[str, str] = MappingProxyType(
    {
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_q.bias": "self_attn.q_proj.bias",
        "attn_k.weight": "self_attn.k_proj.weight",
        "attn_k.bias": "self_attn.k_proj.bias",
        "attn_v.weight": "self_attn.v_proj.weight",
        "attn_v.bias": "self_attn.v_proj.bias",
        "attn_output.weight": "self_attn.o_proj.weight",
        "attn_output.bias": "self_attn.o_proj.bias",
    }
)
_HEAD_NORMS: Mapping[str, str] = MappingProxyType(
    {
        "attn_q_norm.weight": "self_attn.q_norm.weight",
        "attn_k_norm.weight": "self_attn.k_norm.weight",
    }
)
_MLP: Mapping[str, str] = MappingProxyType(
    {
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    }
)
_MLP_BIASES: Mapping[str, str] = MappingProxyType(
    {
        "ffn_gate.bias": "mlp.gate_proj.bias",
        "ffn_up.bias": "mlp.up_proj.bias",
        "ffn_down.bias": "mlp.down_proj.bias",
    }
)
_EXPERTS: Mapping[str, str] = MappingProxyType(
    {
        "ffn_gate_inp.weight": "mlp.gate.weight",
        "ffn_gate_exps.weight": "mlp.experts.gate_proj",
        "ffn_up_exps.weight": "mlp.experts.up_proj",
        "ffn_down_exps.weight": "mlp.experts.down_proj",
    }
)
_EXPERT_BIASES: Mapping[str, str] = MappingProxyType(
    {
        "ffn_gate_inp.bias": "mlp.gate.bias",
        "ffn_gate_exps.bias": "mlp.experts.gate_proj_bias",
        "ffn_up_exps.bias": "mlp.experts.up_proj_bias",
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    }
)
_SHARED_EXPERT: Mapping[str, str] = MappingProxyType(
    {
        "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
        "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
        "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
        "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
    }
)
_NORMS_BEFORE: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm.weight": "input_layernorm.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
    }
)
_NORMS_AFTER: Mapping[str, str] = MappingProxyType(
    {
        "post_attention_norm.weight": "post_attention_layernorm.weight",
        "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    }
)
_NORMS_AROUND: Mapping[str, str] = MappingProxyType(
    {
        **_NORMS_AFTER,
        "attn_norm.weight": "input_layernorm.weight",
        "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    }
)
_PERMUTED = frozenset(
    f"self_attn.{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias")
)


def _names(
    *per_layer: Mapping[str, str],
    once: Mapping[str, str] = _ONCE,
    permuted: frozenset[str] = frozenset(),
) -> TensorNames:
    merged = {tensor: name for names in per_layer for tensor, name in names.items()}
    return TensorNames(once, MappingProxyType(merged), permuted)


TENSOR_NAMES: Mapping[str, TensorNames] = MappingProxyType(
    {
        "llama": _names(_NORMS_BEFORE, _ATTENTION, _MLP, _MLP_BIASES, _EXPERTS, permuted=_PERMUTED),
        "granite": _names(_NORMS_BEFORE, _ATTENTION, _MLP, _MLP_BIASES, permuted=_PERMUTED),
        "smollm3": _names(_NORMS_BEFORE, _ATTENTION, _MLP, permuted=_PERMUTED),
        "qwen2": _names(_NORMS_BEFORE, _ATTENTION, _MLP),
        "qwen2moe": _names(_NORMS_BEFORE, _ATTENTION, _EXPERTS, _SHARED_EXPERT),
        "qwen3": _names(_NORMS_BEFORE, _ATTENTION, _HEAD_NORMS, _MLP),
        "qwen3moe": _names(_NORMS_BEFORE, _ATTENTION, _HEAD_NORMS, _EXPERTS),
        "phi3": _names(
            _NORMS_BEFORE,
            _ATTENTION,
            {
                "attn_qkv.weight": "self_attn.qkv_proj.weight",
                "attn_qkv.bias": "self_attn.qkv_proj.bias",
                "ffn_up.weight": "mlp.gate_up_proj.weight",
                "ffn_down.weight": "mlp.down_proj.weight",
            },
            once={
                **_ONCE,
                "rope_factors_short.weight": "model.rotary_emb.short_factors",
                "rope_factors_long.weight": "model.rotary_emb.long_factors",
            },
        ),
        "gemma": _names(_NORMS_BEFORE, _ATTENTION, _MLP),
        "gemma2": _names(_NORMS_AROUND, _ATTENTION, _MLP),
        "gemma3": _names(_NORMS_AROUND, _ATTENTION, _HEAD_NORMS, _MLP),
        "gpt-oss": _names(
            _ATTENTION,
            _EXPERTS,
            _EXPERT_BIASES,
            {
                "attn_norm.weight": "input_layernorm.weight",
                "attn_sinks.weight": "self_attn.sinks",
                "post_attention_norm.weight": "post_attention_layernorm.weight",
            },
        ),
        "olmo2": _names(_NORMS_AFTER, _ATTENTION, _HEAD_NORMS, _MLP),
    }
)
"""By `general.architecture`."""

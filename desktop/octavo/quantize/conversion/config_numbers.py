"""What a config.json says about a model that comes from a GGUF file, for each family."""

from typing import Any

from octavo.checkpoint.gguf import GGUFHeader
from octavo.engine.families import FAMILIES, Family
from octavo.engine.model_config import ModelConfig
from octavo.quantize.conversion.rope_scaling import config_rope_values, shortest_float32

_SLIDING, _FULL = "sliding_attention", "full_attention"
_HF_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def family_in_folders(config: ModelConfig, header: GGUFHeader) -> Family:
    """Which family a folder with this model is of: GGUF calls several `llama`."""

    def fits(family: Family) -> bool:
        has_experts, has_windows = family.experts != "none", family.windows != "none"
        return has_experts == (config.moe is not None) and (has_windows or not any(config.windows))

    known = [family for family in FAMILIES if family.gguf_architecture == header.architecture]
    return next(filter(fits, known), known[0])


def config_numbers(config: ModelConfig, header: GGUFHeader) -> dict[str, Any]:
    """The keys of a config.json but for tokens, data type and packing.

    What has no key is left out; `check_same_model` finds out whether that matters.

    Raises:
        UnsupportedModelError: a scaling of positions that no config.json can say.
        CheckpointError: tensors that say how positions are scaled are damaged.
        StorageError: the file cannot be read.
    """
    family = family_in_folders(config, header)
    return {
        "architectures": [family.causal_class],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": shortest_float32(config.rms_norm_eps),
        "tie_word_embeddings": config.tie_word_embeddings,
        **_activation(family),
        **_biases(config, family),
        **_windows(config, family),
        **_factors(config, family),
        **_experts(config, family),
        **_unrotated_layers(config, family),
        **config_rope_values(config, family, header),
    }


def _activation(family: Family) -> dict[str, Any]:
    name = _HF_ACTIVATIONS[family.activation]
    # Gemma's own folders have both.
    return {"hidden_act": name} | ({} if name == "silu" else {"hidden_activation": name})


def _biases(config: ModelConfig, family: Family) -> dict[str, Any]:
    biases = {}
    if family.qkv_bias is None:
        biases["attention_bias"] = config.attention_bias
    if family.mlp_bias is None:
        biases["mlp_bias"] = config.mlp_bias
    return biases


def _windows(config: ModelConfig, family: Family) -> dict[str, Any]:
    if family.windows == "none" and not any(config.windows):
        return {}
    # Said even where there is none: some families have one by default.
    window = next(filter(None, config.windows), None)
    if family.windows == "all":
        return {"sliding_window": window}
    if family.windows == "late":
        return {"sliding_window": window, "use_sliding_window": window is not None}
    kinds = [_SLIDING if config.window(layer) else _FULL for layer in range(config.num_layers)]
    return {"sliding_window": window, "layer_types": kinds}


def _factors(config: ModelConfig, family: Family) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if family.has_softcaps:
        # Null where there is none: one of these families has them by default.
        for key, number in (
            ("attn_logit_softcapping", config.attention_softcap),
            ("final_logit_softcapping", config.final_softcap),
        ):
            values[key] = None if number is None else shortest_float32(number)
        scale = config.attention_scale or config.head_dim**-0.5
        values["query_pre_attn_scalar"] = _rounded(scale**-2)
    if family.has_multipliers:
        scale = config.attention_scale or config.head_dim**-0.5
        values |= {
            "attention_multiplier": shortest_float32(scale),
            "embedding_multiplier": shortest_float32(config.embedding_scale),
            "residual_multiplier": shortest_float32(config.residual_scale),
            "logits_scaling": shortest_float32(1 / config.logits_scale),
        }
    return values


def _experts(config: ModelConfig, family: Family) -> dict[str, Any]:
    moe = config.moe
    if moe is None:
        return {}
    chosen = {"num_experts_per_tok": moe.num_experts_per_token}
    if family.experts == "mixtral":
        return {**chosen, "num_local_experts": moe.num_experts}
    values: dict[str, Any] = {
        **chosen,
        "num_experts": moe.num_experts,
        "moe_intermediate_size": moe.intermediate_size,
        "norm_topk_prob": moe.renormalizes,
        "decoder_sparse_step": 1,
        "mlp_only_layers": sorted(moe.dense_layers),
    }
    if family.has_shared_expert:
        values["shared_expert_intermediate_size"] = moe.shared_intermediate_size
    return values


def _unrotated_layers(config: ModelConfig, family: Family) -> dict[str, Any]:
    if not family.has_unrotated_layers:
        return {}
    layers = range(config.num_layers)
    return {"no_rope_layers": [int(layer not in config.unrotated_layers) for layer in layers]}


def _rounded(value: float) -> float:
    """What a number was before float32 rounded a power of it: 30 and not 30.000001."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded

"""The keys of a GGUF file that say what model it is, from the numbers of a folder's model."""

from octavo.checkpoint.folder import FolderHeader
from octavo.engine.families import BY_MODEL_TYPE, Family
from octavo.engine.model_config import ModelConfig
from octavo.quantize.conversion.gguf_values import GGUFValue, float32, uint32
from octavo.quantize.conversion.rope_scaling import gguf_rope_values


def gguf_numbers(config: ModelConfig, header: FolderHeader) -> dict[str, GGUFValue]:
    """The keys of the architecture, which is in front of each.

    What has no key is left out; `check_same_model` finds out whether that matters.

    Raises:
        UnsupportedModelError: a scaling of positions for which GGUF has no keys.
    """
    family = BY_MODEL_TYPE[header.architecture]
    values = {
        "vocab_size": uint32(config.vocab_size),
        "context_length": uint32(config.max_position_embeddings),
        "embedding_length": uint32(config.hidden_size),
        "block_count": uint32(config.num_layers),
        "feed_forward_length": uint32(config.intermediate_size),
        **_attention(config),
        **_factors(config, family),
        **_experts(config, family),
        **gguf_rope_values(config, header),
    }
    return {f"{family.gguf_architecture}.{key}": value for key, value in values.items()}


def _attention(config: ModelConfig) -> dict[str, GGUFValue]:
    values = {
        "attention.head_count": uint32(config.num_heads),
        "attention.head_count_kv": uint32(config.num_kv_heads),
        "attention.layer_norm_rms_epsilon": float32(config.rms_norm_eps),
    }
    if config.head_dim * config.num_heads != config.hidden_size:
        values["attention.key_length"] = uint32(config.head_dim)
        values["attention.value_length"] = uint32(config.head_dim)
    window = next(filter(None, config.windows), None)
    if window is not None:
        values["attention.sliding_window"] = uint32(window)
    for key, number in (
        ("attention.scale", config.attention_scale),
        ("attn_logit_softcapping", config.attention_softcap),
        ("final_logit_softcapping", config.final_softcap),
    ):
        if number is not None:
            values[key] = float32(number)
    return values


def _factors(config: ModelConfig, family: Family) -> dict[str, GGUFValue]:
    if not family.has_multipliers:
        return {}
    return {
        "embedding_scale": float32(config.embedding_scale),
        "residual_scale": float32(config.residual_scale),
        "logit_scale": float32(1 / config.logits_scale),
    }


def _experts(config: ModelConfig, family: Family) -> dict[str, GGUFValue]:
    moe = config.moe
    if moe is None:
        return {}
    values = {
        "expert_count": uint32(moe.num_experts),
        "expert_used_count": uint32(moe.num_experts_per_token),
    }
    # Mixtral's experts are as wide as its feed_forward_length says.
    if family.experts != "mixtral":
        values["expert_feed_forward_length"] = uint32(moe.intermediate_size)
    if moe.shared_intermediate_size:
        values["expert_shared_feed_forward_length"] = uint32(moe.shared_intermediate_size)
    return values

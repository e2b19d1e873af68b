"""Writes a random model of transformers as GGUF, the way llama.cpp's converter does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import PreTrainedModel

from octavo.engine.families import BY_MODEL_TYPE
from octavo.quantize.conversion.gguf_values import GGUFValue
from tests.support.gguf_files import RopeScaling

_PERMUTED = frozenset({"llama", "granite", "smollm3"})
_GEMMAS = frozenset({"gemma", "gemma2", "gemma3"})


def write_family_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Mapping[str, GGUFValue] | None = None,
    *,
    quantizes: bool = False,
) -> None:
    """All weights in F32 under GGUF's names, with the metadata of the architecture.

    Args:
        path: of the file.
        model: random.
        tokenizer: its keys; None: none.
        quantizes: write matrices in Q8_0, where they have rows of whole blocks.
    """
    config = model.config
    architecture = BY_MODEL_TYPE[config.model_type].gguf_architecture
    writer = gguf.GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config, head_dim)
    _add_extras(writer, config, architecture)
    for key, value in (tokenizer or {}).items():
        value_kind = gguf.GGUFValueType(int(value.type))
        if value.is_array:
            writer.add_key_value(key, value.plain, gguf.GGUFValueType.ARRAY, sub_type=value_kind)
        else:
            writer.add_key_value(key, value.value, value_kind)
    for name, weight in _tensors(model, architecture, head_dim):
        values = weight.contiguous().numpy()
        is_matrix = weight.ndim > 1 and name.endswith(".weight")
        if quantizes and is_matrix and weight.shape[-1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    rope = _ropes(config)[0]
    if rope["rope_type"] == "llama3":
        scaling = RopeScaling(
            "llama3",
            rope["factor"],
            rope["original_max_position_embeddings"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
        )
        writer.add_tensor("rope_freqs.weight", scaling.freq_factors(rope["rope_theta"], head_dim))
    for key in ("long", "short"):
        factors = _ropes(config)[0].get(f"{key}_factor")
        if factors:
            writer.add_tensor(f"rope_factors_{key}.weight", torch.tensor(factors).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def round_to_blocks(model: PreTrainedModel) -> None:
    """Gives a model the values that `write_family_gguf` keeps of it in Q8_0."""
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, weight in model.state_dict().items():
        # Experts of gpt-oss lie the other way round.
        is_turned = model.config.model_type == "gpt_oss" and name.endswith("_proj")
        rows = weight.transpose(1, 2) if is_turned else weight
        if rows.ndim > 1 and len(rows) > 1 and rows.shape[-1] % 32 == 0 and "_bias" not in name:
            stored = gguf.quants.quantize(rows.contiguous().numpy(), kind)
            rows.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind)))


def _ropes(config: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    rope = config.rope_parameters
    if "full_attention" in rope:
        return rope["full_attention"], rope["sliding_attention"]
    return rope, None


def _add_rope(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    rope, _ = _ropes(config)
    rotary_dim = int(head_dim * (rope.get("partial_rotary_factor") or 1.0))
    writer.add_rope_dimension_count(rotary_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = config.max_position_embeddings / original
        magnitude = (1 + torch.tensor(stretch).log() / torch.tensor(original).log()).sqrt()
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(magnitude))


def _add_extras(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture in _GEMMAS and hasattr(config, "query_pre_attn_scalar"):
        writer.add_attention_scale(config.query_pre_attn_scalar**-0.5)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if num_experts:
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if architecture == "gpt-oss":
            writer.add_expert_feed_forward_length(config.intermediate_size)
        if hasattr(config, "moe_intermediate_size"):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _tensors(
    model: PreTrainedModel, architecture: str, head_dim: int
) -> list[tuple[str, torch.Tensor]]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tensors = []
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if architecture in _PERMUTED and ("q_proj" in name or "k_proj" in name):
            shape = weight.shape
            halves = weight.view(-1, 2, head_dim // 2, *shape[1:])
            weight = halves.transpose(1, 2).reshape(shape)
        if architecture in _GEMMAS and name.endswith("norm.weight"):
            weight = weight + 1
        if architecture == "gpt-oss":
            tensors += [(_name(names, part), value) for part, value in _gpt_oss_parts(name, weight)]
            continue
        if name.endswith(".experts.gate_up_proj"):
            gate, up = weight.chunk(2, dim=1)
            prefix = name.removesuffix("gate_up_proj")
            tensors.append((_name(names, prefix + "gate_proj.weight"), gate))
            tensors.append((_name(names, prefix + "up_proj.weight"), up))
            continue
        if ".experts." in name:
            name += ".weight"
        if name.endswith("shared_expert_gate.weight"):
            weight = weight.squeeze(0)
        tensors.append((_name(names, name), weight))
    return tensors


def _gpt_oss_parts(name: str, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Gate and up take turns in one matrix, whose input features come first."""
    if name.endswith(".sinks"):
        return [(name + ".weight", weight)]
    matrix, bias, _ = name.partition("_bias")
    suffix = ".bias" if bias else ".weight"
    if not matrix.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return [(name, weight)]
    rows = weight if bias else weight.transpose(1, 2)
    if matrix.endswith("down_proj"):
        return [(matrix + suffix, rows)]
    prefix = matrix.removesuffix("gate_up_proj")
    return [
        (f"{prefix}{part}_proj{suffix}", rows[:, i::2]) for i, part in enumerate(("gate", "up"))
    ]


def _name(names: gguf.TensorNameMap, name: str) -> str:
    known = names.get_name(name, (".weight", ".bias"))
    if known is None:
        known = names.get_name(name.replace(".mlp.", ".block_sparse_moe."), (".weight", ".bias"))
    assert known is not None, name
    return known

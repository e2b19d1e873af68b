"""Random models of every family, written as transformers writes them."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 160
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 3.0, 7.0],
    "original_max_position_embeddings": 32,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GPT_OSS = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "head_dim": 16,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 32,
    },
}
SHAPE = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
"""Of variants that do not say otherwise."""
ODD = {
    "hidden_size": 40,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 10,
}
"""An odd number of queries to a key, and heads that are not parts of the hidden size."""
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA3, "mlp_bias": True, "attention_bias": True}),
    ("llama", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10}),
    ("mistral", {"sliding_window": 16}),
    ("mistral", {"sliding_window": None, "head_dim": 12}),
    ("qwen2", {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 56}),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    ("qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 16, "attention_bias": True}),
    ("phi3", {"sliding_window": 24}),
    (
        "phi3",
        {
            "num_attention_heads": 6,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
        },
    ),
    ("gemma", {"head_dim": 16}),
    ("gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 30}),
    ("gemma2", {"head_dim": 12, "sliding_window": 200, "attn_logit_softcapping": 2.0}),
    ("gemma3_text", {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7}),
    (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 20,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    (
        "granite",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 7.0,
            "logits_scaling": 3.0,
            "residual_multiplier": 0.4,
        },
    ),
    ("olmo2", {}),
    ("smollm3", {"num_hidden_layers": 5}),
    ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    ("mixtral", {"num_local_experts": 4, "sliding_window": 12}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    (
        "qwen2_moe",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 32,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 12}),
    ("qwen3_moe", {**EXPERTS, "decoder_sparse_step": 2, "head_dim": 12}),
    ("mistral", {**ODD, "sliding_window": 200}),
    ("mixtral", {**ODD, "num_local_experts": 4, "sliding_window": 200}),
    ("qwen2", ODD),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 200, "max_window_layers": 1}),
    ("qwen2_moe", {**ODD, **EXPERTS, "shared_expert_intermediate_size": 32}),
    ("qwen3", ODD),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 200, "max_window_layers": 2}),
    ("qwen3_moe", {**ODD, **EXPERTS, "norm_topk_prob": True}),
    ("phi3", {**ODD, "sliding_window": 200}),
    ("gemma", ODD),
    ("gemma3_text", {**ODD, "num_hidden_layers": 6, "sliding_window": 200}),
    ("granite", ODD),
    ("olmo2", ODD),
    ("smollm3", {**ODD, "num_hidden_layers": 4}),
    ("gpt_oss", {**GPT_OSS, "sliding_window": 8}),
    (
        "gpt_oss",
        {**GPT_OSS, "sliding_window": 200, "num_attention_heads": 7, "num_key_value_heads": 1},
    ),
)


def variant_ids(variants: tuple[tuple[str, dict[str, Any]], ...]) -> list[str]:
    return [f"{model_type}-{'-'.join(options) or 'plain'}" for model_type, options in variants]


def write_family_folder(folder: Path, model_type: str, **options: Any) -> PreTrainedModel:
    """A random model of that family, spread widely enough that a wrong mask or turn shows."""
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCAB_SIZE,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        **SHAPE,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **options,
    }
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[model_type](**values), attn_implementation="eager"
    )
    model.requires_grad_(False)
    for weight in model.parameters():
        noise = torch.randn(weight.shape)
        if weight.ndim == 1:
            weight.copy_(0.1 * noise if weight.abs().max() == 0 else 1 + 0.1 * noise)
        else:
            weight.copy_(noise * 1.5 * weight.shape[-1] ** -0.5)
    model.eval()
    model.save_pretrained(folder)
    return model

"""Every family's folders say what transformers says, however the work is cut up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.families import FAMILIES
from octavo.engine.models.decoder import build_model
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobControl
from tests.support.family_gguf import write_family_gguf
from tests.support.tiny_decoders import PagedForward, make_sequence, tiny_plan, transformers_logits

VOCAB_SIZE = 160
CUTS = ((0, 37), (37, 38), (38, 90), (90, 91), (91, 92), (92, 100))
"""A prefill in chunks, then decodes."""
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
)


def write_folder(folder: Path, model_type: str, **options: Any) -> PreTrainedModel:
    """A random model of that family, spread widely enough that a wrong mask or turn shows."""
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
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


def test_every_family_is_tested() -> None:
    assert {model_type for model_type, _ in VARIANTS} == {item.model_type for item in FAMILIES}


def ids(variants: tuple[tuple[str, dict[str, Any]], ...]) -> list[str]:
    return [f"{model_type}-{'-'.join(options) or 'plain'}" for model_type, options in variants]


def assert_same_logits(path: Path, twin: PreTrainedModel) -> None:
    header = read_checkpoint(path)
    config = read_model_config(header)
    plan = tiny_plan(max_model_len=128)
    model = build_model(config, plan)
    load_weights(model, header, config, JobControl())
    token_ids = torch.randint(0, VOCAB_SIZE, (100,)).tolist()
    expected = transformers_logits(twin, token_ids)
    forward = PagedForward(model, config, plan)
    sequence = make_sequence(0, token_ids)
    for start, end in CUTS:
        actual = forward.step([(sequence, start, end - start)])[0]
        error = (actual - expected[start:end]).abs().max() / expected.abs().max()
        assert error <= 1e-4, f"tokens {start} to {end}"


@pytest.mark.parametrize(("model_type", "options"), VARIANTS, ids=ids(VARIANTS))
def test_folders(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    twin = write_folder(tmp_path, model_type, **options)
    assert_same_logits(tmp_path, twin)


# GGUF has no keys for these.
NOT_IN_GGUF = ("max_window_layers", "mlp_only", "decoder_sparse")
GGUF_VARIANTS = tuple(
    (model_type, options)
    for (model_type, options), name in zip(VARIANTS, ids(VARIANTS), strict=True)
    if not any(words in name for words in NOT_IN_GGUF)
)


@pytest.mark.parametrize(("model_type", "options"), GGUF_VARIANTS, ids=ids(GGUF_VARIANTS))
def test_gguf(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    twin = write_folder(tmp_path, model_type, **options)
    write_family_gguf(tmp_path / "tiny.gguf", twin)
    assert_same_logits(tmp_path / "tiny.gguf", twin)

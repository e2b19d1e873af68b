"""Every family's folders say what transformers says, however the work is cut up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from octavo.checkpoint.gguf import GGMLType, read_gguf_header
from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.families import FAMILIES, Family
from octavo.engine.models.decoder import build_model
from octavo.engine.weights.load import load_weights
from octavo.jobs import JobControl
from tests.support.family_folders import (
    GPT_OSS,
    SHAPE,
    VARIANTS,
    VOCAB_SIZE,
    variant_ids,
    write_family_folder,
)
from tests.support.family_gguf import round_to_blocks, write_family_gguf
from tests.support.tiny_decoders import PagedForward, make_sequence, tiny_plan, transformers_logits

NUM_TOKENS = 100
CUTS = ((0, 37), (37, 38), (38, 90), (90, 91), (91, 92), (92, 100))
"""A prefill in chunks, then decodes."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_family_is_tested_in_every_shape(family: Family) -> None:
    variants = [options for model_type, options in VARIANTS if model_type == family.model_type]
    has_odd_ratio = has_odd_head = False
    for options in variants:
        shape = {**SHAPE, **options}
        num_heads, width = shape["num_attention_heads"], shape["hidden_size"]
        has_odd_ratio |= num_heads // shape["num_key_value_heads"] % 2 == 1
        has_odd_head |= shape.get("head_dim", width // num_heads) * num_heads != width
    assert has_odd_ratio
    assert has_odd_head
    if family.windows != "none":
        windows = [options.get("sliding_window") or NUM_TOKENS for options in variants]
        assert min(windows) < NUM_TOKENS < max(windows)


def assert_same_logits(path: Path, twin: PreTrainedModel) -> None:
    header = read_checkpoint(path)
    config = read_model_config(header)
    plan = tiny_plan(max_model_len=128)
    model = build_model(config, plan)
    load_weights(model, header, config, JobControl())
    token_ids = torch.randint(0, VOCAB_SIZE, (NUM_TOKENS,)).tolist()
    expected = transformers_logits(twin, token_ids)
    forward = PagedForward(model, config, plan)
    sequence = make_sequence(0, token_ids)
    for start, end in CUTS:
        actual = forward.step([(sequence, start, end - start)])[0]
        error = (actual - expected[start:end]).abs().max() / expected.abs().max()
        assert error <= 1e-4, f"tokens {start} to {end}"


@pytest.mark.parametrize(("model_type", "options"), VARIANTS, ids=variant_ids(VARIANTS))
def test_folders(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    twin = write_family_folder(tmp_path, model_type, **options)
    assert_same_logits(tmp_path, twin)


# GGUF has no keys for these.
NOT_IN_GGUF = ("max_window_layers", "mlp_only", "decoder_sparse")
GGUF_VARIANTS = tuple(
    (model_type, options)
    for (model_type, options), name in zip(VARIANTS, variant_ids(VARIANTS), strict=True)
    if not any(words in name for words in NOT_IN_GGUF)
)


@pytest.mark.parametrize(("model_type", "options"), GGUF_VARIANTS, ids=variant_ids(GGUF_VARIANTS))
def test_gguf(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    twin = write_family_folder(tmp_path, model_type, **options)
    write_family_gguf(tmp_path / "tiny.gguf", twin)
    assert_same_logits(tmp_path / "tiny.gguf", twin)


WHOLE_BLOCKS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "head_dim": 16,
}
MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
BLOCK_VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = tuple(
    (
        family.model_type,
        {
            **WHOLE_BLOCKS,
            **(GPT_OSS if family.has_sinks else {}),
            **(MOE if family.experts == "qwen" else {}),
            **({"shared_expert_intermediate_size": 32} if family.has_shared_expert else {}),
            **({"norm_topk_prob": True} if family.model_type == "qwen3_moe" else {}),
        },
    )
    for family in FAMILIES
)


@pytest.mark.parametrize(
    ("model_type", "options"), BLOCK_VARIANTS, ids=[name for name, _ in BLOCK_VARIANTS]
)
def test_gguf_in_blocks(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    twin = write_family_folder(tmp_path, model_type, **options)
    path = tmp_path / "tiny.gguf"
    write_family_gguf(path, twin, quantizes=True)
    round_to_blocks(twin)
    types = {tensor.ggml_type for tensor in read_gguf_header(path).tensors.values()}
    assert GGMLType.Q8_0 in types
    assert_same_logits(path, twin)

"""The decoder equals transformers' Llama on the same weights, however the work is cut up."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.checkpoint.gguf import read_gguf_header
from octavo.engine.model_config import ModelConfig, RopeConfig
from octavo.engine.model_config_gguf import model_config_from_gguf
from octavo.engine.models.decoder import build_model
from octavo.engine.weights.load import load_weights
from octavo.errors import InsufficientMemoryError
from octavo.jobs import JobControl
from tests.support.gguf_files import RopeScaling, TinyLlama
from tests.support.tiny_decoders import (
    PagedForward,
    make_sequence,
    random_model,
    random_tokens,
    tiny_config,
    tiny_plan,
    transformers_logits,
    transformers_twin,
)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max()
    assert (actual - expected).abs().max() <= 1e-4 * scale


def compare_everywhere(config: ModelConfig, block_size: int = 4, **options: Any) -> None:
    """A prefill in chunks, then decodes, against one uncached pass."""
    plan = tiny_plan(block_size=block_size, num_kv_blocks=-(-120 // block_size) + 2)
    model = random_model(config, plan)
    if model.model.rotary_emb.freq_factors is not None:
        model.model.rotary_emb.freq_factors.fill_(1.0)
    token_ids = random_tokens(100, seed=3)
    expected = transformers_logits(transformers_twin(model, config, **options), token_ids)
    forward = PagedForward(model, config, plan)
    sequence = make_sequence(0, token_ids)
    for start, end in ((0, 37), (37, 38), (38, 90), (90, 91), (91, 92), (92, 100)):
        actual = forward.step([(sequence, start, end - start)])[0]
        assert_same(actual, expected[start:end])


def rope_options(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(6, 2, 8), (4, 4, 12), (8, 1, 16), (3, 3, 6), (12, 4, 10)],
)
def test_shapes(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    compare_everywhere(
        tiny_config(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim),
        **rope_options(rope_type="default"),
    )


@pytest.mark.parametrize("block_size", [1, 3, 16, 128])
def test_block_sizes(block_size: int) -> None:
    compare_everywhere(tiny_config(), block_size, **rope_options(rope_type="default"))


def test_untied() -> None:
    compare_everywhere(tiny_config(tie_word_embeddings=False), **rope_options(rope_type="default"))


def test_attention_bias() -> None:
    compare_everywhere(
        tiny_config(attention_bias=True, attention_output_bias=True),
        attention_bias=True,
        **rope_options(rope_type="default"),
    )


def test_linear_rope() -> None:
    rope = RopeConfig(rotary_dim=8, scaling="linear", factor=4.0)
    compare_everywhere(tiny_config(rope=rope), **rope_options(rope_type="linear", factor=4.0))


def test_llama3_rope() -> None:
    rope = RopeConfig(
        rotary_dim=8,
        scaling="llama3",
        factor=8.0,
        original_max_position=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    options = rope_options(
        rope_type="llama3",
        factor=8.0,
        original_max_position_embeddings=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    compare_everywhere(tiny_config(rope=rope), **options)


def test_yarn_rope() -> None:
    rope = RopeConfig(
        rotary_dim=8,
        scaling="yarn",
        factor=4.0,
        original_max_position=64,
        attn_factor=0.1 * 1.3862943611198906 + 1.0,
    )
    options = rope_options(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    compare_everywhere(tiny_config(rope=rope), **options)


def test_factors_of_one_change_nothing() -> None:
    rope = RopeConfig(rotary_dim=8, scaling="factors")
    compare_everywhere(tiny_config(rope=rope), **rope_options(rope_type="default"))


def test_mixed_batch_equals_each_alone() -> None:
    config, plan = tiny_config(), tiny_plan(num_kv_blocks=128)
    model = random_model(config, plan)
    twin = transformers_twin(model, config, **rope_options(rope_type="default"))
    prompts = {index: random_tokens(length, index) for index, length in enumerate((50, 9, 71, 30))}
    expected = {index: transformers_logits(twin, prompt) for index, prompt in prompts.items()}
    forward = PagedForward(model, config, plan)
    sequences = {index: make_sequence(index, prompt) for index, prompt in prompts.items()}
    # Per step: which sequence computes which range; decodes of unequal length beside prefills.
    steps = [
        {0: (0, 20), 1: (0, 7)},
        {0: (20, 21), 1: (7, 8), 2: (0, 40)},
        {2: (40, 60), 0: (21, 22), 3: (0, 29)},
        {3: (29, 30), 1: (8, 9), 0: (22, 23), 2: (60, 61)},
        {0: (23, 50), 2: (61, 71)},
    ]
    for step in steps:
        work = [(sequences[i], start, end - start) for i, (start, end) in step.items()]
        actual = forward.step(work)
        for index, (start, end) in step.items():
            assert_same(actual[index], expected[index][start:end])


def test_a_gguf_file_with_frequency_factors(tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", factor=8.0)
    tiny = TinyLlama(rope_scaling=scaling, num_heads=8, num_kv_heads=2, tie_embeddings=False)
    header = read_gguf_header(tiny.write(tmp_path / "tiny.gguf"))
    config = model_config_from_gguf(header)
    assert config.rope.scaling == "factors"
    plan = tiny_plan()
    model = build_model(config, plan)
    load_weights(model, header, config, JobControl())
    options = rope_options(
        rope_type="llama3",
        factor=8.0,
        original_max_position_embeddings=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    token_ids = random_tokens(100, seed=1)
    twin = transformers_twin(model, config, **options)
    expected = transformers_logits(twin, token_ids)
    sequence = make_sequence(0, token_ids)
    assert_same(PagedForward(model, config, plan).step([(sequence, 0, 100)])[0], expected)


def test_parameter_names_are_those_of_checkpoints() -> None:
    config = tiny_config(tie_word_embeddings=False, num_layers=1)
    model = build_model(config, tiny_plan())
    twin = transformers_twin(model, config)
    assert dict(model.named_parameters()).keys() == dict(twin.named_parameters()).keys()
    tied = build_model(tiny_config(num_layers=1), tiny_plan())
    assert "lm_head.weight" not in dict(tied.named_parameters())


def test_impossible_allocation_is_a_sentence() -> None:
    with pytest.raises(InsufficientMemoryError, match="could not be allocated"):
        build_model(tiny_config(vocab_size=1 << 50), tiny_plan())

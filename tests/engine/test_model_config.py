import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.checkpoint.gguf import GGMLType, read_gguf_header
from octavo.engine.model_config import ModelConfig, RopeConfig, StoredSizes
from octavo.engine.model_config_gguf import model_config_from_gguf
from octavo.errors import CheckpointError, OctavoError, UnsupportedModelError
from tests.support.gguf_files import RopeScaling, TinyLlama, random_blocks, write_gguf


def config_of(tmp_path: Path, model: TinyLlama) -> ModelConfig:
    return model_config_from_gguf(read_gguf_header(model.write(tmp_path / "tiny.gguf")))


def config_with(tmp_path: Path, **changes: Any) -> ModelConfig:
    """The tiny llama's configuration with some metadata changed, or removed where None.

    A keyword `rope__scaling__type` is the key `llama.rope.scaling.type`.
    """
    model = TinyLlama()
    metadata = model.metadata()
    for name, value in changes.items():
        key = "llama." + name.replace("__", ".")
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
    path = write_gguf(tmp_path / "tiny.gguf", metadata, model.tensors())
    return model_config_from_gguf(read_gguf_header(path))


def test_numbers_of_a_llama(tmp_path: Path) -> None:
    model = TinyLlama(ggml_type=GGMLType.Q8_0)
    matrices = [weight.size for weight in model.weights().values() if weight.ndim == 2]
    vectors = [weight.size for weight in model.weights().values() if weight.ndim == 1]
    assert config_of(tmp_path, model) == ModelConfig(
        architecture="llama",
        name="Tiny Llama",
        num_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=309,
        max_position_embeddings=256,
        rms_norm_eps=float(np.float32(1e-5)),
        rope=RopeConfig(rotary_dim=16, theta=10000.0),
        tie_word_embeddings=True,
        num_parameters=sum(weight.size for weight in model.weights().values()),
        checkpoint_bytes=sum(array.nbytes for _, array in model.tensors().values()),
        quantization="Q8_0",
        stored=StoredSizes(
            quantized_elements=sum(matrices),
            quantized_bytes=sum(matrices) // 32 * 34,
            vector_elements=sum(vectors),
        ),
        matrix_types=frozenset({GGMLType.Q8_0}),
    )


@pytest.mark.starter
def test_numbers_of_the_starter_model(starter_model: Path) -> None:
    config = model_config_from_gguf(read_gguf_header(starter_model))
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_position_embeddings) == (49152, 8192)
    assert config.rope == RopeConfig(rotary_dim=64, theta=100_000.0)
    assert config.num_parameters == 134_515_008
    assert config.quantization == "Q4_1"


def test_bytes_of_the_kv_cache(tmp_path: Path) -> None:
    assert config_of(tmp_path, TinyLlama()).kv_bytes_per_token(4) == 2 * 2 * 2 * 16 * 4


def test_head_dim_may_differ_from_width_by_heads(tmp_path: Path) -> None:
    config = config_of(tmp_path, TinyLlama(head_dim=32))
    assert (config.head_dim, config.rope.rotary_dim) == (32, 32)


def test_untied_output_is_seen(tmp_path: Path) -> None:
    assert not config_of(tmp_path, TinyLlama(tie_embeddings=False)).tie_word_embeddings


def test_biases_are_seen(tmp_path: Path) -> None:
    config = config_of(tmp_path, TinyLlama(attention_bias=True))
    assert (config.attention_bias, config.attention_output_bias) == (True, True)
    config = config_of(tmp_path, TinyLlama())
    assert (config.attention_bias, config.attention_output_bias) == (False, False)


def test_defaults_where_keys_may_be_absent(tmp_path: Path) -> None:
    config = config_with(
        tmp_path, attention__head_count_kv=None, rope__dimension_count=None, rope__freq_base=None
    )
    assert config.num_kv_heads == config.num_heads
    assert config.rope == RopeConfig(rotary_dim=16, theta=10000.0)


def test_model_without_a_name_is_named_after_the_file(tmp_path: Path) -> None:
    assert config_of(tmp_path, TinyLlama(name=" ")).name == "tiny"


@pytest.mark.parametrize("value", [[2, 2], 2])
def test_a_list_of_equal_numbers_is_one_number(tmp_path: Path, value: Any) -> None:
    assert config_with(tmp_path, attention__head_count_kv=value).num_kv_heads == 2


def test_linear_scaling(tmp_path: Path) -> None:
    model = TinyLlama(rope_scaling=RopeScaling("linear", factor=2.0, original_context_length=None))
    assert config_of(tmp_path, model).rope == RopeConfig(16, scaling="linear", factor=2.0)


@pytest.mark.parametrize("key", ["rope__scaling__factor", "rope__scale_linear"])
def test_a_factor_without_a_type_is_linear(tmp_path: Path, key: str) -> None:
    rope = config_with(tmp_path, **{key: 4.0}).rope
    assert (rope.scaling, rope.factor) == ("linear", 4.0)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_a_factor_that_changes_nothing_is_none(tmp_path: Path, factor: float) -> None:
    assert config_with(tmp_path, rope__scaling__factor=factor).rope == RopeConfig(16)


def test_scaling_none_ignores_the_factor(tmp_path: Path) -> None:
    changes = {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}
    assert config_with(tmp_path, **changes).rope == RopeConfig(16)


def test_yarn_scaling(tmp_path: Path) -> None:
    model = TinyLlama(rope_scaling=RopeScaling("yarn", factor=4.0, attn_factor=0.5))
    rope = config_of(tmp_path, model).rope
    assert (rope.scaling, rope.factor, rope.original_max_position) == ("yarn", 4.0, 64)
    assert (rope.beta_fast, rope.beta_slow) == (32.0, 1.0)
    assert rope.attn_factor == pytest.approx(0.5 * (0.1 * math.log(4.0) + 1.0))


def test_yarn_log_multiplier_lessens_the_magnitude(tmp_path: Path) -> None:
    rope = config_with(
        tmp_path,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__yarn_log_multiplier=1.0,
    ).rope
    assert rope.attn_factor == pytest.approx(1.0)
    assert rope.original_max_position == 256


def test_llama_3_scaling_is_a_tensor_of_factors(tmp_path: Path) -> None:
    rope = config_of(tmp_path, TinyLlama(rope_scaling=RopeScaling("llama3"))).rope
    assert rope == RopeConfig(rotary_dim=16, scaling="factors")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"block_count": None}, r"does not say its llama\.block_count"),
        ({"attention__layer_norm_rms_epsilon": None}, "rms_epsilon"),
        ({"block_count": 0}, "is 0; it must be from 1"),
        ({"block_count": 100_000}, "is 100,000"),
        ({"block_count": "two"}, "'two', not a whole number"),
        ({"block_count": True}, "True, not a whole number"),
        ({"context_length": 0}, "context_length"),
        ({"embedding_length": 128}, r"shape \[309, 64\]"),
        ({"attention__head_count": 3}, "3 query heads cannot share 2"),
        ({"attention__head_count": 6}, "64 cannot be divided among 6 heads"),
        ({"attention__key_length": 15, "attention__value_length": 15}, "odd size 15"),
        ({"rope__dimension_count": 32}, "rope.dimension_count is 32"),
        ({"rope__dimension_count": 15}, "rope.dimension_count is 15"),
        ({"rope__freq_base": -1.0}, "out of range"),
        ({"rope__freq_base": math.nan}, "out of range"),
        ({"rope__freq_base": math.inf}, "out of range"),
        ({"rope__freq_base": "x" * 10_000}, "out of range"),
        ({"attention__layer_norm_rms_epsilon": 1.0}, "out of range"),
        ({"rope__scaling__factor": -4.0}, "out of range"),
    ],
)
def test_impossible_numbers_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        config_with(tmp_path, **changes)
    assert "tiny.gguf" in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"expert_count": 8}, "experts whose matrices are not stacked"),
        ({"attention__head_count_kv": [2, 4]}, "different llama.attention.head_count_kv"),
        ({"attention__value_length": 32}, "keys of 16 and values of 32"),
        ({"rope__scaling__type": "longrope"}, "'longrope'"),
    ],
)
def test_variants_that_are_not_run_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=problem) as caught:
        config_with(tmp_path, **changes)
    assert caught.value.hint


def test_factors_with_another_scaling_are_refused(tmp_path: Path) -> None:
    model = TinyLlama(rope_scaling=RopeScaling("llama3"))
    metadata = {**model.metadata(), "llama.rope.scaling.type": "yarn"}
    path = write_gguf(tmp_path / "tiny.gguf", metadata, model.tensors())
    with pytest.raises(UnsupportedModelError, match="together with"):
        model_config_from_gguf(read_gguf_header(path))


def test_factors_of_the_wrong_number_are_refused(tmp_path: Path) -> None:
    model = TinyLlama()
    factors = np.ones(16, dtype=np.float32)
    tensors = {**model.tensors(), "rope_freqs.weight": (GGMLType.F32, factors)}
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    with pytest.raises(CheckpointError, match="need 8 factors"):
        model_config_from_gguf(read_gguf_header(path))


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [("qwen9", "architecture 'qwen9'"), ("clip", "vision part"), ("x" * 9999, "architecture 'xx")],
)
def test_other_architectures_are_refused_with_what_runs(
    tmp_path: Path, architecture: str, problem: str
) -> None:
    path = write_gguf(tmp_path / "other.gguf", {}, {}, architecture=architecture)
    with pytest.raises(UnsupportedModelError, match=problem) as caught:
        model_config_from_gguf(read_gguf_header(path))
    assert "Llama" in caught.value.hint
    assert len(caught.value.message) < 300


def test_storage_type_that_cannot_be_unpacked_is_refused_before_loading(tmp_path: Path) -> None:
    model = TinyLlama()
    blocks = random_blocks(GGMLType.Q8_1, 512)
    tensors = {**model.tensors(), "blk.0.ffn_up.weight": (GGMLType.Q8_1, blocks)}
    path = write_gguf(tmp_path / "tiny.gguf", model.metadata(), tensors)
    with pytest.raises(UnsupportedModelError, match=r"'blk\.0\.ffn_up\.weight'.*Q8_1") as caught:
        model_config_from_gguf(read_gguf_header(path))
    assert "Q4_K_M" in caught.value.hint


def test_adapters_and_files_without_weights_are_refused(tmp_path: Path) -> None:
    metadata = TinyLlama().metadata()
    path = write_gguf(tmp_path / "vocab.gguf", metadata, {})
    with pytest.raises(CheckpointError, match="holds no complete model"):
        model_config_from_gguf(read_gguf_header(path))
    path = write_gguf(tmp_path / "lora.gguf", {**metadata, "general.type": "adapter"}, {})
    with pytest.raises(UnsupportedModelError, match="adapter"):
        model_config_from_gguf(read_gguf_header(path))


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    model = TinyLlama()
    metadata = TinyLlama(extra_vocab=1).metadata()
    path = write_gguf(tmp_path / "tiny.gguf", metadata, model.tensors())
    with pytest.raises(OctavoError, match="310 tokens, but its embedding has 309 rows"):
        model_config_from_gguf(read_gguf_header(path))

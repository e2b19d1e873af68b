"""What becomes of each weight, from headers alone."""

from pathlib import Path

import pytest

from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.header import read_checkpoint
from octavo.errors import UnsupportedModelError
from octavo.quantize.methods import METHODS, find_method
from octavo.quantize.plan import QuantizePlan, plan_output
from octavo.quantize.recipe import estimate
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_folders import change_json, write_model_folder


def encodings(path: Path, method: str) -> dict[str, str]:
    plan = plan_output(read_checkpoint(path), find_method(method))
    return {weight.name: weight.encoding for weight in plan.weights}


def plan_of(path: Path, method: str) -> QuantizePlan:
    return plan_output(read_checkpoint(path), find_method(method))


def test_rows_get_the_largest_groups_that_divide_them(tmp_path: Path) -> None:
    write_model_folder(
        tmp_path / "m", hidden_size=64, intermediate_size=224, num_attention_heads=4, head_dim=32
    )
    plan = plan_of(tmp_path / "m", "int4-g128")
    sizes = {weight.name.partition("layers.0.")[2]: weight.group_size for weight in plan.weights}
    assert sizes["self_attn.q_proj.weight"] == 64
    assert sizes["self_attn.o_proj.weight"] == 128
    assert sizes["mlp.down_proj.weight"] == 32
    assert sizes["input_layernorm.weight"] == 0
    assert plan.unquantized_modules == ["lm_head"]
    assert plan.remarks == [
        "10 of 14 matrices have groups of 64 weights: 128 does not divide their width.",
        "2 of 14 matrices have groups of 32 weights: 128 does not divide their width.",
    ]
    assert plan_of(tmp_path / "m", "int4-g32").remarks == []


def test_folder_keeps_what_no_group_divides(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "m", hidden_size=64, intermediate_size=80, num_attention_heads=4)
    found = encodings(tmp_path / "m", "int4-g64")
    layer = "model.layers.0."
    assert found[layer + "self_attn.q_proj.weight"] == "int4"
    # Its rows are 80 long.
    assert found[layer + "mlp.down_proj.weight"] == "f16"
    assert found[layer + "input_layernorm.weight"] == "f16"
    assert found["model.embed_tokens.weight"] == "f16"
    plan = plan_of(tmp_path / "m", "int4-g64")
    assert plan.unquantized_modules == [
        "lm_head",
        *(f"model.layers.{layer}.mlp.down_proj" for layer in range(2)),
    ]
    assert plan.remarks == [
        "2 of 14 matrices stay in 16 bits (20.0 KiB): 32 does not divide their width."
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_gives_the_output_eight_bits(tmp_path: Path, tied: bool) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", tie_embeddings=tied)
    found = encodings(path, "q4_0")
    assert found["token_embd.weight"] == ("q8_0" if tied else "q4_0")
    assert found.get("output.weight") == (None if tied else "q8_0")
    assert found["blk.0.attn_q.weight"] == "q4_0"
    assert found["blk.0.attn_norm.weight"] == "f32"


def test_gguf_keeps_what_does_not_divide(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", intermediate_size=80)
    assert encodings(path, "q8_0")["blk.0.ffn_down.weight"] == "f16"
    assert "2 of 15 matrices stay in 16 bits" in plan_of(path, "q8_0").remarks[0]


def test_source_in_bfloat16_stays_so(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", ggml_type=GGMLType.BF16)
    assert encodings(path, "int4-g32")["model.norm.weight"] == "bf16"


def test_estimate_grows_with_bits_and_scales(tmp_path: Path) -> None:
    path = write_tiny_llama(
        tmp_path / "m.gguf", hidden_size=128, num_heads=8, intermediate_size=256
    )
    header = read_checkpoint(path)
    size = {method.id: estimate(header, method).num_bytes for method in METHODS}
    assert size["int4-g128"] < size["int4-g64"] < size["int4-g32"] < size["int8"]
    assert size["q4_0"] < size["q8_0"] < header.tensor_bytes


def test_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "m", hidden_size=64, num_attention_heads=4, attention_bias=True)
    # Says that it has no biases, though it brings them.
    change_json(tmp_path / "m" / "config.json", attention_bias=False)
    with pytest.raises(UnsupportedModelError, match=r"_proj\.bias"):
        plan_output(read_checkpoint(tmp_path / "m"), find_method("q8_0"))

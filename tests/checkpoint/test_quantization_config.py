from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoint.quantization_config import read_weight_format
from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.checkpoint.stored_weights import stored_weights
from octavo.checkpoint.weight_format import Layout, LinearFormat, WeightFormat
from octavo.errors import UnsupportedModelError
from tests.support.quantized_folders import compressed_config

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GROUPS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def read(section: Any, key: str = "quantization_config") -> WeightFormat:
    weight_format = read_weight_format({key: section}, "tiny")
    assert weight_format is not None
    return weight_format


def default(section: Any) -> LinearFormat:
    linear = read(section).default
    assert linear is not None
    return linear


FLOATS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}


def _with_inputs(activations: Any) -> dict[str, Any]:
    section = compressed_config("float-quantized", **FLOATS)
    section["config_groups"]["group_0"]["input_activations"] = activations
    return section


def test_models_without_a_section_are_not_quantised() -> None:
    assert read_weight_format({"quantization_config": None}, "tiny") is None


@pytest.mark.parametrize(
    ("section", "title"),
    [
        (GPTQ, "GPTQ 4-bit g128"),
        ({**GPTQ, "group_size": -1, "bits": 8}, "GPTQ 8-bit"),
        (AWQ, "AWQ 4-bit g128"),
        (BNB, "NF4"),
        ({"load_in_4bit": True}, "FP4"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "INT8"),
        (FP8, "FP8"),
        (compressed_config("pack-quantized", **GROUPS), "INT4 g128"),
    ],
)
def test_titles(section: dict[str, Any], title: str) -> None:
    assert read(section).title == title


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, True),
        ({"quant_method": "fbgemm_fp8"}, True),
        (compressed_config("float-quantized", **FLOATS), False),
        (_with_inputs({"num_bits": 8, "type": "float", "dynamic": True}), True),
        (_with_inputs({"num_bits": 8, "type": "int", "dynamic": True}), False),
        (_with_inputs("dynamic"), False),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, False),
    ],
)
def test_whether_inputs_are_meant_to_be_8_bit_floats(
    section: dict[str, Any], expected: bool
) -> None:
    assert default(section).has_float8_inputs is expected


def test_older_key_of_compressed_tensors() -> None:
    section = compressed_config("pack-quantized", **GROUPS)
    assert read(section, "compression_config").default == default(section)


def test_versions_of_gptq() -> None:
    assert default(GPTQ).stores_zeros_less_one
    assert not default({**GPTQ, "checkpoint_format": "gptq_v2"}).stores_zeros_less_one


def test_rules_of_gptq_go_before_the_default() -> None:
    dynamic = {
        r"-:.*\.down_proj": {},
        r"+:model\.layers\.(0|1)\..*": {"bits": 8, "group_size": 32},
        r".*\.q_proj": {"bits": 2},
    }
    weight_format = read({**GPTQ, "dynamic": dynamic})
    assert weight_format.linear("model.layers.0.mlp.down_proj") is None
    first = weight_format.linear("model.layers.0.self_attn.q_proj")
    second = weight_format.linear("model.layers.2.self_attn.q_proj")
    third = weight_format.linear("model.layers.2.self_attn.k_proj")
    assert first is not None
    assert second is not None
    assert third is not None
    assert [(one.bits, one.group_size) for one in (first, second, third)] == [
        (8, 32),
        (2, 128),
        (4, 128),
    ]


def test_groups_of_compressed_tensors_have_their_targets() -> None:
    section = compressed_config("pack-quantized", **GROUPS)
    weights = {**GROUPS, "num_bits": 8}
    section["config_groups"]["group_1"] = {"targets": ["re:.*down_proj"], "weights": weights}
    weight_format = read(section)
    down = weight_format.linear("model.layers.0.mlp.down_proj")
    up = weight_format.linear("model.layers.0.mlp.up_proj")
    assert down is not None
    assert up is not None
    assert (down.bits, up.bits) == (8, 4)
    assert up.layout is Layout.PACKED_INTEGERS


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (7, "quantization_config is 7"),
        ({}, "an unnamed method"),
        ({"quant_method": "hqq"}, "'hqq'"),
        ({"quant_method": ["gptq"]}, r"\['gptq'\]"),
        ({**GPTQ, "bits": 5}, "gptq with bits 5"),
        ({**GPTQ, "bits": True}, "bits True"),
        ({**GPTQ, "group_size": 0}, "group_size 0"),
        ({**GPTQ, "group_size": 1 << 40}, "group_size 1099511627776"),
        ({**GPTQ, "sym": "yes"}, "sym 'yes'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "is_marlin_format True"),
        ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype 'int64'"),
        ({**GPTQ, "dynamic": {"(": {}}}, r"the pattern '\('"),
        ({**GPTQ, "dynamic": {"(a+)+b": {}}}, "the pattern"),
        ({**GPTQ, "dynamic": {".*" * 8 + "b": {}}}, "the pattern"),
        ({**GPTQ, "dynamic": {"(.|.)" * 30: {}}}, "the pattern"),
        ({**GPTQ, "dynamic": {"a": {"bits": 7}}}, "bits 7"),
        ({**GPTQ, "dynamic": [1]}, "dynamic"),
        ({**GPTQ, "bits": 3, "sym": False, "meta": {"quantizer": ["gptqmodel:2.0"]}},
         "sym False for 3-bit"),
        ({**AWQ, "version": "gemv"}, "version 'gemv'"),
        ({**AWQ, "zero_point": False}, "zero_point False"),
        ({**AWQ, "bits": 8}, "bits 8"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit False"),
        ({**BNB, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type 'int4'"),
        ({**FP8, "fmt": "e5m2fnuz"}, "fmt 'e5m2fnuz'"),
        ({**FP8, "weight_block_size": [128]}, r"weight_block_size \[128\]"),
        ({**FP8, "weight_block_size": [0, 128]}, r"weight_block_size \[0, 128\]"),
        (compressed_config("nvfp4-pack-quantized", **GROUPS), "format 'nvfp4-pack-quantized'"),
        (compressed_config("marlin-24", **GROUPS), "format 'marlin-24'"),
        (compressed_config("pack-quantized", **{**GROUPS, "num_bits": 3}), "num_bits 3"),
        (compressed_config("pack-quantized", **{**GROUPS, "strategy": "token"}),
         "strategy 'token'"),
        (compressed_config("pack-quantized", **{**GROUPS, "type": "float"}), "of type float"),
        ({**compressed_config("pack-quantized", **GROUPS), "quantization_status": "frozen"},
         "quantization_status 'frozen'"),
        ({**compressed_config("pack-quantized", **GROUPS),
          "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({**compressed_config("pack-quantized", **GROUPS),
          "transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "config_groups {}"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(section: Any, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        read(section)
    assert "GGUF" in caught.value.hint


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "model."])
def test_rules_know_a_part_of_a_model_by_the_names_of_its_file(prefix: str) -> None:
    module = "layers.0.mlp.up_proj"
    path = Path("model.safetensors")
    shapes = {
        "qweight": ("I32", (16, 64)),
        "qzeros": ("I32", (1, 16)),
        "scales": ("F16", (1, 64)),
    }
    tensors = {
        f"model.{module}.{role}": SafetensorsTensor(
            f"model.language_model.{module}.{role}", shape, dtype, 0, 0, path
        )
        for role, (dtype, shape) in shapes.items()
    }
    rules = {f"+:{prefix or '.*'}{module}": {"bits": 8, "group_size": 64}}
    weights = stored_weights(tensors, read({**GPTQ, "dynamic": rules}))
    [weight] = weights.values()
    assert weight.parameter == f"model.{module}.weight"
    assert weight.format is not None
    assert (weight.format.bits, weight.format.group_size) == (8, 64)

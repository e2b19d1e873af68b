"""Model folders with quantised weights, loaded whole, say what their unpacked weights say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from octavo.checkpoint.folder import read_folder_header
from octavo.engine.config import EngineConfig
from octavo.engine.device import Device
from octavo.engine.memory import plan_memory
from octavo.engine.model_config_hf import model_config_from_folder
from octavo.errors import UnsupportedModelError
from tests.support.engines import make_engine, request, run_all
from tests.support.model_folders import change_json
from tests.support.quantized_folders import (
    KINDS,
    QuantizedKind,
    kind_named,
    write_quantized_folder,
)

PROMPT = [1, *range(40, 110, 3), *range(300, 420, 5)]
NUM_TOKENS = 4
CPU = Device("cpu", 0, "test CPU", 1 << 34, 1 << 34)
WHOLE_ENGINE = (
    "ct int4 group",
    "ct int8 group",
    "ct int4 zero points",
    "ct int4 g_idx",
    "ct int-quantized channel",
    "ct float-quantized channel",
    "gptq 4 bit v1",
    "gptq 3 bit v2 asym",
    "gptq 4 bit v2 desc_act asym",
    "awq",
    "bnb nf4 nested",
    "bnb fp4",
    "bnb int8",
    "fp8 blocks",
    "fp8 tensor",
    "fbgemm fp8",
)


def assert_same_as(folder: Path, twin: LlamaForCausalLM) -> None:
    """Log probabilities of the prompt and the greedy continuation."""
    wanted = {"prompt_logprobs": 1, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    result = run_all(make_engine(folder), [request("one", PROMPT, **wanted)])[("one", 0)]
    token_ids = list(PROMPT)
    with torch.inference_mode():
        expected = twin(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
        for _ in range(NUM_TOKENS):
            token_ids.append(int(twin(torch.tensor([token_ids])).logits[0, -1].argmax()))
    assert result.token_ids == token_ids[len(PROMPT) :]
    for entry, row, token_id in zip(result.prompt_logprobs[1:], expected, PROMPT[1:], strict=False):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(row[token_id]), abs=2e-4)


@pytest.mark.parametrize("name", WHOLE_ENGINE)
def test_folder_says_what_its_unpacked_weights_say(tmp_path: Path, name: str) -> None:
    twin = write_quantized_folder(tmp_path, kind_named(name))
    assert_same_as(tmp_path, twin)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_header_names_the_format_and_counts_values(tmp_path: Path, kind: QuantizedKind) -> None:
    twin = write_quantized_folder(tmp_path, kind)
    header = read_folder_header(tmp_path)
    assert header.quantization == kind.title
    assert header.num_parameters == sum(weight.numel() for weight in twin.parameters())
    config = model_config_from_folder(header)
    assert config.quantization == kind.title
    assert config.checkpoint_bytes < config.num_parameters * 4
    plan = plan_memory(config, EngineConfig(dtype="bfloat16"), CPU)
    assert plan.items[0].num_bytes == config.num_parameters * 2


def test_lm_head_and_embedding_may_be_quantized(tmp_path: Path) -> None:
    kind = kind_named("gptq 4 bit v1")
    twin = write_quantized_folder(tmp_path, kind, left_out=())
    change_json(tmp_path / "config.json", quantization_config={**kind.config, "lm_head": True})
    assert_same_as(tmp_path, twin)


def test_modules_may_stay_as_they_are(tmp_path: Path) -> None:
    kind = kind_named("awq")
    twin = write_quantized_folder(tmp_path, kind, left_out=("lm_head", "q_proj", "1.mlp.up_proj"))
    config = {**kind.config, "modules_to_not_convert": ["q_proj", "lm_head"]}
    change_json(tmp_path / "config.json", quantization_config=config)
    assert_same_as(tmp_path, twin)


def test_biases_of_zeros_are_passed_over_and_others_are_not(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.bias"
    kind = kind_named("gptq 4 bit v1")
    twin = write_quantized_folder(tmp_path, kind, extra={name: torch.zeros(96)})
    assert_same_as(tmp_path, twin)
    write_quantized_folder(tmp_path, kind, extra={name: torch.ones(96)})
    with pytest.raises(UnsupportedModelError, match=f"'{name}', for which this model has no place"):
        make_engine(tmp_path)


def test_scales_of_activations_are_passed_over(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.mlp.up_proj.input_scale": torch.tensor(0.5),
        "model.layers.0.self_attn.k_scale": torch.tensor(0.5),
    }
    twin = write_quantized_folder(tmp_path, kind_named("fp8 tensor"), extra=extra)
    assert_same_as(tmp_path, twin)


@pytest.mark.parametrize(
    ("name", "file", "section"),
    [
        ("gptq 4 bit v1", "quantize_config.json",
         {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "true_sequential": True}),
        ("awq", "quant_config.json",
         {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}),
    ],
)  # fmt: skip
def test_early_writers_say_it_in_a_file_beside(
    tmp_path: Path, name: str, file: str, section: dict[str, Any]
) -> None:
    kind = kind_named(name)
    write_quantized_folder(tmp_path, kind)
    change_json(tmp_path / "config.json", quantization_config=None)
    (tmp_path / file).write_text(json.dumps(section))
    header = read_folder_header(tmp_path)
    assert header.quantization == kind.title
    assert model_config_from_folder(header).weight_format is not None
    make_engine(tmp_path)

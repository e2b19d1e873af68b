"""Experts that a folder stores as one tensor are read as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from octavo.checkpoint.folder import read_folder_header
from octavo.engine.model_config_hf import model_config_from_folder
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.quantization.mxfp4 import MXFP4Rows
from octavo.engine.weights import merged_experts
from octavo.engine.weights.load import load_weights
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.jobs import JobControl
from tests.support.family_folders import EXPERTS, GPT_OSS, write_family_folder
from tests.support.tiny_decoders import PagedForward, make_sequence, tiny_plan, transformers_logits

TOKENS = list(range(3, 40))
FILE = "model.safetensors"
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


def load(folder: Path) -> Decoder:
    header = read_folder_header(folder)
    config = model_config_from_folder(header)
    model = build_model(config, tiny_plan(max_model_len=128))
    load_weights(model, header, config, JobControl())
    return model


def assert_same_logits(folder: Path, twin: PreTrainedModel) -> None:
    config = model_config_from_folder(read_folder_header(folder))
    forward = PagedForward(load(folder), config, tiny_plan(max_model_len=128))
    actual = forward.step([(make_sequence(0, TOKENS), 0, len(TOKENS))])[0]
    expected = transformers_logits(twin, TOKENS)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def change_tensors(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_file(folder / FILE)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)


def write_packed_folder(folder: Path, **options: Any) -> PreTrainedModel:
    """gpt-oss with random blocks and scales; transformers' own unpacking fills the twin."""
    twin = write_family_folder(folder, "gpt_oss", **{**GPT_OSS, "sliding_window": 8, **options})
    generator = torch.Generator().manual_seed(1)
    packed: dict[str, Tensor | None] = {}
    for name, weight in twin.state_dict().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        num_experts, num_inputs, num_outputs = weight.shape
        shape = (num_experts, num_outputs, num_inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(122, 127, shape, generator=generator, dtype=torch.uint8)
        weight.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
        packed |= {name: None, f"{name}_blocks": blocks, f"{name}_scales": scales}
    change_tensors(folder, **packed)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return twin


@pytest.fixture(params=[1 << 22, 1 << 10], ids=["whole", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_experts, "PIECE_BYTES", request.param)


def test_packed_experts(tmp_path: Path, pieces: None) -> None:
    twin = write_packed_folder(tmp_path)
    header = read_folder_header(tmp_path)
    assert header.quantization == "MXFP4"
    assert header.num_parameters == twin.num_parameters()
    assert_same_logits(tmp_path, twin)


def test_unpacked_experts(tmp_path: Path, pieces: None) -> None:
    twin = write_family_folder(tmp_path, "gpt_oss", **GPT_OSS)
    assert_same_logits(tmp_path, twin)
    assert read_folder_header(tmp_path).num_parameters == twin.num_parameters()


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_gate_before_up(tmp_path: Path, pieces: None, model_type: str) -> None:
    """As transformers 5 writes them when it is not asked for the older form."""
    options = {**EXPERTS, "num_local_experts": 5, "norm_topk_prob": True, "head_dim": 12}
    twin = write_family_folder(tmp_path, model_type, **options)
    twin.save_pretrained(tmp_path, save_original_format=False)
    assert any(name.endswith("experts.gate_up_proj") for name in load_file(tmp_path / FILE))
    assert_same_logits(tmp_path, twin)


def test_every_byte_is_unpacked_as_defined() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    scales = torch.tensor([[0, 1, 2, 60, 126, 127, 128, 129, 200, 250, 251, 252, 252, 90, 3, 40]])
    scales = scales.to(torch.uint8)
    expected = convert_moe_packed_tensors(blocks[None], scales[None], dtype=torch.float32)
    assert torch.equal(MXFP4Rows(blocks, scales).unpack(), expected[0].T)


def test_a_scale_that_is_no_number(tmp_path: Path) -> None:
    write_packed_folder(tmp_path)
    scales = load_file(tmp_path / FILE)[f"{GATE_UP}_scales"]
    scales[3, 5, 1] = 255
    change_tensors(tmp_path, **{f"{GATE_UP}_scales": scales})
    with pytest.raises(CheckpointError, match="scale that is NaN") as caught:
        load(tmp_path)
    assert caught.value.tensor == f"{GATE_UP}_scales"


def test_scales_are_missing(tmp_path: Path) -> None:
    write_packed_folder(tmp_path)
    change_tensors(tmp_path, **{f"{GATE_UP}_scales": None})
    with pytest.raises(CheckpointError, match="_scales' that belongs to it") as caught:
        load(tmp_path)
    assert caught.value.tensor == f"{GATE_UP}_blocks"


def test_blocks_are_missing(tmp_path: Path) -> None:
    write_packed_folder(tmp_path)
    change_tensors(tmp_path, **{f"{GATE_UP}_blocks": None})
    with pytest.raises(UnsupportedModelError, match=r"_scales' .* data type U8"):
        load(tmp_path)


def test_another_limit_is_refused(tmp_path: Path) -> None:
    write_family_folder(tmp_path, "gpt_oss", **GPT_OSS, swiglu_limit=5.0)
    with pytest.raises(UnsupportedModelError, match=r"swiglu_limit 5\.0"):
        load(tmp_path)


def test_a_stack_of_the_wrong_shape(tmp_path: Path) -> None:
    write_packed_folder(tmp_path)
    blocks = load_file(tmp_path / FILE)[f"{GATE_UP}_blocks"]
    change_tensors(tmp_path, **{f"{GATE_UP}_blocks": blocks[:, :-2]})
    with pytest.raises(CheckpointError, match="has the shape") as caught:
        load(tmp_path)
    assert caught.value.tensor == f"{GATE_UP}_blocks"

"""Folders of models that also see run as the language model inside them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
)

from octavo.checkpoint import text_part
from octavo.checkpoint.folder import read_folder_header
from octavo.engine.model_config_hf import model_config_from_folder
from octavo.engine.models.decoder import build_model
from octavo.engine.weights.load import load_weights
from octavo.errors import UnsupportedModelError
from octavo.jobs import JobControl
from tests.support.model_folders import change_json
from tests.support.tiny_decoders import PagedForward, make_sequence, tiny_plan, transformers_logits

TOKENS = list(range(3, 50))
TEXT = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": 8,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def make_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "gemma3":
        rope = {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
        text: Any = Gemma3TextConfig(**TEXT, rope_parameters=rope)
        vision = {"model_type": "siglip_vision_model", **VISION}
        model = Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=text, vision_config=vision, image_token_index=4, mm_tokens_per_image=4
            )
        )
    else:
        text = MistralConfig(**TEXT, tie_word_embeddings=False)
        vision = {"model_type": "pixtral", "head_dim": 8, **VISION}
        model = Mistral3ForConditionalGeneration(
            Mistral3Config(
                text_config=text,
                vision_config=vision,
                image_token_index=4,
                tie_word_embeddings=False,
            )
        )
    model.requires_grad_(False)
    for weight in model.parameters():
        noise = torch.randn(weight.shape)
        weight.copy_(noise * (0.1 if weight.ndim == 1 else 1.5 * weight.shape[-1] ** -0.5))
    return model.eval()


def assert_same_logits(folder: Path, twin: PreTrainedModel) -> None:
    header = read_folder_header(folder)
    config = model_config_from_folder(header)
    plan = tiny_plan(max_model_len=128)
    model = build_model(config, plan)
    load_weights(model, header, config, JobControl())
    expected = transformers_logits(twin, TOKENS)
    forward, sequence = PagedForward(model, config, plan), make_sequence(0, TOKENS)
    for start, end in ((0, 30), (30, 46), (46, 47)):
        actual = forward.step([(sequence, start, end - start)])[0]
        assert (actual - expected[start:end]).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("is_original", [True, False], ids=["transformers 4", "transformers 5"])
@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_names_of_both_versions(tmp_path: Path, kind: str, is_original: bool) -> None:
    twin = make_model(kind)
    twin.save_pretrained(tmp_path, save_original_format=is_original)
    names = load_file(tmp_path / "model.safetensors").keys()
    begins = "language_model.model." if is_original else "model.language_model."
    assert any(name.startswith(begins) for name in names)
    assert_same_logits(tmp_path, twin)
    header = read_folder_header(tmp_path)
    num_left = sum("vision_tower" in name or "multi_modal" in name for name in names)
    assert header.left_out.startswith(f"Its vision part ({num_left} tensors, ")
    inner = twin.model.language_model
    assert header.num_parameters == inner.num_parameters() + (
        0 if kind == "gemma3" else twin.lm_head.weight.numel()
    )


def test_a_configuration_as_published(tmp_path: Path) -> None:
    """Gemma 3's says only what differs from the defaults, and scaling as transformers 4 did."""
    twin = make_model("gemma3")
    twin.save_pretrained(tmp_path)
    sparse = {
        **TEXT,
        "model_type": "gemma3_text",
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    content = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "text_config": sparse,
        "vision_config": VISION,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_same_logits(tmp_path, twin)
    header = read_folder_header(tmp_path)
    assert header.architecture == "gemma3_text"
    assert header.config["eos_token_id"] == [1, 106]
    assert header.context_length == 128


@pytest.mark.parametrize(
    ("kind", "config_class"), [("gemma3", Gemma3TextConfig), ("mistral3", MistralConfig)]
)
def test_defaults_are_those_of_transformers(kind: str, config_class: Any) -> None:
    defaults = dict(text_part._KINDS[kind].defaults)
    config = config_class()
    assert defaults == {key: getattr(config, key) for key in defaults}


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    twin = make_model("gemma3")
    twin.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["audio_tower.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"'audio_tower\.weight'"):
        assert_same_logits(tmp_path, twin)


def test_another_language_model_is_refused_by_name(tmp_path: Path) -> None:
    make_model("mistral3").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["model_type"] = "ministral3"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match="'ministral3'"):
        model_config_from_folder(read_folder_header(tmp_path))


def test_another_class_is_refused_by_name(tmp_path: Path) -> None:
    make_model("gemma3").save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", architectures=["Gemma3ForSequenceClassification"])
    with pytest.raises(UnsupportedModelError, match=r"is a \['Gemma3ForSeq"):
        model_config_from_folder(read_folder_header(tmp_path))

"""Every family, from both kinds of file, through the methods: the very weights, the same model."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from octavo.checkpoint.header import read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config, read_tokenizer
from octavo.engine.families import BY_MODEL_TYPE, FAMILIES
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.weights.load import load_weights
from octavo.errors import UnsupportedModelError
from octavo.jobs import JobControl
from octavo.quantize import plan
from octavo.quantize.conversion.gguf_metadata import gguf_metadata
from octavo.quantize.methods import METHODS, QuantizeMethod, find_method
from octavo.quantize.recipe import QuantizeRecipe, default_output
from octavo.quantize.writing import write_model
from tests.quantize.twins import twin
from tests.support.family_folders import (
    LLAMA3,
    LONGROPE,
    variant_ids,
    write_family_folder,
)
from tests.support.family_gguf import write_family_gguf
from tests.support.gguf_files import TinyLlama
from tests.support.tiny_decoders import PagedForward, make_sequence, tiny_plan
from tests.support.tokenizer_kinds import write_family_tokenizer

SHAPE = {"vocab_size": 704, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"rope_parameters": LLAMA3, "mlp_bias": True, "attention_bias": True}),
    ("mistral", {"sliding_window": 16, "head_dim": 24}),
    ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 96}),
    ("qwen3", {"head_dim": 24}),
    ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 24}),
    ("phi3", {"sliding_window": 24}),
    (
        "phi3",
        {
            "num_attention_heads": 16,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
        },
    ),
    ("gemma", {"head_dim": 32}),
    ("gemma2", {"head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 30}),
    (
        "gemma3_text",
        {
            "head_dim": 32,
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
)
TOKENIZERS = {
    "llama": "llama3",
    "mistral": "tekken",
    "mixtral": "llama2",
    "qwen2": "qwen",
    "qwen2_moe": "qwen",
    "qwen3": "qwen",
    "qwen3_moe": "qwen",
    "phi3": "gpt4o",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "granite": "granite",
    "olmo2": "gpt2",
    "smollm3": "llama3",
    "gpt_oss": "gpt4o",
}
GPT_OSS = "gpt_oss"
COPIED = ("llama", "mixtral", "gemma2")
"""Families that are written in their own kind of file in every run; all others take the same way,
and are tested with what is slow."""
TOKEN_IDS = [(37 * place) % 700 for place in range(48)]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about what survives a crash, and waiting for the disk is most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    # Matrices come in several pieces, as large ones do.
    monkeypatch.setattr(plan, "_READ_ELEMENTS", 5000)


def test_every_family_is_tested() -> None:
    tested = {model_type for model_type, _ in VARIANTS} | {GPT_OSS}
    assert tested == {item.model_type for item in FAMILIES}
    assert TOKENIZERS.keys() == {item.model_type for item in FAMILIES}


def source_folder(folder: Path, model_type: str, options: dict[str, Any]) -> PreTrainedModel:
    model = write_family_folder(folder, model_type, **{**SHAPE, **options})
    write_family_tokenizer(folder, TOKENIZERS[model_type])
    return model


def source_gguf(path: Path, model_type: str, options: dict[str, Any]) -> PreTrainedModel:
    model = write_family_folder(path.with_suffix(""), model_type, **{**SHAPE, **options})
    tiny = TinyLlama().write(path.with_suffix(".tokens"))
    tokens = {
        key: value
        for key, value in gguf_metadata(read_checkpoint(tiny)).items()
        if key.startswith("tokenizer.")
    }
    write_family_gguf(path, model, tokens)
    return model


def load(path: Path) -> tuple[Decoder, ModelConfig]:
    header = read_checkpoint(path)
    config = read_model_config(header)
    model = build_model(config, tiny_plan(max_model_len=128))
    load_weights(model, header, config, JobControl())
    return model, config


def weights_of(model: Decoder) -> dict[str, torch.Tensor]:
    """By name, without what a config.json says in numbers."""
    return {
        name: weight.detach()
        for name, weight in model.named_parameters()
        if not name.endswith("_factors")
    }


def logits_of(model: Decoder, config: ModelConfig) -> torch.Tensor:
    forward = PagedForward(model, config, tiny_plan(max_model_len=128))
    return forward.step([(make_sequence(0, TOKEN_IDS), 0, len(TOKEN_IDS))])[0]


def check(source: Path, method: QuantizeMethod, norm_offset: float) -> Path:
    """Writes the model, and compares it with the source whose weights are rounded here."""
    output = default_output(source.parent / "out", source.stem, method)
    write_model(QuantizeRecipe(source, method.id, output), JobControl())
    expected_model, expected_config = load(source)
    found_model, found_config = load(output)
    before, found = weights_of(expected_model), weights_of(found_model)
    assert found.keys() == before.keys()
    norm_shift = expected_config.norm_offset - found_config.norm_offset
    is_gemma_gguf = source.suffix == ".gguf" and norm_offset
    for name, weight in before.items():
        expected = twin(
            name,
            weight,
            method,
            half=torch.bfloat16 if is_gemma_gguf else torch.float16,
            norm_shift=norm_shift,
            names=before,
        )
        assert torch.equal(found[name], expected), name
        weight.copy_(expected - (norm_shift if name.endswith("norm.weight") else 0.0))
    expected_logits = logits_of(expected_model, expected_config)
    error = (logits_of(found_model, found_config) - expected_logits).abs().max()
    assert float(error / expected_logits.abs().max()) < 1e-5
    return output


def run(
    make: Callable[[Path, str, dict[str, Any]], PreTrainedModel],
    source: Path,
    variant: tuple[str, dict[str, Any]],
    method: str,
) -> tuple[Path, PreTrainedModel]:
    model = make(source, *variant)
    return check(source, find_method(method), BY_MODEL_TYPE[variant[0]].norm_offset), model


def is_first(variant: tuple[str, dict[str, Any]]) -> bool:
    return variant[0] in COPIED


ALL = pytest.mark.parametrize("variant", VARIANTS, ids=variant_ids(VARIANTS))
SOME = tuple(filter(is_first, VARIANTS))


@ALL
def test_folder_becomes_gguf(tmp_path: Path, variant: tuple[str, dict[str, Any]]) -> None:
    output, _ = run(source_folder, tmp_path / "Tiny", variant, "q4_0")
    before, after = (read_tokenizer(read_checkpoint(path)) for path in (tmp_path / "Tiny", output))
    assert after.encode("Hello  you\n\n") == before.encode("Hello  you\n\n")


@ALL
def test_gguf_becomes_a_folder(tmp_path: Path, variant: tuple[str, dict[str, Any]]) -> None:
    output, model = run(source_gguf, tmp_path / "Tiny.gguf", variant, "int4-g128")
    assert_same_to_transformers(AutoConfig.from_pretrained(output), model.config)


@pytest.mark.parametrize("variant", SOME, ids=variant_ids(SOME))
def test_kind_of_file_is_kept(tmp_path: Path, variant: tuple[str, dict[str, Any]]) -> None:
    run(source_folder, tmp_path / "Folder", variant, "int4-g64")
    run(source_gguf, tmp_path / "File.gguf", variant, "q4_0")


@pytest.mark.parametrize("make", [source_folder, source_gguf])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
def test_every_method(
    tmp_path: Path,
    method: QuantizeMethod,
    make: Callable[[Path, str, dict[str, Any]], PreTrainedModel],
) -> None:
    source = tmp_path / ("Tiny.gguf" if make is source_gguf else "Tiny")
    run(make, source, ("qwen2", {"num_hidden_layers": 1}), method.id)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
@ALL
def test_every_family_by_every_method(
    tmp_path: Path, variant: tuple[str, dict[str, Any]], method: QuantizeMethod
) -> None:
    run(source_folder, tmp_path / "Folder", variant, method.id)
    run(source_gguf, tmp_path / "File.gguf", variant, method.id)


GPT_OSS_OPTIONS = {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 32}


def test_gpt_oss_stays_a_gguf_file(tmp_path: Path) -> None:
    run(source_gguf, tmp_path / "Tiny.gguf", (GPT_OSS, GPT_OSS_OPTIONS), "q4_0")


@pytest.mark.parametrize(("name", "method"), [("a.gguf", "int8"), ("a", "int8"), ("a", "q8_0")])
def test_gpt_oss_is_refused_where_its_experts_would_stay(
    tmp_path: Path, name: str, method: str
) -> None:
    make = source_gguf if name.endswith(".gguf") else source_folder
    make(tmp_path / name, GPT_OSS, GPT_OSS_OPTIONS)
    recipe = QuantizeRecipe(
        tmp_path / name, method, default_output(tmp_path / "out", "a", find_method(method))
    )
    with pytest.raises(UnsupportedModelError, match="yet") as caught:
        recipe.check()
    assert caught.value.hint


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("method", ["q8_0", "int4-g64"])
def test_experts_that_a_folder_stores_as_one(tmp_path: Path, model_type: str, method: str) -> None:
    """As transformers 5 may: gate and up of all experts in one tensor, down in another."""
    options = next(options for known, options in VARIANTS if known == model_type)
    source_folder(tmp_path / "Tiny", model_type, options)
    tensors = load_file(tmp_path / "Tiny" / "model.safetensors")
    parts = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
    for layer in range(3):
        found = {
            kind: torch.stack([take_expert(tensors, layer, i, names) for i in range(3)])
            for kind, names in parts.items()
        }
        prefix = f"model.layers.{layer}.mlp.experts."
        tensors[prefix + "gate_up_proj"] = torch.cat([found["gate"], found["up"]], dim=1)
        tensors[prefix + "down_proj"] = found["down"]
    save_file(tensors, tmp_path / "Tiny" / "model.safetensors", {"format": "pt"})
    check(tmp_path / "Tiny", find_method(method), norm_offset=0.0)


def take_expert(
    tensors: dict[str, torch.Tensor], layer: int, expert: int, names: tuple[str, str]
) -> torch.Tensor:
    ends = tuple(f"experts.{expert}.{name}.weight" for name in names)
    [found] = [name for name in tensors if f"layers.{layer}." in name and name.endswith(ends)]
    return tensors.pop(found)


def assert_same_to_transformers(found: Any, expected: Any) -> None:
    """What transformers makes of our config.json is the model's own configuration."""
    ours, theirs = found.to_dict(), expected.to_dict()
    for key in theirs.keys() - NOT_OF_THE_MODEL:
        if key != "head_dim" or theirs[key] is not None:
            assert is_same(ours.get(key), theirs[key]), (key, ours.get(key), theirs[key])


def is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(is_same(ours.get(key), value) for key, value in theirs.items())
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(is_same, ours, theirs))
    if isinstance(theirs, float) and isinstance(ours, float | int):
        return math.isclose(ours, theirs, rel_tol=1e-5)
    return bool(ours == theirs)


NOT_OF_THE_MODEL = frozenset(
    {
        "dtype",
        "transformers_version",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "_name_or_path",
        "max_window_layers",
    }
)
"""Of the file, of the tokenizer, or without meaning where no layer has a window."""

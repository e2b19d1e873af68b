"""Model folders, loaded whole, say what transformers says of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from octavo.engine.config import EngineConfig
from octavo.engine.loading import load_engine
from octavo.engine.weights import safetensors as weights_safetensors
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.jobs import JobControl, Progress
from tests.support.engines import make_engine, request, run_all
from tests.support.model_folders import change_json, write_model_folder

PROMPT = [1, *range(40, 110, 3), *range(300, 420, 5)]
NUM_TOKENS = 12


def assert_same_as_transformers(folder: Path, twin: LlamaForCausalLM) -> None:
    """Log probabilities of the prompt and the greedy continuation."""
    wanted = {"prompt_logprobs": 1, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    result = run_all(make_engine(folder), [request("one", PROMPT, **wanted)])[("one", 0)]
    token_ids = list(PROMPT)
    with torch.inference_mode():
        expected = twin(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
        for _ in range(NUM_TOKENS):
            token_ids.append(int(twin(torch.tensor([token_ids])).logits[0, -1].argmax()))
    assert result.token_ids == token_ids[len(PROMPT) :]
    assert result.prompt_logprobs[0] is None
    for position, entry in enumerate(result.prompt_logprobs[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(
            float(expected[position, PROMPT[position + 1]]), abs=1e-4
        )


ROPE = {"rope_theta": 10000.0}
LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_shard_size": "40KB"},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"head_dim": 16, "num_key_value_heads": 6},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": YARN},
        {"rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5}},
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}},
        {"mistral": True, "rms_norm_eps": 1e-3},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "max_shard_size": "40KB", "tie_word_embeddings": True},
    ],
    ids=lambda options: "-".join(map(str, options)) or "plain",
)
def test_logprobs_and_greedy_tokens(tmp_path: Path, options: dict[str, Any]) -> None:
    twin = write_model_folder(tmp_path / "tiny", **options)
    assert_same_as_transformers(tmp_path / "tiny", twin)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
        {"type": "linear", "factor": 4.0},
    ],
    ids=["none", "llama3", "linear"],
)
def test_config_in_the_words_of_transformers_4(
    tmp_path: Path, scaling: dict[str, Any] | None
) -> None:
    rope = dict(scaling or {})
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    twin = write_model_folder(tmp_path, rope_parameters={"rope_theta": 500.0, **rope})
    change_json(
        tmp_path / "config.json",
        rope_parameters=None,
        rope_theta=500.0,
        rope_scaling=scaling,
        head_dim=None,
        tie_word_embeddings=None,
    )
    assert_same_as_transformers(tmp_path, twin)


@pytest.mark.parametrize("piece_bytes", [4, 1000])
def test_weights_are_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(weights_safetensors, "PIECE_BYTES", piece_bytes)
    twin = write_model_folder(tmp_path, num_hidden_layers=1, hidden_size=12)
    assert_same_as_transformers(tmp_path, twin)


def test_missing_key_value_heads_are_as_many_as_heads(tmp_path: Path) -> None:
    twin = write_model_folder(tmp_path, num_key_value_heads=6)
    change_json(tmp_path / "config.json", num_key_value_heads=None)
    assert_same_as_transformers(tmp_path, twin)


def test_claimed_to_be_tied_but_both_matrices_are_there(tmp_path: Path) -> None:
    twin = write_model_folder(tmp_path)
    change_json(tmp_path / "config.json", tie_word_embeddings=True)
    assert_same_as_transformers(tmp_path, twin)


def test_tables_of_early_checkpoints_are_passed_over(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    twin = write_model_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_as_transformers(tmp_path, twin)


def test_progress_counts_the_bytes_of_all_shards(tmp_path: Path) -> None:
    write_model_folder(tmp_path, max_shard_size="40KB")
    reports: list[Progress] = []
    engine, _ = load_engine(
        tmp_path, EngineConfig(device="cpu", dtype="float32"), JobControl(reports.append)
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    done = [report.done for report in reports if report.stage == "Loading weights"]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == index["metadata"]["total_size"]
    assert not engine.has_work


def save_changed(folder: Path, **tensors: torch.Tensor | None) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    changed: dict[str, Any] = {**load_file(path), **tensors}
    save_file({name: value for name, value in changed.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("lm_head.weight", None, CheckpointError, "has no weights for 'lm_head.weight'"),
        (
            "model.layers.1.mlp.up_proj.weight",
            torch.zeros(48, 80),
            CheckpointError,
            r"'model.layers.1.mlp.up_proj.weight' .* the shape \[48, 80\] instead of \[80, 48\]",
        ),
        (
            "model.norm.weight",
            torch.full((48,), torch.nan),
            CheckpointError,
            "'model.norm.weight' in model.safetensors holds values that are NaN",
        ),
        (
            "model.embed_tokens.weight",
            torch.zeros(100, 48),
            CheckpointError,
            r"'model.embed_tokens.weight' in model.safetensors has the shape \[100, 48\]",
        ),
        ("model.embed_tokens.weight", None, CheckpointError, "no complete model"),
        (
            "model.layers.0.block_sparse_moe.gate.weight",
            torch.zeros(4, 48),
            UnsupportedModelError,
            "'model.layers.0.block_sparse_moe.gate.weight', for which this model has no place",
        ),
        (
            "model.norm.weight",
            torch.zeros(48, dtype=torch.int8),
            UnsupportedModelError,
            "'model.norm.weight' in model.safetensors of tiny has the data type I8",
        ),
    ],
)
def test_wrong_weights_are_named(
    tmp_path: Path, name: str, value: torch.Tensor | None, error: type[Exception], words: str
) -> None:
    write_model_folder(tmp_path / "tiny")
    save_changed(tmp_path / "tiny", **{name: value})
    with pytest.raises(error, match=words) as caught:
        make_engine(tmp_path / "tiny")
    assert getattr(caught.value, "hint", "")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_type": "qwen9"}, UnsupportedModelError, "'qwen9'.*Llama 1 to 3.*Gemma 2"),
        ({"architectures": ["LlamaForSequenceClassification"]}, UnsupportedModelError, "not a"),
        ({"quantization_config": {"quant_method": "hqq"}}, UnsupportedModelError, "'hqq'"),
        ({"quantization_config": {}}, UnsupportedModelError, "an unnamed method"),
        ({"model_type": "mistral", "architectures": None, "sliding_window": -1},
         CheckpointError, "sliding_window is -1"),
        ({"layer_types": ["full_attention"]}, CheckpointError, "does not list 2 layers"),
        ({"layer_types": ["full_attention", "linear"]}, UnsupportedModelError, "kind 'linear'"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "activation 'gelu'"),
        ({"mlp_bias": True}, CheckpointError, "no weights for 'model.layers.0.mlp.gate_proj.bias'"),
        ({"clip_qkv": 8.0}, UnsupportedModelError, "clips"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}, "rope_parameters": None},
         UnsupportedModelError, "by 'ntk'.*none, linear, dynamic, yarn"),
        ({"rope_parameters": {"full_attention": ROPE}}, CheckpointError, "sliding_attention of"),
        ({"rope_parameters": {"early_layers": ROPE}}, UnsupportedModelError, "kind of layer"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}},
         CheckpointError, "not 4 numbers above zero"),
        ({"rope_parameters": {"rope_type": "linear"}}, CheckpointError, "does not say its factor"),
        ({"rope_parameters": 7}, CheckpointError, "rope_parameters is 7"),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 9.0}}, CheckpointError, "not less than"),
        ({"hidden_size": None}, CheckpointError, "does not say its hidden_size"),
        ({"hidden_size": "48"}, CheckpointError, "hidden_size is '48'"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "from 1 to 1,024"),
        ({"num_key_value_heads": 4}, CheckpointError, "cannot share 4"),
        ({"tie_word_embeddings": "yes"}, CheckpointError, "neither true nor false"),
        ({"rms_norm_eps": -1}, CheckpointError, "out of range"),
        ({"model_type": None}, CheckpointError, "of which architecture"),
    ],
)  # fmt: skip
def test_config_that_does_not_run_says_why(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    write_model_folder(tmp_path)
    change_json(tmp_path / "config.json", **changes)
    with pytest.raises(error, match=words):
        make_engine(tmp_path)

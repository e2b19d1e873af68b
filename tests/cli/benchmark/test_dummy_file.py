"""Files of known shapes with random weights: read by the engine, bounded, gone afterwards."""

import dataclasses
import json
import tempfile
from pathlib import Path

import gguf
import pytest

from octavo.checkpoint.gguf import GGMLType, GGUFHeader
from octavo.checkpoint.header import read_checkpoint
from octavo.cli.benchmark.dummy_file import DUMMY_FILE_FORMATS, write_dummy_file
from octavo.engine import dummy_model
from octavo.engine.checkpoint_parts import read_model_config, read_tokenizer
from octavo.engine.dummy_model import dummy_shapes, dummy_vocabulary
from octavo.engine.model_config import ModelConfig
from octavo.errors import StorageError
from tests.cli.conftest import Cli

VOCAB_SIZE = 512


def small(name: str) -> ModelConfig:
    """A shape of the table, small enough for tests; everything but the sizes is kept."""
    shape = dummy_shapes()[name]
    rope = dataclasses.replace(shape.rope, rotary_dim=32)
    return dataclasses.replace(
        shape,
        num_layers=2,
        hidden_size=256,
        intermediate_size=512,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        rope=rope,
        vocab_size=VOCAB_SIZE,
    )


def read(path: Path) -> GGUFHeader:
    header = read_checkpoint(path)
    assert isinstance(header, GGUFHeader)
    return header


@pytest.mark.parametrize("weight_format", DUMMY_FILE_FORMATS)
@pytest.mark.parametrize("name", ["Llama-3.2-3B", "Qwen3-8B"])
def test_a_file_is_the_model_it_stands_for(tmp_path: Path, name: str, weight_format: str) -> None:
    path = tmp_path / "dummy.gguf"
    shape = small(name)
    write_dummy_file(path, shape, weight_format, dummy_vocabulary(VOCAB_SIZE))
    header = read(path)
    config = read_model_config(header)
    for field in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "qk_norm"):
        assert getattr(config, field) == getattr(shape, field), field
    assert config.rope == shape.rope
    assert config.tie_word_embeddings == shape.tie_word_embeddings
    assert read_tokenizer(header).vocab_size == VOCAB_SIZE
    layers = {
        tensor.ggml_type
        for tensor in header.tensors.values()
        if tensor.name.startswith("blk") and len(tensor.shape) > 1
    }
    assert layers == {GGMLType[weight_format.upper()]}
    head = "token_embd.weight" if shape.tie_word_embeddings else "output.weight"
    assert header.tensors[head].ggml_type is GGMLType.Q6_K


@pytest.mark.parametrize("weight_format", DUMMY_FILE_FORMATS)
def test_weights_are_spread_as_a_trained_models_are(tmp_path: Path, weight_format: str) -> None:
    path = tmp_path / "dummy.gguf"
    write_dummy_file(path, small("Llama-3.2-1B"), weight_format, dummy_vocabulary(VOCAB_SIZE))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name in ("blk.1.ffn_down.weight", "blk.0.attn_q.weight", "token_embd.weight"):
        tensor = tensors[name]
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = weights.shape[-1] ** -0.5
        assert float(weights.std()) == pytest.approx(expected, rel=0.05), name
        # The codes of Q4_0 reach further down than up, by one.
        assert abs(float(weights.mean())) < 0.12 * expected, name


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "dummy.gguf"
    with pytest.raises(StorageError, match="cannot be written"):
        write_dummy_file(path, small("Llama-3.2-1B"), "q4_0", dummy_vocabulary(VOCAB_SIZE))
    assert not path.exists()


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"Llama-3.2-1B": small("Llama-3.2-1B")}
    monkeypatch.setattr(dummy_model, "dummy_shapes", lambda: shapes)


def test_bench_measures_a_file_and_removes_it(
    cli: Cli, small_shapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    sizes = ("--prompt-tokens", "8", "--output-tokens", "4", "--repetitions", "1", "--streams", "1")
    dummy = ("--dummy-weights", "Llama-3.2-1B", "--weight-format", "q4_k")
    outcome = cli("bench", *dummy, *sizes, "--json")
    assert outcome.status == 0, outcome.err
    (row,) = json.loads(outcome.out)["rows"]
    assert row["decode_tokens_per_second"] > 0
    assert list((tmp_path / "temporary").iterdir()) == []
    kept = tmp_path / "kept.gguf"
    assert cli("bench", *dummy, *sizes, "--keep-file", str(kept)).status == 0
    assert read(kept).architecture == "llama"
    again = cli("bench", *dummy, *sizes, "--keep-file", str(kept))
    assert again.status == 1
    assert "is there already" in again.err
    unknown = cli("bench", "--dummy-weights", "Llama-9", "--weight-format", "q4_0", *sizes)
    assert unknown.status == 1
    assert "no shape 'Llama-9'" in unknown.err


def test_experts_are_not_written(cli: Cli) -> None:
    shape = ("--dummy-weights", "Qwen3-30B-A3B", "--weight-format", "q4_0")
    outcome = cli("bench", *shape)
    assert outcome.status == 1
    assert "has experts" in outcome.err

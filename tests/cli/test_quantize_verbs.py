"""`octavo quantize` and `octavo evaluate`, as a person types them."""

import json
from pathlib import Path

import pytest

from octavo.paths import AppPaths
from tests.cli.conftest import Cli
from tests.support.gguf_files import write_tiny_llama


@pytest.fixture
def wide(paths: AppPaths) -> Path:
    paths.models_dir.mkdir(parents=True)
    return write_tiny_llama(paths.models_dir / "Wide.gguf", hidden_size=128, num_heads=8)


def test_quantize_then_use(cli: Cli, wide: Path, paths: AppPaths) -> None:
    outcome = cli("quantize", "wide", "INT8")
    assert outcome.status == 0, outcome.err
    output = paths.models_dir / "Wide-int8"
    assert str(output) in outcome.out
    for words in ("perplexity", "bits a weight", "Divergence", "octavo-prose-and-code.txt"):
        assert words in outcome.out
    assert "wide-int8" in cli("list").out
    answer = cli("run", "wide-int8", "hello", "--max-tokens", "3", "--temperature", "0")
    assert answer.status == 0, answer.err
    again = cli("quantize", "wide", "int8")
    assert again.status == 1
    assert "exists already" in again.err


def test_json_without_evaluation(cli: Cli, wide: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.gguf"
    outcome = cli("quantize", wide, "q4_0", "--output", output, "--no-evaluate", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["output"] == str(output)
    assert report["perplexity_after"] is None
    assert report["output_bytes"] == output.stat().st_size


def test_what_a_method_cannot_do_is_said_first(cli: Cli, paths: AppPaths) -> None:
    paths.models_dir.mkdir(parents=True)
    write_tiny_llama(paths.models_dir / "Odd.gguf", intermediate_size=80)
    outcome = cli("quantize", "odd", "int4-g128", "--no-evaluate")
    assert outcome.status == 0, outcome.err
    assert "2 of 14 matrices stay in 16 bits (20.0 KiB)" in outcome.err
    assert "12 of 14 matrices have groups of 64" in outcome.err


def test_evaluate_against(cli: Cli, wide: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello world and you " * 20)
    outcome = cli("evaluate", "wide", "--against", wide, "--text", text, "--json")
    assert outcome.status == 0, outcome.err
    numbers = json.loads(outcome.out)
    assert (numbers["kl_divergence"], numbers["top1_agreement"]) == (0.0, 1.0)
    assert numbers["text_name"] == "notes.txt"
    outcome = cli("evaluate", "wide", "--against", wide, "--text", text)
    assert "Divergence from wide: 0.00000 nats" in outcome.out


def test_unknown_method_lists_the_known(cli: Cli, wide: Path) -> None:
    outcome = cli("quantize", wide, "q3_k")
    assert outcome.status == 1
    assert "int4-g128" in outcome.err


def test_missing_text(cli: Cli, wide: Path, tmp_path: Path) -> None:
    outcome = cli("evaluate", wide, "--text", tmp_path / "no.txt")
    assert outcome.status == 1
    assert "no.txt cannot be read" in outcome.err

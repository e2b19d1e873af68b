"""A folder of safetensors is a model to every verb."""

import json
from pathlib import Path

import pytest

from octavo.paths import AppPaths
from tests.cli.conftest import Cli
from tests.support.model_folders import change_json, write_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model_folder(tmp_path / "Tiny-1.5B", max_shard_size="40KB")
    return tmp_path / "Tiny-1.5B"


def test_run_answers(cli: Cli, folder: Path) -> None:
    outcome = cli("run", folder, "hi", "--max-tokens", "4", "--temperature", "0")
    assert outcome.status == 0, outcome.err
    assert outcome.out.strip()


def test_show(cli: Cli, folder: Path) -> None:
    outcome = cli("show", folder)
    assert outcome.status == 0, outcome.err
    for words in ("Tiny-1.5B", str(folder), "llama", "F32", "Memory plan", "It fits"):
        assert words in outcome.out


def test_generate_gives_tokens(cli: Cli, folder: Path) -> None:
    line = json.dumps({"prompt": "Hello", "max_tokens": 3, "temperature": 0, "ignore_eos": True})
    outcome = cli("generate", "--model", folder, stdin=line)
    assert outcome.status == 0, outcome.out + outcome.err
    assert "error" not in json.loads(outcome.out)


def test_list_and_remove(cli: Cli, paths: AppPaths) -> None:
    paths.models_dir.mkdir(parents=True)
    write_model_folder(paths.models_dir / "tiny")
    (model,) = json.loads(cli("list", "--json").out)
    assert (model["name"], model["problem"]) == ("tiny", "")
    assert cli("rm", "tiny").status == 0
    assert list(paths.models_dir.iterdir()) == []


def test_what_is_wrong_is_a_sentence(cli: Cli, folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-8])
    for verb in (["show", folder], ["run", folder, "hi"]):
        outcome = cli(*verb)
        assert outcome.status == 1
        assert f"{shard.name} is incomplete" in outcome.err


class TestShowSaysBeforeALoad:
    def test_that_it_runs_and_how_that_is_tested(self, cli: Cli, folder: Path) -> None:
        out = cli("show", folder).out
        assert "Llama 1 to 3" in out
        assert "safetensors: F32" in out
        support = json.loads(cli("show", folder, "--json").out)["support"]
        assert support["support"].startswith("runs; ")

    def test_that_its_architecture_does_not(self, cli: Cli, folder: Path) -> None:
        change_json(folder / "config.json", model_type="mamba", architectures=["MambaForCausalLM"])
        outcome = cli("show", folder)
        assert outcome.status == 1
        assert "mamba: none that runs" in outcome.out
        assert "does not run" in outcome.out
        assert "of the architecture 'mamba'" in outcome.err
        told = json.loads(cli("show", folder, "--json").out)
        assert told["support"]["support"] == "does not run"
        assert "mamba" in told["model"]["problem"]

    def test_that_its_format_does_not(self, cli: Cli, folder: Path) -> None:
        change_json(folder / "config.json", quantization_config={"quant_method": "hqq"})
        outcome = cli("show", folder)
        assert outcome.status == 1
        assert "Llama 1 to 3" in outcome.out
        assert "no: Tiny-1.5B is quantised by 'hqq'" in outcome.out
        assert "quantised by 'hqq'" in outcome.err


def test_pickles_are_refused_with_a_remedy(cli: Cli, folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    pickle = folder / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x04.")
    for verb in (["show", folder], ["run", folder, "hi"], ["import", folder]):
        outcome = cli(*verb)
        assert outcome.status == 1
        assert "only as a pickle (pytorch_model.bin)" in outcome.err
        assert "safetensors or GGUF" in outcome.err
    for verb in (["show", pickle], ["run", pickle, "hi"], ["import", pickle]):
        outcome = cli(*verb)
        assert outcome.status == 1
        assert "pytorch_model.bin is a pickle" in outcome.err
        assert "safetensors or GGUF" in outcome.err

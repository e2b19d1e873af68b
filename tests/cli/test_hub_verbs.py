"""`octavo search` and `octavo pull` against a hub on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.paths import AppPaths
from tests.cli.conftest import Cli
from tests.hub.hub_server import TOKEN, HubServer, Repo, serving_hub
from tests.support.gguf_files import write_gguf, write_tiny_llama


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    content = write_tiny_llama(tmp_path / "tiny.gguf").read_bytes()
    foreign = write_gguf(tmp_path / "foreign.gguf", {"general.architecture": "mamba9"}, {})
    there = {
        "acme/Tiny-GGUF": Repo({"tiny-F32.gguf": content, "tiny-Q8_0.gguf": content}),
        "acme/Secret-GGUF": Repo({"secret-Q8_0.gguf": content}, gated=True, downloads=7),
        "acme/Foreign-GGUF": Repo({"foreign-Q8_0.gguf": foreign.read_bytes()}, downloads=3),
    }
    with serving_hub(there) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_search_prints_a_table_and_json(cli: Cli, hub: HubServer) -> None:
    outcome = cli("search", "gguf")
    assert outcome.status == 0
    header, *rows = outcome.out.splitlines()
    assert header.split()[:3] == ["NAME", "PARAMETERS", "ARCHITECTURE"]
    assert rows[0].split() == ["acme/Tiny-GGUF", "135M", "llama", "1.0K", "5", "open"]
    assert rows[1].split()[-1] == "gated"
    listed = json.loads(cli("search", "tiny", "--json").out)
    assert [model["repository"] for model in listed] == ["acme/Tiny-GGUF"]
    assert "no GGUF model that fits 'no such'" in cli("search", "no", "such").out
    assert "1 to 100" in cli("search", "x", "--limit", "0").err


def test_pull_then_list(cli: Cli, hub: HubServer, paths: AppPaths) -> None:
    outcome = cli("pull", "acme/Tiny-GGUF")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("tiny-q8_0 is ready: ")
    assert (paths.models_dir / "acme" / "Tiny-GGUF" / "tiny-Q8_0.gguf").is_file()
    assert "tiny-q8_0" in cli("list").out
    again = cli("pull", f"{hub.url}/acme/Tiny-GGUF/blob/main/tiny-Q8_0.gguf")
    assert "was here already" in again.err


def test_the_endpoint_option_goes_before_the_environment(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli("pull", "acme/Tiny-GGUF:f32", "--endpoint", hub.url).status == 0


def test_a_gated_model_needs_the_token_of_the_environment(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli("pull", "acme/Secret-GGUF")
    assert outcome.status == 1
    assert "acme/Secret-GGUF is gated" in outcome.err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli("pull", "acme/Secret-GGUF").status == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme/Tiny-GGUF:Q2_K", "There is: F32 ("),
        ("acme/Nothing", "has no model acme/Nothing"),
        ("stater", "names no model"),
        ("https://elsewhere.test/a/b", "elsewhere.test is not the hub"),
        ("acme/Foreign-GGUF", "mamba9"),
    ],
)
def test_what_cannot_be_pulled_is_said_in_a_sentence_with_a_next_step(
    cli: Cli, hub: HubServer, name: str, words: str
) -> None:
    outcome = cli("pull", name)
    assert outcome.status == 1
    assert words in outcome.err
    assert outcome.err.startswith("octavo: ")
    assert len(outcome.err.splitlines()) == 2


def test_an_endpoint_or_token_that_cannot_be_one(
    cli: Cli, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for endpoint in ("hub.test", "http://", "http://h:port", "http://[h"):
        assert "no web address" in cli("search", "x", "--endpoint", endpoint).err
    monkeypatch.setenv("HF_TOKEN", "geheim\u00fc")
    outcome = cli("search", "x")
    assert "$HF_TOKEN" in outcome.err
    assert "geheim" not in outcome.err

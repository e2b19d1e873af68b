"""`octavo search` and `octavo pull` against a hub on this machine."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from octavo.engine.device import Device
from octavo.host import ModelHost
from octavo.paths import AppPaths
from octavo.settings import Hub, SettingsStore
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
    assert header.split()[:4] == ["NAME", "KIND", "PARAMETERS", "ARCHITECTURE"]
    shown = ["acme/Tiny-GGUF", "gguf", "135M", "llama", "1.0K", "5", "2026-05-01", "open"]
    assert rows[0].split() == shown
    assert rows[1].split()[-1] == "gated"
    listed = json.loads(cli("search", "tiny", "--json").out)
    assert [model["repository"] for model in listed] == ["acme/Tiny-GGUF"]
    assert "no GGUF model that fits 'no such'" in cli("search", "no", "such").out
    assert "1 to 100" in cli("search", "x", "--limit", "0").err


def test_pull_then_list_then_remove(cli: Cli, hub: HubServer, paths: AppPaths) -> None:
    outcome = cli("pull", "acme/Tiny-GGUF")
    assert outcome.status == 0
    assert "It fits on" in outcome.err
    assert "tokens of conversation" in outcome.err
    assert outcome.out.startswith("tiny-q8_0 is ready: ")
    cache = paths.models_dir / "hub" / "models--acme--Tiny-GGUF"
    (entry,) = cache.glob("snapshots/*/tiny-Q8_0.gguf")
    assert entry.is_symlink()
    assert "acme/Tiny-GGUF" in cli("list").out
    again = cli("pull", f"{hub.url}/acme/Tiny-GGUF/blob/main/tiny-Q8_0.gguf")
    assert "was here already" in again.err
    assert "are free again" in cli("rm", "tiny-q8_0").out
    assert "No models yet" in cli("list").out


def test_what_can_never_fit_is_refused_before_it_is_downloaded(
    cli: Cli, hub: HubServer, paths: AppPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("cpu", 0, "a toaster", total_bytes=1 << 20, free_bytes=1 << 19)
    monkeypatch.setattr("octavo.core.ModelHost", partial(ModelHost, devices=lambda: [small]))
    outcome = cli("pull", "acme/Tiny-GGUF")
    assert outcome.status == 1
    assert "It can never fit on a toaster" in outcome.err
    assert "--force" in outcome.err
    assert not any((paths.models_dir / "hub").rglob("*.gguf"))
    forced = cli("pull", "acme/Tiny-GGUF", "--force")
    assert forced.status == 0
    assert "It does not fit on a toaster now" in forced.err


def test_the_settings_name_the_hub_and_offline_asks_none(
    cli: Cli, hub: HubServer, paths: AppPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    settings = SettingsStore(paths.settings_file)
    settings.update(hub=Hub(endpoint=hub.url))
    assert "acme/Tiny-GGUF" in cli("search", "tiny").out
    settings.update(hub=Hub(endpoint=hub.url, is_offline=True))
    outcome = cli("search", "tiny")
    assert outcome.status == 1
    assert "offline by its settings" in outcome.err


def test_kinds_and_orders(cli: Cli, hub: HubServer) -> None:
    assert cli("search", "x", "--kind", "pickle").status == 2
    assert "no model in safetensors" in cli("search", "no", "--kind", "safetensors").out
    assert cli("search", "tiny", "--sort", "likes").status == 0


def test_import_and_rm_of_a_link(cli: Cli, paths: AppPaths, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "Mine.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    outcome = cli("import", broken, model)
    assert outcome.status == 1
    assert "broken.gguf" in outcome.err
    assert outcome.out == f"mine is in the library; its files stay at {model}.\n"
    assert "in the library already, as mine" in cli("import", model).out
    assert cli("rm", "mine").out == (f"The link to mine is deleted; the model stays at {model}.\n")
    assert model.is_file()


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

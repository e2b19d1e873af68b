import dataclasses
import json
from pathlib import Path

import pytest

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.errors import CheckpointError, DownloadError, StorageError, UnsupportedModelError
from octavo.hub import hub_inspect
from octavo.hub.hub_files import HubAddress, choose_variant
from octavo.hub.hub_inspect import inspect_variant
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobCancelled, JobControl
from tests.hub.hub_server import TOKEN, Fault, HubServer, Repo, serving_hub
from tests.hub.test_hub_pull import PATIENT
from tests.support.gguf_files import TinyLlama, write_gguf, write_split_llama, write_tiny_llama
from tests.support.model_folders import write_model_folder

NAME = "acme/Tiny-1B"
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "model"
    write_model_folder(path, hidden_size=96, intermediate_size=512, max_shard_size="600KB")
    return path


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def inspect(
    server: HubServer, cache_dir: Path, *, token: str = "", control: JobControl | None = None
) -> CheckpointHeader:
    hub = HuggingFace(server.url, token)
    repository = hub.repository(HubAddress(NAME))
    variant = choose_variant(HubAddress(NAME), repository)
    return inspect_variant(
        hub, repository, variant, cache_dir, control or JobControl(), patience=PATIENT
    )


def test_a_folder_is_read_from_the_beginnings_of_its_shards(
    tmp_path: Path, folder: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_inspect, "_FIRST_SAFETENSORS_BYTES", 4096)
    with serving_hub({NAME: Repo(files)}) as server:
        header = inspect(server, tmp_path)
        shards = [name for name in files if name.endswith(".safetensors")]
        small = ("config.json", "generation_config.json", "model.safetensors.index.json")
        assert sorted(server.requested) == sorted([*small, *shards])
        assert server.num_bytes_sent == 4096 * len(shards) + sum(len(files[n]) for n in small)
        server.requested.clear()
        again = inspect(server, tmp_path)
        assert server.requested == []
    whole = read_checkpoint(folder)
    assert isinstance(header, FolderHeader)
    assert isinstance(whole, FolderHeader)
    for look in (header, again):
        assert isinstance(look, FolderHeader)
        assert look.config == whole.config
        assert {name: tensor.shape for name, tensor in look.tensors.items()} == {
            name: tensor.shape for name, tensor in whole.tensors.items()
        }
        named_alike = dataclasses.replace(read_model_config(whole), name="Tiny-1B")
        assert read_model_config(look) == named_alike
    # Nothing here can be taken for weights.
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("first_bytes", [4, 8, 100])
def test_a_shards_header_longer_than_what_is_fetched_first(
    tmp_path: Path, files: dict[str, bytes], first_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_inspect, "_FIRST_SAFETENSORS_BYTES", max(8, first_bytes))
    with serving_hub({NAME: Repo(files)}) as server:
        assert inspect(server, tmp_path).num_parameters > 0


def test_a_gguf_file_costs_no_request_the_second_time(tmp_path: Path) -> None:
    content = write_tiny_llama(tmp_path / "t.gguf").read_bytes()
    with serving_hub({NAME: Repo({"q/t-Q4_0.gguf": content})}) as server:
        header = inspect(server, tmp_path / "c")
        assert len(server.requested) == 1
        assert inspect(server, tmp_path / "c").num_parameters == header.num_parameters
        assert len(server.requested) == 1
    assert header.path.name == "t-Q4_0.gguf"


def test_another_commit_is_looked_at_anew(tmp_path: Path, files: dict[str, bytes]) -> None:
    repo = Repo(dict(files))
    with serving_hub({NAME: repo}) as server:
        before = inspect(server, tmp_path)
        config = json.loads(files["config.json"]) | {"max_position_embeddings": 99}
        repo.commit, repo.files["config.json"] = "b" * 40, json.dumps(config).encode()
        assert inspect(server, tmp_path).context_length == 99
        assert before.context_length == 256


def test_old_looks_are_dropped(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_inspect, "_MOST_LOOKS", 2)
    for name in ("a", "b", "c"):
        (tmp_path / "hub-headers" / name).mkdir(parents=True)
    with serving_hub({NAME: Repo(files)}) as server:
        inspect(server, tmp_path)
    left = [path.name for path in (tmp_path / "hub-headers").iterdir()]
    assert "acme--Tiny-1B" in left
    assert len(left) == 2


def test_what_octavo_does_not_run_is_said_in_the_readers_words(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    config = files["config.json"].replace(b'"llama"', b'"mamba9"')
    with serving_hub({NAME: Repo(files | {"config.json": config})}) as server:
        header = inspect(server, tmp_path)
    with pytest.raises(UnsupportedModelError, match="mamba9"):
        read_model_config(header)
    pickles = {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"}
    with (
        serving_hub({NAME: Repo(pickles)}) as server,
        pytest.raises(UnsupportedModelError, match="only as a pickle"),
    ):
        inspect(server, tmp_path / "c")


def test_a_split_model_is_read_from_the_beginnings_of_its_parts(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, TinyLlama())
    parts = {path.name: path.read_bytes() for path in paths}
    whole = read_checkpoint(paths[0])
    with serving_hub({NAME: Repo(parts)}) as server:
        header = inspect(server, tmp_path / "c")
    assert (header.num_parameters, header.tensor_bytes) == (
        whole.num_parameters,
        whole.tensor_bytes,
    )


def test_a_missing_shard_is_said(tmp_path: Path, files: dict[str, bytes]) -> None:
    there = {name: files[name] for name in files if "00002-of" not in name}
    with (
        serving_hub({NAME: Repo(there)}) as server,
        pytest.raises(CheckpointError, match=r"00002-of-.* is missing"),
    ):
        inspect(server, tmp_path)


@pytest.mark.parametrize(
    ("length", "words"),
    [(1 << 62, "is no safetensors file"), (50_000_000, "is incomplete"), (0, "is damaged")],
)
def test_hostile_lengths_of_a_header_cost_nothing(
    tmp_path: Path, files: dict[str, bytes], length: int, words: str
) -> None:
    hostile = length.to_bytes(8, "little") + bytes(3 * MIB)
    there = {"config.json": files["config.json"], "model.safetensors": hostile}
    with serving_hub({NAME: Repo(there)}) as server:
        with pytest.raises(CheckpointError, match=words):
            inspect(server, tmp_path)
        assert server.num_bytes_sent < MIB


def test_hostile_sizes_cost_nothing(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repo(dict(files), claimed_sizes={"config.json": 1 << 40})
    with serving_hub({NAME: repo}) as server:
        with pytest.raises(CheckpointError, match=r"config\.json .* longer than"):
            inspect(server, tmp_path)
        assert "config.json" not in server.requested
    monkeypatch.setattr(hub_inspect, "_MOST_HEADER_BYTES", 1000)
    with (
        serving_hub({NAME: Repo(files)}) as server,
        pytest.raises(DownloadError, match="are longer than 1000 B"),
    ):
        inspect(server, tmp_path / "b")


def test_a_gguf_header_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_inspect, "_MOST_HEADER_BYTES", 2 * MIB)
    metadata = {"general.architecture": "llama", "long": ["word"] * 400_000}
    content = write_gguf(tmp_path / "t.gguf", metadata, {}).read_bytes()
    with serving_hub({NAME: Repo({"t.gguf": content})}) as server:
        with pytest.raises((DownloadError, CheckpointError)):
            inspect(server, tmp_path / "c")
        assert server.num_bytes_sent <= 2 * MIB


@pytest.mark.parametrize(
    "fault",
    [Fault(drop_after=0), Fault(ignores_range=True), Fault(status=503), Fault(status=403)],
    ids=["drop", "ignored-range", "503", "expired"],
)
def test_faults_on_the_way(tmp_path: Path, files: dict[str, bytes], fault: Fault) -> None:
    with serving_hub({NAME: Repo(files)}, fault) as server:
        assert inspect(server, tmp_path).num_parameters > 0
        assert server.faults == []


def test_gates_and_cancel(tmp_path: Path, files: dict[str, bytes]) -> None:
    with serving_hub({NAME: Repo(files, gated=True)}) as server:
        with pytest.raises(DownloadError, match="is gated"):
            inspect(server, tmp_path)
        assert server.requested == []
        control = JobControl()
        control.cancel()
        with pytest.raises(JobCancelled):
            inspect(server, tmp_path, token=TOKEN, control=control)
        assert inspect(server, tmp_path, token=TOKEN).num_parameters > 0


def test_a_cache_that_cannot_be_written(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "hub-headers").write_text("a file is in the way")
    with serving_hub({NAME: Repo(files)}) as server, pytest.raises(StorageError):
        inspect(server, tmp_path)

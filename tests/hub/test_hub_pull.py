import contextlib
import dataclasses
import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.checkpoint.gguf import GGUFHeader, read_gguf_header
from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.engine.checkpoint_parts import read_model_config
from octavo.errors import (
    CheckpointError,
    DownloadError,
    StorageError,
    UnsupportedModelError,
)
from octavo.hub import hub_inspect, hub_pull
from octavo.hub.download import Patience
from octavo.hub.hub_cache import HubCache
from octavo.hub.hub_files import HubAddress
from octavo.hub.hub_inspect import inspect_variant
from octavo.hub.hub_pull import is_here, pull_variant
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.library import ModelLibrary
from octavo.jobs import JobCancelled, JobControl, Progress
from tests.hub.hub_server import CHUNK_BYTES, COMMIT, TOKEN, Fault, HubServer, Repo, serving_hub
from tests.hub.pulling import Pulled, pull_model
from tests.support.gguf_files import TinyLlama, write_split_llama, write_tiny_llama
from tests.support.model_folders import write_model_folder

NAME = "acme/Tiny-GGUF"
FILE = "tiny-Q4_0.gguf"
FOLDER_NAME = "acme/Tiny-1B"
MIB = 1 << 20
PATIENT = Patience(first_pause_s=0.01, longest_pause_s=0.02, tries_without_progress=3)
"""Takes a server that is slow because the machine is busy for slow, and not for silent."""
SOON_GONE = dataclasses.replace(PATIENT, read_timeout_s=1.0)
"""For servers that are silent on purpose."""
SHARDS = [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]


def padded_gguf(folder: Path, num_bytes: int) -> bytes:
    """A real header and its tensors, and bytes that no tensor uses up to the wanted size."""
    content = write_tiny_llama(folder / "tiny.gguf").read_bytes()
    return content + random.Random(0).randbytes(num_bytes - len(content))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return padded_gguf(tmp_path_factory.mktemp("gguf"), 3 * MIB)


@pytest.fixture(scope="module")
def folder_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model in four shards with its small files, and what else lies about in repositories."""
    folder = tmp_path_factory.mktemp("folder") / "model"
    write_model_folder(folder, hidden_size=96, intermediate_size=512, max_shard_size="600KB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(name for name in files if name.endswith(".safetensors")) == SHARDS
    return files | {"README.md": b"# Tiny", "run.py": b"raise SystemExit", "x.bin": b"pickle"}


def repos(content: bytes, *, gated: bool = False) -> dict[str, Repo]:
    return {NAME: Repo({"README.md": b"# Tiny", FILE: content}, gated=gated)}


def pull(
    server: HubServer,
    root: Path,
    name: str = NAME,
    *,
    quant: str = "",
    token: str = "",
    control: JobControl | None = None,
    check: hub_pull.Check = lambda header: None,
    patience: Patience = PATIENT,
) -> Pulled:
    return pull_model(
        HuggingFace(server.url, token),
        HubAddress(name, quant),
        HubCache(root),
        control=control,
        check=check,
        patience=patience,
    )


def leftovers(root: Path) -> list[str]:
    """What is left of downloads."""
    return [str(path) for path in root.rglob("*") if ".octavo" in path.parts and path.is_file()]


def bytes_in(root: Path) -> int:
    """How much has been written below a folder, as often as it can be counted meanwhile."""
    total = 0
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            total += 0 if path.is_symlink() else path.stat().st_size
    return total


def assert_folder(path: Path, files: dict[str, bytes]) -> None:
    """The folder has exactly what the model needs of the repository's files."""
    wanted = files.keys() - {"README.md", "run.py", "x.bin"}
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == {
        name: files[name] for name in wanted
    }


def test_a_file_comes_into_the_library_with_every_byte_sent_once(
    tmp_path: Path, content: bytes
) -> None:
    seen: list[Progress] = []
    with serving_hub(repos(content)) as server:
        pulled = pull(server, tmp_path, token=TOKEN, control=JobControl(seen.append))
        snapshot = tmp_path / "models--acme--Tiny-GGUF" / "snapshots" / COMMIT
        assert pulled.path == snapshot / FILE
        assert pulled.path.read_bytes() == content
        assert server.num_bytes_sent == len(content)
        assert server.ranges == [f"bytes=0-{MIB - 1}", f"bytes={MIB}-"]
        # The token is for the hub, not for the store it sends us on to; and nobody phones home.
        assert set(server.store_authorizations) == {""}
        assert not [path for path in server.hub_paths if "telemetry" in path or "agent" in path]
        assert seen[-1] == Progress(f"Downloading {FILE}", len(content), len(content))
        assert leftovers(tmp_path) == []
        assert [model.path for model in ModelLibrary(lambda: [tmp_path]).scan()] == [pulled.path]
        assert is_here(pulled.repository, pulled.variant, HubCache(tmp_path))
        assert pull(server, tmp_path).path == pulled.path
        assert server.num_bytes_sent == len(content)
        assert server.num_bytes_sent == len(content)


def test_a_folder_comes_whole_with_every_byte_sent_once_and_one_progress(
    tmp_path: Path, folder_files: dict[str, bytes]
) -> None:
    seen: list[Progress] = []
    with serving_hub({FOLDER_NAME: Repo(folder_files)}) as server:
        pulled = pull(
            server, tmp_path, FOLDER_NAME, control=JobControl(seen.append), check=read_model_config
        )
        assert_folder(pulled.path, folder_files)
        assert server.num_bytes_sent == pulled.variant.size_bytes
    stage = f"Downloading {FOLDER_NAME}"
    done = [progress.done for progress in seen if progress.stage == stage]
    assert done == sorted(done)
    assert seen[-1] == Progress(stage, pulled.variant.size_bytes, pulled.variant.size_bytes)
    assert {progress.total for progress in seen if progress.stage == stage} == {seen[-1].total}
    assert leftovers(tmp_path) == []
    assert read_checkpoint(pulled.path).num_parameters > 0
    (listed,) = HubCache(tmp_path).models()
    assert (listed.path, listed.repository) == (pulled.path, FOLDER_NAME)


def test_what_was_read_for_a_look_is_not_fetched_again(
    tmp_path: Path, content: bytes, folder_files: dict[str, bytes]
) -> None:
    there = repos(content) | {FOLDER_NAME: Repo(folder_files)}
    with serving_hub(there) as server:
        hub = HuggingFace(server.url)
        for name in there:
            repository = hub.repository(HubAddress(name))
            (variant,) = repository.variants
            server.num_bytes_sent = 0
            header = inspect_variant(hub, repository, variant, tmp_path / "c", JobControl())
            assert 0 < server.num_bytes_sent <= max(MIB, variant.size_bytes // 2)
            path = pull_variant(
                hub,
                repository,
                variant,
                HubCache(tmp_path / "hub"),
                JobControl(),
                check=lambda header: None,
                cache_dir=tmp_path / "c",
            )
            assert server.num_bytes_sent == variant.size_bytes
            assert read_checkpoint(path).tensor_bytes == header.tensor_bytes


def test_the_parts_of_a_split_model_come_together(tmp_path: Path) -> None:
    paths = write_split_llama(tmp_path, TinyLlama())
    parts = {f"q/{path.name}": path.read_bytes() for path in paths}
    with serving_hub({NAME: Repo(parts)}) as server:
        pulled = pull(server, tmp_path / "hub", check=read_model_config)
        assert server.num_bytes_sent == pulled.variant.size_bytes
    assert pulled.path.name == "tiny-00001-of-00003.gguf"
    assert {f"q/{path.name}": path.read_bytes() for path in pulled.path.parent.iterdir()} == parts
    (listed,) = HubCache(tmp_path / "hub").models()
    assert (listed.path, listed.size_bytes) == (pulled.path, sum(map(len, parts.values())))
    assert HubCache(tmp_path / "hub").remove(pulled.path) == listed.size_bytes


def test_what_the_engine_cannot_run_is_refused_after_its_header(
    tmp_path: Path, content: bytes, folder_files: dict[str, bytes]
) -> None:
    def refuse(header: CheckpointHeader) -> None:
        raise UnsupportedModelError(f"Octavo does not run {header.architecture}.")

    there = repos(content) | {FOLDER_NAME: Repo(folder_files)}
    with serving_hub(there) as server:
        for name in there:
            server.num_bytes_sent = 0
            with pytest.raises(UnsupportedModelError, match="does not run llama"):
                pull(server, tmp_path, name, check=refuse)
            assert server.num_bytes_sent <= MIB
    assert leftovers(tmp_path) == []
    assert not list(tmp_path.glob("models--*"))


def test_an_architecture_that_is_not_run_in_the_engines_own_words(
    tmp_path: Path, folder_files: dict[str, bytes]
) -> None:
    config = folder_files["config.json"].replace(b'"llama"', b'"mamba9"')
    with (
        serving_hub({FOLDER_NAME: Repo(folder_files | {"config.json": config})}) as server,
        pytest.raises(UnsupportedModelError, match="mamba9"),
    ):
        pull(server, tmp_path, FOLDER_NAME, check=read_model_config)


def test_what_is_no_gguf_file_is_refused_after_its_first_bytes(tmp_path: Path) -> None:
    with serving_hub(repos(b"x" * 3 * MIB)) as server:
        with pytest.raises(CheckpointError, match=f"{FILE} is not a GGUF file"):
            pull(server, tmp_path)
        assert server.num_bytes_sent <= MIB


@pytest.mark.parametrize("first_bytes", [8, 64, 300, 1021, 4096])
def test_a_header_longer_than_what_is_fetched_first(
    tmp_path: Path, content: bytes, first_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_inspect, "_FIRST_GGUF_BYTES", first_bytes)
    headers: list[CheckpointHeader] = []
    with serving_hub(repos(content)) as server:
        path = pull(server, tmp_path, check=headers.append).path
        assert server.num_bytes_sent == len(content)
    whole = read_gguf_header(path)
    (header,) = headers
    assert (header.num_parameters, header.tensor_bytes) == (
        whole.num_parameters,
        whole.tensor_bytes,
    )
    assert getattr(header, "metadata", None) == whole.metadata
    assert isinstance(header, GGUFHeader)
    assert {name: (each.shape, each.offset) for name, each in header.tensors.items()} == {
        name: (each.shape, each.offset) for name, each in whole.tensors.items()
    }


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault(drop_after=CHUNK_BYTES * n) for n in (3, 1, 9)], id="drop"),
        pytest.param([Fault(), Fault(stall_after=CHUNK_BYTES)], id="stall"),
        pytest.param([Fault(), Fault(ignores_range=True)], id="ignored-range"),
        pytest.param([Fault(ignores_range=True)], id="ignored-first-range"),
        pytest.param([Fault(), Fault(content=b"y" * 3 * MIB)], id="wrong-bytes"),
        pytest.param([Fault(), Fault(tag='"other"')], id="changed-etag"),
        pytest.param([Fault(status=403), Fault(), Fault(status=403)], id="expired-address"),
        pytest.param([Fault(status=429, headers={"Retry-After": "0"})], id="429"),
        pytest.param([Fault(), Fault(status=503), Fault(status=500)], id="503"),
    ],
)
def test_faults_on_the_way(tmp_path: Path, content: bytes, faults: list[Fault]) -> None:
    patience = SOON_GONE if any(fault.stall_after for fault in faults) else PATIENT
    with serving_hub(repos(content), *faults) as server:
        assert pull(server, tmp_path, patience=patience).path.read_bytes() == content
        assert server.faults == []
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"drop_after": 4 * CHUNK_BYTES}, id="drop"),
        pytest.param({"stall_after": 4 * CHUNK_BYTES}, id="stall"),
        pytest.param({"ignores_range": True}, id="ignored-range"),
        pytest.param({"content": b"y" * 700_000}, id="wrong-bytes"),
        pytest.param({"tag": '"other"'}, id="changed-etag"),
        pytest.param({"status": 403}, id="expired-address"),
        pytest.param({"status": 429, "headers": {"Retry-After": "0"}}, id="429"),
        pytest.param({"status": 503}, id="503"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", SHARDS[1]])
def test_faults_of_one_file_of_several(
    tmp_path: Path,
    folder_files: dict[str, bytes],
    fault: dict[str, object],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "config.json" and fault.get("status") == 403:
        # The hub itself sends small files; its 403 is no address that has expired.
        fault = {"status": 500}
    # The first request reads the header, the second the rest.
    monkeypatch.setattr(hub_inspect, "_FIRST_SAFETENSORS_BYTES", 65536)
    broken = Fault(file=name, **fault)  # type: ignore[arg-type]
    before = [] if name == "config.json" else [Fault(file=name)]
    patience = SOON_GONE if broken.stall_after else PATIENT
    with serving_hub({FOLDER_NAME: Repo(folder_files)}, *before, broken) as server:
        pulled = pull(server, tmp_path, FOLDER_NAME, patience=patience)
        assert_folder(pulled.path, folder_files)
        assert server.faults == []
        # The others are not asked for again.
        assert server.requested.count(SHARDS[0]) == 2
    assert leftovers(tmp_path) == []


def test_wrong_bytes_for_ever_are_an_error(
    tmp_path: Path, content: bytes, folder_files: dict[str, bytes]
) -> None:
    wrong = Fault(content=content[:MIB] + b"y" * 2 * MIB)
    with (
        serving_hub(repos(content), *[wrong] * 4) as server,
        pytest.raises(DownloadError, match=r"does not send the right file: its sha256 is"),
    ):
        pull(server, tmp_path)
    small = Fault(file="tokenizer_config.json", content=b"{}".ljust(99))
    files = folder_files | {"tokenizer_config.json": b"{1}".ljust(99)}
    with serving_hub({FOLDER_NAME: Repo(files)}, *[small] * 4) as server:
        with pytest.raises(DownloadError, match=r"does not send the right file: its git sha1 is"):
            pull(server, tmp_path, FOLDER_NAME)
        # Nobody sees half a model, and what did arrive is not fetched again.
        assert HubCache(tmp_path).models() == []
        server.faults.clear()
        server.requested.clear()
        assert_folder(pull(server, tmp_path, FOLDER_NAME).path, files)
        assert "config.json" not in server.requested


def test_an_address_that_is_always_refused_is_given_up(tmp_path: Path, content: bytes) -> None:
    with (
        serving_hub(repos(content), *[Fault(status=403)] * 9) as server,
        pytest.raises(DownloadError, match=r"3 times in a row: the signed address has expired"),
    ):
        pull(server, tmp_path)


def test_files_that_vanish_or_are_refused_meanwhile(
    tmp_path: Path, folder_files: dict[str, bytes]
) -> None:
    for status, words in ((404, "does not have the file: 404"), (401, "settings or .HF_TOKEN")):
        fault = Fault(file="tokenizer_config.json", status=status)
        with (
            serving_hub({FOLDER_NAME: Repo(folder_files)}, fault) as server,
            pytest.raises(DownloadError, match=words),
        ):
            pull(server, tmp_path, FOLDER_NAME)


def test_a_cancelled_pull_goes_on_later(tmp_path: Path, content: bytes) -> None:
    control = JobControl(lambda progress: control.cancel() if progress.done > 2 * MIB else None)
    with serving_hub(repos(content)) as server:
        server.pause_s = 0.001
        with pytest.raises(JobCancelled):
            pull(server, tmp_path, control=control)
        server.pause_s = 0.0
        assert pull(server, tmp_path).path.read_bytes() == content
        assert int(server.ranges[-1].strip("bytes=-")) > 2 * MIB


@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_a_cancelled_pull_of_a_folder_goes_on_at_any_point(
    tmp_path: Path, folder_files: dict[str, bytes], share: float
) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage.startswith("Downloading") and (progress.fraction or 0) >= share:
            control.cancel()

    control = JobControl(stop)
    with serving_hub({FOLDER_NAME: Repo(folder_files)}) as server:
        server.pause_s, server.arrived = 0.003, lambda: bytes_in(tmp_path)
        with pytest.raises(JobCancelled):
            pull(server, tmp_path, FOLDER_NAME, control=control)
        server.pause_s, server.arrived = 0.0, None
        assert HubCache(tmp_path).models() == []
        pulled = pull(server, tmp_path, FOLDER_NAME)
        assert_folder(pulled.path, folder_files)
        # What was on its way when it was cancelled.
        assert server.num_bytes_sent < 1.2 * pulled.variant.size_bytes


def test_a_new_commit_shares_what_is_the_same(
    tmp_path: Path, folder_files: dict[str, bytes]
) -> None:
    repo = Repo(dict(folder_files))
    with serving_hub({FOLDER_NAME: repo}) as server:
        pull(server, tmp_path, FOLDER_NAME)
        repo.commit, server.num_bytes_sent = "b" * 40, 0
        repo.files["generation_config.json"] = b'{"eos_token_id": 2}'
        server.requested.clear()
        pulled = pull(server, tmp_path, FOLDER_NAME)
        assert_folder(pulled.path, repo.files)
        # The headers are looked at again, by commit; of the rest but what is new.
        assert server.requested.count("generation_config.json") == 1
        assert "tokenizer.json" not in server.requested
    assert (tmp_path / "models--acme--Tiny-1B" / "refs" / "main").read_text() == "b" * 40


def test_what_is_damaged_of_a_model_that_is_here_is_fetched_anew(
    tmp_path: Path, folder_files: dict[str, bytes]
) -> None:
    with serving_hub({FOLDER_NAME: Repo(folder_files)}) as server:
        pulled = pull(server, tmp_path, FOLDER_NAME)
        damaged = (pulled.path / SHARDS[2]).resolve()
        damaged.write_bytes(bytes(damaged.stat().st_size))
        server.requested.clear()
        assert_folder(pull(server, tmp_path, FOLDER_NAME).path, folder_files)
        assert SHARDS[2] in server.requested


def test_two_at_once_download_once(tmp_path: Path, folder_files: dict[str, bytes]) -> None:
    begun, waits = threading.Event(), threading.Event()
    waiting = f"Waiting for another Octavo that fetches {FOLDER_NAME}"

    def first_progress(progress: Progress) -> None:
        if progress.stage.startswith("Downloading"):
            begun.set()
            assert waits.wait(60), "the second was to come meanwhile"

    def second_progress(progress: Progress) -> None:
        if progress.stage == waiting:
            waits.set()

    with serving_hub({FOLDER_NAME: Repo(folder_files)}) as server:
        control = JobControl(first_progress)
        first = threading.Thread(
            target=pull, args=(server, tmp_path, FOLDER_NAME), kwargs={"control": control}
        )
        first.start()
        assert begun.wait(60)
        control = JobControl(second_progress)
        pulled = pull(server, tmp_path, FOLDER_NAME, control=control)
        first.join(60)
        assert server.num_bytes_sent == pulled.variant.size_bytes
    assert waits.is_set()


def test_a_gated_model(tmp_path: Path, content: bytes) -> None:
    with serving_hub(repos(content, gated=True)) as server:
        with pytest.raises(DownloadError, match=r"gated: .*settings or \$HF_TOKEN"):
            pull(server, tmp_path)
        with pytest.raises(DownloadError, match=r"gated, and the account of the token has no"):
            pull(server, tmp_path, token="hf_other")
        assert server.num_bytes_sent == 0
        assert pull(server, tmp_path, token=TOKEN).path.read_bytes() == content


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    tmp_path: Path, folder_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=MIB))
    with (
        serving_hub({FOLDER_NAME: Repo(folder_files)}) as server,
        pytest.raises(StorageError, match=r"needs .* MiB in .*1.0 MiB are free.*Make "),
    ):
        pull(server, tmp_path, FOLDER_NAME)
    assert server.num_bytes_sent == 0


def test_offline_by_the_settings(tmp_path: Path, content: bytes) -> None:
    with serving_hub(repos(content)) as server:
        repository = HuggingFace(server.url).repository(HubAddress(NAME))
        offline = HuggingFace(server.url, is_offline=True)
        (variant,) = repository.variants
        with pytest.raises(DownloadError, match="offline by its settings"):
            pull_variant(
                offline,
                repository,
                variant,
                HubCache(tmp_path),
                JobControl(),
                check=lambda header: None,
            )
    assert server.num_bytes_sent == 0

"""The cache as `huggingface_hub` itself sees it, in both directions."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

from octavo.errors import StorageError
from octavo.hub import hugging_face
from octavo.hub.file_lock import file_lock
from octavo.hub.hub_cache import HubCache, default_hub_cache_dir
from octavo.hub.hub_files import HubAddress
from octavo.hub.hugging_face import HuggingFace
from tests.hub.hub_server import COMMIT, HubServer, Repo, etag, serving_hub
from tests.hub.pulling import pull_model

NAME = "acme/Tiny"
OTHER_COMMIT = "b" * 40


@pytest.fixture
def repo() -> Repo:
    return Repo(
        {
            "README.md": b"# Tiny",
            "config.json": b'{"model_type": "llama"}',
            "model.safetensors": b"w" * 5000,
            "tiny-Q4_0.gguf": b"4" * 3000,
            "tiny-Q8_0.gguf": b"8" * 4000,
        }
    )


@pytest.fixture
def hub(repo: Repo) -> Iterator[HubServer]:
    with serving_hub({NAME: repo}) as server:
        yield server


@pytest.fixture
def pull(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Pulls a variant; these files are no models, so nobody looks into them."""
    monkeypatch.setattr("octavo.hub.hub_pull.inspect_variant", lambda *given, **options: None)

    def pull(quant: str, revision: str = "main") -> Path:
        address = HubAddress(NAME, quant, revision)
        return pull_model(HuggingFace(hub.url), address, HubCache(tmp_path)).path

    return pull


def theirs(server: HubServer, cache: Path, file: str, **options: Any) -> Path:
    """`huggingface_hub`'s own download."""
    return Path(
        hf_hub_download(NAME, file, cache_dir=cache, endpoint=server.url, token=False, **options)
    )


def test_the_library_finds_offline_what_octavo_pulled(
    tmp_path: Path, hub: HubServer, repo: Repo, pull: Callable[..., Path]
) -> None:
    file, folder = pull("Q4_0"), pull("safetensors")
    hub.status = 503
    for name in ("tiny-Q4_0.gguf", "config.json", "model.safetensors"):
        found = theirs(hub, tmp_path, name, local_files_only=True)
        assert found.read_bytes() == repo.files[name]
    assert snapshot_download(NAME, cache_dir=tmp_path, local_files_only=True) == str(folder)
    assert file.parent == folder
    scan = scan_cache_dir(tmp_path)
    assert scan.warnings == []
    (listed,) = scan.repos
    assert (listed.repo_id, listed.size_on_disk) == (NAME, 3000 + 5000 + 23)
    (revision,) = listed.revisions
    assert (revision.commit_hash, revision.refs) == (COMMIT, frozenset({"main"}))
    blobs = {path.name for path in (tmp_path / "models--acme--Tiny" / "blobs").iterdir()}
    assert blobs == {etag(repo, name) for name in repo.files if "Q8" not in name} - {
        etag(repo, "README.md")
    }


def test_octavo_lists_and_takes_over_what_the_library_fetched(
    tmp_path: Path, hub: HubServer, pull: Callable[..., Path]
) -> None:
    for name in ("config.json", "model.safetensors", "tiny-Q4_0.gguf", "README.md"):
        theirs(hub, tmp_path, name)
    models = HubCache(tmp_path).models()
    assert [(model.label, model.repository, model.size_bytes) for model in models] == [
        ("Q4_0", NAME, 3000),
        ("safetensors", NAME, 5023),
    ]
    hub.num_bytes_sent = 0
    assert [pull("Q4_0"), pull("safetensors")] == [model.path for model in models]
    assert hub.num_bytes_sent == 0


def test_a_download_under_way_is_no_damage_to_the_library(tmp_path: Path) -> None:
    cache = HubCache(tmp_path)
    part = cache.prepare(NAME, "q/Tiny-Q4_0.gguf") / "abc.part"
    part.write_bytes(b"12345")
    assert scan_cache_dir(tmp_path).warnings == []
    assert cache.models() == []
    assert cache.discard_download(NAME, "Q8_0") == 0
    assert part.exists()
    assert cache.discard_download(NAME, "q/Tiny-Q4_0.gguf") == 5
    assert not (tmp_path / "models--acme--Tiny").exists()


def test_removing_one_model_leaves_the_others(
    tmp_path: Path, hub: HubServer, pull: Callable[..., Path]
) -> None:
    theirs(hub, tmp_path, "README.md")
    first, second, folder = pull("Q4_0"), pull("Q8_0"), pull("safetensors")
    cache = HubCache(tmp_path)
    assert cache.remove(first) == 3000
    assert not first.is_symlink()
    assert [model.path for model in cache.models()] == [second, folder]
    assert cache.remove(folder) == 5023
    assert [model.path for model in cache.models()] == [second]
    assert (folder / "README.md").exists()
    assert scan_cache_dir(tmp_path).warnings == []
    # With the last model the rest of the repository goes.
    assert cache.remove(second) == 4006
    assert not (tmp_path / "models--acme--Tiny").exists()
    assert scan_cache_dir(tmp_path).repos == frozenset()


def test_contents_that_another_commit_uses_stay(
    tmp_path: Path, hub: HubServer, repo: Repo, pull: Callable[..., Path]
) -> None:
    old = pull("safetensors")
    repo.commit = OTHER_COMMIT
    repo.files["model.safetensors"] = b"W" * 6000
    new = pull("safetensors")
    assert new != old
    # config.json is the same in both.
    assert HubCache(tmp_path).remove(old) == 5000
    assert not old.exists()
    assert (new / "config.json").read_bytes() == repo.files["config.json"]
    assert HubCache(tmp_path).remove(new) == 6023


def test_a_model_that_two_commits_share_is_listed_once_and_goes_from_both(
    tmp_path: Path, hub: HubServer, repo: Repo, pull: Callable[..., Path]
) -> None:
    old = pull("Q4_0")
    os.utime(old.parent, (1, 1))
    repo.commit = OTHER_COMMIT
    new = pull("Q4_0")
    cache = HubCache(tmp_path)
    assert [model.path for model in cache.models()] == [new]
    assert cache.remove(new) == 3000
    assert not old.is_symlink()
    assert cache.models() == []


def test_weights_of_another_format_are_not_touched(
    tmp_path: Path, hub: HubServer, repo: Repo, pull: Callable[..., Path]
) -> None:
    repo.files["pytorch_model.bin"] = b"p" * 7000
    pickle = theirs(hub, tmp_path, "pytorch_model.bin")
    folder = pull("safetensors")
    assert HubCache(tmp_path).remove(folder) == 5000
    assert pickle.read_bytes() == b"p" * 7000
    # Its small files are the pickle's, too.
    assert (folder / "config.json").exists()


def test_a_content_that_another_program_is_about_to_use_stays(
    tmp_path: Path, pull: Callable[..., Path]
) -> None:
    path = pull("Q4_0")
    blob = path.resolve()
    cache = HubCache(tmp_path)
    with file_lock(cache.lock_path(NAME, blob.name), pytest.fail):
        assert cache.remove(path) == 0
    assert blob.exists()


def test_the_library_and_octavo_wait_for_each_other(
    tmp_path: Path, hub: HubServer, pull: Callable[..., Path]
) -> None:
    hub.pause_s = 0.3
    first = threading.Thread(target=theirs, args=(hub, tmp_path, "tiny-Q8_0.gguf"))
    first.start()
    while not hub.requested:
        pass
    pull("Q8_0")
    first.join(60)
    assert hub.requested == ["tiny-Q8_0.gguf"]


@pytest.mark.parametrize("path", ["", "..", "models--acme--Tiny", "models--acme--Tiny/blobs", "x"])
def test_what_is_no_model_of_the_cache_is_not_deleted(
    tmp_path: Path, path: str, pull: Callable[..., Path]
) -> None:
    model = pull("Q4_0")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.gguf"
    outside.write_bytes(b"mine")
    for wrong in (tmp_path / path, outside, model.parent / ".." / ".." / path):
        with pytest.raises(StorageError, match="no model of the hub cache"):
            HubCache(tmp_path).remove(wrong)
    assert model.exists()
    assert outside.exists()


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_where_the_file_system_has_no_links(
    tmp_path: Path,
    hub: HubServer,
    pull: Callable[..., Path],
    has_hard_links: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    if not has_hard_links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder, file = pull("safetensors"), pull("Q4_0")
    cache = HubCache(tmp_path)
    assert not file.is_symlink()
    assert theirs(hub, tmp_path, "tiny-Q4_0.gguf", local_files_only=True) == file
    assert len(cache.models()) == 2
    hub.num_bytes_sent = 0
    assert pull("safetensors") == folder
    assert hub.num_bytes_sent == 0
    assert cache.remove(folder) == 5023
    assert cache.remove(file) == 3000
    assert not list(tmp_path.glob("models--*"))


def test_contents_of_the_librarys_shared_store(
    tmp_path: Path, pull: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull("Q4_0")
    blob, shared = path.resolve(), tmp_path / "blobs" / "ab" / "content"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    collected: list[Path] = []

    def collect(content: Path, cache: Path) -> int:
        collected.append(content)
        return content.stat().st_size

    monkeypatch.setattr(hugging_face, "collect_shared_content", collect)
    assert len(HubCache(tmp_path).models()) == 1
    assert HubCache(tmp_path).remove(path) == 3000
    assert collected == [shared]
    assert not blob.is_symlink()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "~/hf"}, "home/hf/hub"),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old"}, "/new"),
    ],
)
def test_the_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_hub_cache_dir() == tmp_path / expected


def test_the_shared_stores_sweeper_is_still_there() -> None:
    """It is not public; without it deleting frees less, see `collect_shared_content`."""
    assert hasattr(huggingface_hub.utils._shared_blobs, "sweep_shared_blob")

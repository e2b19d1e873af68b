"""A hub's cache in the library: names, newest commit, strangers' models, and deleting."""

import os
import shutil
from pathlib import Path

import pytest

from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.checkpoint_parts import read_model_config
from octavo.hub.library import ModelLibrary
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_folders import write_model_folder

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def library(tmp_path: Path, cache: Path) -> ModelLibrary:
    return ModelLibrary(
        lambda: [tmp_path / "models"], hub_caches=lambda: [cache], check=read_model_config
    )


def put(cache: Path, repository: str, name: str, content: bytes, commit: str = NEW) -> Path:
    """Puts a file there as `huggingface_hub` does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    blob = folder / "blobs" / f"{hash(content):x}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    entry = folder / "snapshots" / commit / name
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.symlink_to(os.path.relpath(blob, entry.parent))
    ref = folder / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    ref.write_text(commit)
    return entry


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return write_tiny_llama(path, name="Tiny Llama").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "tiny"
    write_model_folder(folder, max_shard_size="40KB")
    return folder


def put_folder(cache: Path, repository: str, folder: Path) -> Path:
    for file in sorted(folder.iterdir()):
        put(cache, repository, file.name, file.read_bytes())
    return cache / f"models--{repository.replace('/', '--')}" / "snapshots" / NEW


def test_models_are_named_by_their_repository_and_quantisation(
    library: ModelLibrary, cache: Path, tiny: bytes, folder: Path
) -> None:
    gguf = put(cache, "acme/Tiny-GGUF", "some-Q8_0.gguf", tiny)
    snapshot = put_folder(cache, "acme/Tiny-1B", folder)
    models = {model.name: model for model in library.scan()}
    assert set(models) == {"tiny-q8_0", "tiny-1b"}
    assert models["tiny-q8_0"].path == gguf
    assert models["tiny-q8_0"].repository == "acme/Tiny-GGUF"
    assert models["tiny-q8_0"].title == "Tiny Llama"
    assert models["tiny-1b"].path == snapshot
    assert (models["tiny-1b"].title, models["tiny-1b"].problem) == ("Tiny-1B", "")
    assert library.find("acme/tiny-gguf") == models["tiny-q8_0"]
    assert library.find("acme/Tiny-GGUF:Q8_0") == models["tiny-q8_0"]
    assert library.problems == []


def test_a_missing_cache_is_no_problem(library: ModelLibrary) -> None:
    assert library.scan() == []
    assert library.problems == []


def test_one_content_in_two_commits_is_shown_once(
    library: ModelLibrary, cache: Path, tiny: bytes
) -> None:
    put(cache, "acme/Tiny-GGUF", "tiny-Q8_0.gguf", tiny, OLD)
    newest = put(cache, "acme/Tiny-GGUF", "tiny-Q8_0.gguf", tiny, NEW)
    os.utime(newest.parent.parent / OLD, (1, 1))
    assert [model.path for model in library.scan()] == [newest]


def test_a_snapshot_that_is_not_all_there_is_skipped(
    library: ModelLibrary, cache: Path, folder: Path
) -> None:
    snapshot = put_folder(cache, "acme/Tiny-1B", folder)
    shards = sorted(snapshot.glob("*.safetensors"))
    assert len(shards) > 1
    target = shards[0].readlink()
    shards[0].unlink()
    assert library.scan() == []
    shards[0].symlink_to(target)
    assert len(library.scan()) == 1
    shards[-1].resolve().unlink()
    assert library.scan() == []


def test_a_cache_inside_a_folder_is_seen_as_one(tmp_path: Path, cache: Path, tiny: bytes) -> None:
    put(cache, "acme/Tiny-GGUF", "tiny-Q8_0.gguf", tiny)
    library = ModelLibrary(lambda: [tmp_path], hub_caches=lambda: [cache])
    (model,) = library.scan()
    assert model.repository == "acme/Tiny-GGUF"


def test_headers_of_a_cache_are_read_once(cache: Path, tiny: bytes) -> None:
    read: list[Path] = []

    def check(header: CheckpointHeader) -> None:
        read.append(header.path)

    put(cache, "acme/Tiny-GGUF", "tiny-Q8_0.gguf", tiny)
    library = ModelLibrary(lambda: [cache.parent / "m"], hub_caches=lambda: [cache], check=check)
    for _ in range(3):
        library.scan()
    assert len(read) == 1


def test_removing_frees_the_content_and_spares_what_another_model_uses(
    library: ModelLibrary, cache: Path, tiny: bytes
) -> None:
    entry = put(cache, "acme/Tiny-GGUF", "tiny-Q8_0.gguf", tiny)
    other = put(cache, "acme/Tiny-GGUF", "tiny-Q4_0.gguf", tiny + b"\0" * 32)
    model = library.find("acme/Tiny-GGUF:Q8_0")
    assert library.remove(model) == len(tiny)
    assert not entry.is_symlink()
    assert other.is_file()
    assert [model.name for model in library.scan()] == ["tiny-q4_0"]


def test_parts_of_a_split_model_are_one_line_and_go_together(tmp_path: Path, tiny: bytes) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for number in (1, 2, 3):
        (models / f"big-{number:05}-of-00003.gguf").write_bytes(tiny)
    library = ModelLibrary(lambda: [models])
    (model,) = library.scan()
    assert model.path.name == "big-00001-of-00003.gguf"
    assert model.size_bytes == 3 * len(tiny)
    library.remove(model)
    assert list(models.iterdir()) == []
    shutil.rmtree(models)

"""Model folders in the library: listed, found, and deleted without touching anything else."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.engine.checkpoint_parts import read_model_config
from octavo.errors import ModelNotFoundError, StorageError
from octavo.hub.library import ModelLibrary
from tests.support.gguf_files import write_tiny_llama
from tests.support.model_folders import change_json, write_model_folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "tiny"
    write_model_folder(folder, max_shard_size="40KB")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    models.mkdir()
    return models


@pytest.fixture
def library(folder: Path) -> ModelLibrary:
    return ModelLibrary(lambda: [folder], check=read_model_config)


@pytest.fixture
def model(folder: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, folder / "org" / "Tiny-1.5B.v2"))


def test_a_folder_is_listed_as_one_model(library: ModelLibrary, folder: Path, model: Path) -> None:
    write_tiny_llama(model / "quantised.Q8_0.gguf")
    file, listed = library.scan()
    assert file.name == "quantised-q8_0"
    assert (listed.name, listed.title, listed.path) == ("tiny-1.5b.v2", "Tiny-1.5B.v2", model)
    assert listed.size_bytes == sum(file.stat().st_size for file in model.iterdir())
    assert (listed.architecture, listed.quantization) == ("llama", "F32")
    assert listed.context_length == 256
    assert listed.num_parameters > 0
    assert listed.problem == ""


def test_folders_without_both_are_no_models(library: ModelLibrary, folder: Path) -> None:
    for name, file in (("a", "config.json"), ("b", "x.safetensors"), ("c", "tokenizer.json")):
        (folder / name).mkdir()
        (folder / name / file).write_text("{}")
    assert library.scan() == []


def test_problems_are_listed_and_go_when_a_file_changes(library: ModelLibrary, model: Path) -> None:
    shard = sorted(model.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    (listed,) = library.scan()
    assert f"{shard.name} is incomplete" in listed.problem
    shard.unlink()
    (listed,) = library.scan()
    assert f"the file {shard.name} with" in listed.problem
    shard.write_bytes(content)
    assert library.scan()[0].problem == ""
    change_json(model / "config.json", quantization_config={"quant_method": "gptq"})
    assert "gptq" in library.scan()[0].problem
    (model / "config.json").write_text("{")
    assert "no valid JSON" in library.scan()[0].problem


def test_found_by_name_and_path(
    library: ModelLibrary,
    model: Path,
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert library.find("Tiny-1.5B.v2").path == model
    assert library.find("tiny-1.5").path == model
    assert library.find(str(model)).name == "tiny-1.5b.v2"
    assert library.find(str(original)).title == "tiny"
    monkeypatch.chdir(original)
    assert library.find(".").path == original
    with pytest.raises(ModelNotFoundError, match=r"is a folder.*has no config\.json"):
        library.find(str(tmp_path))


def test_a_folder_of_pickles_says_why(library: ModelLibrary, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "run any program" in library.find(str(tmp_path)).problem


def test_remove_deletes_the_folder(library: ModelLibrary, folder: Path, model: Path) -> None:
    (model / "README.md").write_text("# Tiny")
    (model / ".gitattributes").write_text("")
    (listed,) = library.scan()
    assert library.remove(listed) >= listed.size_bytes - 10
    assert not model.exists()
    assert (folder / "org").is_dir()
    assert library.remove(listed) == 0


def test_remove_leaves_what_is_not_the_models(library: ModelLibrary, model: Path) -> None:
    (model / "README.md").write_text("my notes")
    (model / "thesis.txt").write_text("mine")
    (model / "deeper.safetensors").mkdir()
    (model / "deeper.safetensors" / "tokenizer.json").write_text("{}")
    library.remove(library.scan()[0])
    assert sorted(str(path.relative_to(model)) for path in model.rglob("*")) == [
        "README.md",
        "deeper.safetensors",
        "deeper.safetensors/tokenizer.json",
        "thesis.txt",
    ]
    assert library.scan() == []


def test_remove_follows_no_links(
    library: ModelLibrary, folder: Path, model: Path, tmp_path: Path
) -> None:
    blob = tmp_path / "blob"
    (model / "tokenizer.json").rename(blob)
    (model / "tokenizer.json").symlink_to(blob)
    library.remove(library.scan()[0])
    assert blob.exists()
    assert not model.exists()


def test_remove_takes_the_link_to_a_folder(
    library: ModelLibrary, folder: Path, original: Path
) -> None:
    before = sorted(original.iterdir())
    (folder / "link").symlink_to(original)
    assert library.remove(library.find("link")) == 0
    assert list(folder.iterdir()) == []
    assert sorted(original.iterdir()) == before


def test_remove_keeps_the_librarys_own_folder(tmp_path: Path, original: Path) -> None:
    root = Path(shutil.copytree(original, tmp_path / "root"))
    library = ModelLibrary(lambda: [root])
    library.remove(library.scan()[0])
    assert root.is_dir()
    assert list(root.iterdir()) == []


def test_remove_refuses_what_lies_elsewhere(
    library: ModelLibrary, folder: Path, model: Path, original: Path, tmp_path: Path
) -> None:
    outside = Path(shutil.copytree(original, tmp_path / "outside"))
    inner = folder / "inner"
    inner.mkdir()
    (inner / "notes.txt").write_text("mine")
    (folder / "way-out").symlink_to(tmp_path)
    listed = library.find(str(outside))
    shutil.copy(outside / "config.json", tmp_path / "config.json")
    for path in (
        outside,
        folder / "..",
        folder / ".." / "outside",
        folder / "way-out" / "outside",
        inner,
        inner / "notes.txt",
    ):
        with pytest.raises(StorageError, match="outside the library"):
            library.remove(replace(listed, path=path))
    assert len(list(outside.iterdir())) == len(list(original.iterdir()))
    assert (inner / "notes.txt").exists()
    assert (tmp_path / "config.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may delete everything")
def test_what_cannot_be_deleted_can_be_tried_again(library: ModelLibrary, model: Path) -> None:
    model.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="cannot be deleted"):
            library.remove(library.scan()[0])
    finally:
        model.chmod(0o700)
    assert len(library.scan()) == 1

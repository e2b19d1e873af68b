"""Importing by link: checked first, never twice, and taken away without the model."""

import shutil
from pathlib import Path

import pytest

from octavo.engine.checkpoint_parts import read_model_config
from octavo.errors import CheckpointError, ModelNotFoundError, StorageError, UnsupportedModelError
from octavo.hub.library import ModelLibrary
from octavo.hub.model_import import LinkKind, ModelImport, import_model
from octavo.hub.model_removal import link_target
from tests.support.gguf_files import write_gguf, write_tiny_llama
from tests.support.model_folders import write_model_folder


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return write_tiny_llama(tmp_path / "elsewhere" / "Tiny.gguf")


def take(source: Path, models_dir: Path) -> ModelImport:
    return import_model(source, models_dir, check=read_model_config)


def test_a_file_is_linked_listed_and_removed_without_the_model(
    tiny: Path, models_dir: Path
) -> None:
    done = take(tiny, models_dir)
    assert (done.path, done.kind) == (models_dir / "Tiny.gguf", LinkKind.SYMLINK)
    library = ModelLibrary(lambda: [models_dir])
    (model,) = library.scan()
    assert (model.name, model.problem) == ("tiny", "")
    assert library.find_at(tiny) == model
    assert link_target(model.path) == tiny
    assert library.remove(model) == 0
    assert library.scan() == []
    assert tiny.is_file()


def test_a_folder_is_linked(tmp_path: Path, models_dir: Path) -> None:
    folder = tmp_path / "Tiny-1B"
    write_model_folder(folder)
    done = take(folder, models_dir)
    library = ModelLibrary(lambda: [models_dir])
    (model,) = library.scan()
    assert (model.name, model.path) == ("tiny-1b", done.path)
    library.remove(model)
    assert (folder / "config.json").is_file()
    assert not done.path.is_symlink()


def test_imported_twice_it_is_there_once(tiny: Path, models_dir: Path) -> None:
    take(tiny, models_dir)
    again = take(tiny, models_dir)
    assert again.was_here
    assert len(list(models_dir.iterdir())) == 1


def test_another_model_of_the_same_name_goes_beside(tiny: Path, models_dir: Path) -> None:
    other = tiny.parent / "other" / "Tiny.gguf"
    other.parent.mkdir()
    write_tiny_llama(other, name="Other")
    take(tiny, models_dir)
    assert take(other, models_dir).path == models_dir / "imported-2" / "Tiny.gguf"
    assert take(other, models_dir).was_here
    names = [model.name for model in ModelLibrary(lambda: [models_dir]).scan()]
    assert names == ["tiny", "tiny-2"]


def test_what_is_damaged_or_not_run_is_refused_and_nothing_is_made(
    tmp_path: Path, tiny: Path, models_dir: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:2000])
    foreign = write_gguf(tmp_path / "foreign.gguf", {"general.architecture": "mamba9"}, {})
    with pytest.raises(CheckpointError):
        take(cut, models_dir)
    with pytest.raises(UnsupportedModelError, match="mamba9"):
        take(foreign, models_dir)
    assert not models_dir.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone.gguf", "There is nothing at"), ("notes.txt", "no GGUF file"), ("", "no config.json")],
)
def test_what_is_no_model_is_said(tmp_path: Path, models_dir: Path, name: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelNotFoundError, match=words):
        take(tmp_path / name, models_dir)


def no_symlinks(self: Path, target: object, target_is_directory: bool = False) -> None:
    raise OSError("A required privilege is not held by the client")


def test_without_symlinks_files_get_a_second_name(
    tmp_path: Path, tiny: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "symlink_to", no_symlinks)
    done = take(tiny, models_dir)
    assert (done.kind, done.path.samefile(tiny)) == (LinkKind.HARD_LINK, True)
    assert take(tiny, models_dir).was_here
    folder = tmp_path / "Tiny-1B"
    write_model_folder(folder)
    assert take(folder, models_dir).kind is LinkKind.HARD_LINK
    library = ModelLibrary(lambda: [models_dir])
    assert [library.remove(model) for model in library.scan()] == [0, 0]
    assert tiny.is_file()
    assert (folder / "config.json").is_file()


def test_on_another_drive_without_links_it_is_copied_and_a_failure_leaves_nothing(
    tiny: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(self: Path, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "symlink_to", no_symlinks)
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    done = take(tiny, models_dir)
    assert done.kind is LinkKind.COPY
    assert done.path.read_bytes() == tiny.read_bytes()
    done.path.unlink()

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(StorageError, match="full"):
        take(tiny, models_dir)
    assert not any(models_dir.iterdir())

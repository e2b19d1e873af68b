import os
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.checkpoint.header import CheckpointHeader
from octavo.errors import ModelNotFoundError, StorageError, UnsupportedModelError
from octavo.hub.library import ModelLibrary
from tests.hub.wheels import make_wheel
from tests.support.gguf_files import write_tiny_llama

STARTER = make_wheel(1000).entry


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A complete little model file."""
    path = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", name="Tiny Llama")
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    models.mkdir()
    return models


@pytest.fixture
def library(folder: Path) -> ModelLibrary:
    return ModelLibrary(lambda: [folder], starter=STARTER)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_header_tells_what_a_model_is(library: ModelLibrary, folder: Path, tiny: bytes) -> None:
    path = put(folder / "Tiny-Llama.Q8_0.gguf", tiny)
    (model,) = library.scan()
    assert model.path == path
    assert model.name == "tiny-llama-q8_0"
    assert model.title == "Tiny Llama"
    assert model.size_bytes == len(tiny)
    assert model.architecture == "llama"
    assert model.context_length == 256
    assert model.num_parameters > 0
    assert model.problem == ""
    assert library.problems == []


def test_broken_files_are_listed_and_hide_none(
    library: ModelLibrary, folder: Path, tiny: bytes
) -> None:
    put(folder / "a-empty.gguf", b"")
    put(folder / "b-garbage.gguf", b"<html>Not found</html>" * 100)
    put(folder / "c-cut.gguf", tiny[:2000])
    put(folder / "d-whole.gguf", tiny)
    (folder / "e-nowhere.gguf").symlink_to(folder / "gone")
    models = library.scan()
    assert [(model.name, bool(model.problem)) for model in models] == [
        ("a-empty", True),
        ("b-garbage", True),
        ("c-cut", True),
        ("d-whole", False),
    ]
    assert len(library.problems) == 1
    assert "e-nowhere.gguf cannot be read" in library.problems[0]


def test_a_model_the_engine_cannot_run_is_listed_with_the_reason(folder: Path, tiny: bytes) -> None:
    put(folder / "tiny.gguf", tiny)

    def refuse(header: CheckpointHeader) -> None:
        raise UnsupportedModelError(f"{header.architecture} is not run.", hint="Take another.")

    (model,) = ModelLibrary(lambda: [folder], check=refuse).scan()
    assert model.problem == "llama is not run. Take another."
    assert model.architecture == "llama"


def test_folders_below_are_searched_without_running_in_circles(
    library: ModelLibrary, folder: Path, tiny: bytes
) -> None:
    put(folder / "family" / "size" / "deep.GGUF", tiny)
    put(folder / ".hidden" / "no.gguf", tiny)
    put(folder / "a/b/c/d/e/f/g/too-deep.gguf", tiny)
    put(folder / "notes.txt", b"")
    (folder / "family" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "family")
    (folder / "z-link.gguf").symlink_to(folder / "family" / "size" / "deep.GGUF")
    assert [model.name for model in library.scan()] == ["deep"]


def test_two_files_of_one_name_get_two_names(tmp_path: Path, tiny: bytes) -> None:
    first = put(tmp_path / "b" / "Tiny.gguf", tiny)
    second = put(tmp_path / "a" / "tiny.gguf", tiny)
    library = ModelLibrary(lambda: [tmp_path / "b", tmp_path / "a"])
    assert [(model.name, model.path) for model in library.scan()] == [
        ("tiny", first),
        ("tiny-2", second),
    ]


def test_a_folder_that_vanishes_leaves_its_models_greyed(tmp_path: Path, tiny: bytes) -> None:
    put(tmp_path / "home" / "here.gguf", tiny)
    put(tmp_path / "drive" / "there.gguf", tiny)
    library = ModelLibrary(lambda: [tmp_path / "home", tmp_path / "drive"])
    before = library.scan()
    (tmp_path / "drive").rename(tmp_path / "unplugged")
    here, there = library.scan()
    assert here.problem == ""
    assert "is missing" in there.problem
    assert library.problems == [there.problem]
    (tmp_path / "unplugged").rename(tmp_path / "drive")
    assert library.scan() == before
    assert library.problems == []


def test_the_default_folder_may_not_exist_yet_and_others_must(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    library = ModelLibrary(lambda: [tmp_path / n for n in ("default", "missing", "file")])
    assert library.scan() == []
    missing, file = library.problems
    assert str(tmp_path / "missing") in missing
    assert "is a file" in file


def test_a_header_is_read_once_for_each_version(folder: Path, tiny: bytes, tmp_path: Path) -> None:
    headers: list[CheckpointHeader] = []
    library = ModelLibrary(lambda: [folder], check=headers.append)
    path = put(folder / "tiny.gguf", tiny)
    library.scan()
    library.scan()
    assert len(headers) == 1
    os.utime(path, (1, 1))
    library.scan()
    assert len(headers) == 2


@pytest.mark.parametrize(
    "wanted",
    ["big-llama-q4_k_m", "Big-Llama.Q4_K_M", "big-llama.q4_k_m.gguf", "big", "other title"],
)
def test_found_by_name_title_and_beginning(
    library: ModelLibrary, folder: Path, tmp_path: Path, tiny: bytes, wanted: str
) -> None:
    write_tiny_llama(folder / "Big-Llama.Q4_K_M.gguf", name="Other Title")
    put(folder / "small.gguf", tiny)
    assert library.find(wanted).name == "big-llama-q4_k_m"


def test_found_by_path_inside_and_outside_the_folders(
    library: ModelLibrary,
    folder: Path,
    tmp_path: Path,
    tiny: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = put(folder / "in.gguf", tiny)
    outside = put(tmp_path / "out.gguf", tiny)
    assert library.find(str(inside)).name == "in"
    assert library.find(str(outside)).path == outside
    monkeypatch.chdir(tmp_path)
    assert library.find("out.gguf").path == outside
    assert [model.name for model in library.scan()] == ["in"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("llama-1x", "Nearest: llama-1b-q4_0, llama-3b-q4_0. `octavo list` shows all."),
        ("lam", "Nearest: llama-1b-q4_0, llama-3b-q4_0"),
        ("llama", "fits 2 models: llama-1b-q4_0, llama-3b-q4_0"),
        ("zzz", "No model named 'zzz' is in the library. `octavo list`"),
        ("./llama-1b.gguf", "There is no file at llama-1b.gguf"),
        ("starter", "`octavo pull starter` fetches it"),
        ("start", "Nearest: starter"),
        ("x" * 5000, "cannot be looked at"),
        ("", "No model named ''"),
    ],
)
def test_what_is_not_found_says_what_to_do(
    library: ModelLibrary, folder: Path, tiny: bytes, wanted: str, words: str
) -> None:
    put(folder / "llama-1b.Q4_0.gguf", tiny)
    put(folder / "llama-3b.Q4_0.gguf", tiny)
    with pytest.raises(ModelNotFoundError) as caught:
        library.find(wanted)
    assert words in str(caught.value)


def test_a_folder_is_no_model(library: ModelLibrary, folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a folder"):
        library.find(str(folder))


def test_an_empty_library_names_the_first_step(library: ModelLibrary) -> None:
    with pytest.raises(ModelNotFoundError, match="`octavo pull starter`"):
        library.find("anything")


def test_the_starter_is_found_by_its_file_and_size(folder: Path, tiny: bytes) -> None:
    library = ModelLibrary(lambda: [folder], starter=replace(STARTER, size_bytes=len(tiny)))
    put(folder / STARTER.file_name, tiny[:-1])
    with pytest.raises(ModelNotFoundError):
        library.find("starter")
    put(folder / STARTER.file_name, tiny)
    assert library.find("starter").title == STARTER.title


def test_what_was_made_of_the_starter_is_called_like_it(folder: Path, tiny: bytes) -> None:
    starter = replace(STARTER, header_title="Tiny Llama")
    (folder / "made-of-it.gguf").write_bytes(tiny)
    assert ModelLibrary(lambda: [folder]).find("made-of-it").title == "Tiny Llama"
    library = ModelLibrary(lambda: [folder], starter=starter)
    assert library.find("made-of-it").title == STARTER.title


def test_remove_frees_the_file_and_tells(library: ModelLibrary, folder: Path, tiny: bytes) -> None:
    path = put(folder / "tiny.gguf", tiny)
    told: list[None] = []
    library.changed.connect(told.append)
    (model,) = library.scan()
    assert library.remove(model) == len(tiny)
    assert not path.exists()
    assert told == [None]
    assert library.scan() == []
    assert library.remove(model) == 0


def test_remove_takes_along_what_is_kept_elsewhere(folder: Path, tiny: bytes) -> None:
    (folder / "m.gguf").write_bytes(tiny)
    kept = {folder / "m.gguf": 7}
    library = ModelLibrary(lambda: [folder], forget=lambda path: kept.pop(path))
    assert library.remove(library.find("m")) == len(tiny) + 7
    assert not kept


def test_remove_takes_the_link_and_leaves_what_it_points_to(
    library: ModelLibrary, folder: Path, tmp_path: Path, tiny: bytes
) -> None:
    elsewhere = put(tmp_path / "elsewhere.gguf", tiny)
    (folder / "link.gguf").symlink_to(elsewhere)
    assert library.remove(library.find("link")) == 0
    assert elsewhere.exists()
    assert list(folder.iterdir()) == []


def test_remove_refuses_what_lies_elsewhere(
    library: ModelLibrary, folder: Path, tmp_path: Path, tiny: bytes
) -> None:
    outside = put(tmp_path / "out.gguf", tiny)
    (folder / "way-out").symlink_to(tmp_path)
    put(folder / "notes.txt", b"mine")
    model = library.find(str(outside))
    for path in (
        outside,
        folder / ".." / "out.gguf",
        folder / "way-out" / "out.gguf",
        folder / "notes.txt",
    ):
        with pytest.raises(StorageError, match="outside the library"):
            library.remove(replace(model, path=path))
    assert outside.exists()
    assert (folder / "notes.txt").exists()

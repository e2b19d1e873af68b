"""Interrupted quantisations are found again, and dropped."""

from pathlib import Path

import pytest

from octavo.errors import StorageError
from octavo.quantize.interrupted import discard, find_interrupted, note_recipe
from octavo.quantize.recipe import QuantizeRecipe


def test_a_recipe_comes_back(tmp_path: Path) -> None:
    recipe = QuantizeRecipe(tmp_path / "big.gguf", "int4-g32", tmp_path / "out" / "big-int4-g32")
    note_recipe(recipe)
    (recipe.partial / "model").write_bytes(b"x" * 5000)
    (run,) = find_interrupted(tmp_path / "out")
    assert run.recipe == recipe
    assert run.num_bytes >= 5000
    discard(run)
    assert not recipe.partial.exists()
    discard(run)


def test_holes_take_no_room(tmp_path: Path) -> None:
    recipe = QuantizeRecipe(tmp_path / "big.gguf", "q8_0", tmp_path / "big-q8_0.gguf")
    note_recipe(recipe)
    with (recipe.partial / "model").open("wb") as file:
        file.truncate(1 << 30)
    (run,) = find_interrupted(tmp_path)
    assert run.num_bytes < 1 << 20


def test_what_is_none_of_ours_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "film.partial").mkdir()
    broken = tmp_path / "broken.partial"
    broken.mkdir()
    (broken / "recipe.json").write_text('{"source": 7}')
    (tmp_path / "file.partial").write_text("")
    assert find_interrupted(tmp_path) == []
    assert find_interrupted(tmp_path / "missing") == []


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    recipe = QuantizeRecipe(tmp_path / "big.gguf", "q8_0", tmp_path / "out" / "big-q8_0.gguf")
    with pytest.raises(StorageError, match="cannot be written"):
        note_recipe(recipe)

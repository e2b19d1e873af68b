from pathlib import Path

import pytest
from launcher.stamp import Stage, Stamp, project_hash, read_stamp, write_stamp

STAMP = Stamp(Stage.FINISHED, "a1", "/octavo", "3.11", "cpu", ("test",), "")


def test_a_stamp_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    assert read_stamp(path) is None
    write_stamp(path, STAMP)
    assert read_stamp(path) == STAMP
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"stage": "finished", "extras": []}'])
def test_a_broken_stamp_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stamp.json"
    path.write_text(content)
    assert read_stamp(path) is None


def test_a_stamp_of_another_launcher_is_none(tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    write_stamp(path, STAMP)
    path.write_text(path.read_text().replace('"qt_problem"', '"qt_trouble"'))
    assert read_stamp(path) is None


def test_the_hash_follows_dependencies_and_not_tools(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        (tmp_path / "pyproject.toml").write_text(text)
        return project_hash(tmp_path)

    project = '[project]\nname = "x"\ndependencies = ["a"]\n'
    assert hash_of(project + "[tool.ruff]\nline-length = 5\n") == hash_of(project)
    assert hash_of(project.replace('"a"', '"b"')) != hash_of(project)

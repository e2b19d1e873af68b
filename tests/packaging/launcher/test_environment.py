import sys
from pathlib import Path
from typing import Any

import pytest
from launcher.console import SetupError
from launcher.environment import Environment, half_installed
from launcher.stamp import Stage, Stamp, project_hash


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """That of a checkout which holds nothing but pyproject.toml."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["a"]\n')
    return Environment(tmp_path)


def link_python(environment: Environment) -> None:
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)


def finished_stamp(environment: Environment, **changes: Any) -> Stamp:
    version = "{}.{}".format(*sys.version_info[:2])
    root = environment.root
    stamp = Stamp(Stage.FINISHED, project_hash(root), str(root), version, "cpu", (), "")
    return stamp._replace(**changes)


@pytest.mark.parametrize(
    ("torch_option", "extras"), [("", ()), ("", ("test",)), ("cpu", ()), ("cpu", ("test",))]
)
def test_a_matching_stamp_needs_no_set_up(
    environment: Environment, torch_option: str, extras: tuple[str, ...]
) -> None:
    link_python(environment)
    environment.stamp = finished_stamp(environment, extras=("test",))
    assert environment.is_current(torch_option, extras)


@pytest.mark.parametrize(
    ("changes", "torch_option", "extras"),
    [
        ({}, "", ("test",)),
        ({}, "cuda", ()),
        ({"stage": Stage.INSTALLING}, "", ()),
        ({"root": "/somewhere/else"}, "", ()),
        ({"project": "other dependencies"}, "", ()),
        ({"python": "3.9"}, "", ()),
    ],
)
def test_anything_else_does(
    environment: Environment,
    changes: dict[str, Any],
    torch_option: str,
    extras: tuple[str, ...],
) -> None:
    link_python(environment)
    environment.stamp = finished_stamp(environment, **changes)
    assert not environment.is_current(torch_option, extras)


def test_an_environment_without_its_python_is_set_up_anew(environment: Environment) -> None:
    assert not environment.is_current("", ())
    environment.folder.mkdir()
    environment.stamp = finished_stamp(environment)
    assert not environment.is_current("", ())


def test_an_environment_of_someone_else_is_not_deleted(environment: Environment) -> None:
    environment.folder.mkdir()
    mine = environment.folder / "mine"
    mine.write_text("")
    with pytest.raises(SetupError, match="was not made by this launcher"):
        environment.make("", (), reset=False)
    assert mine.exists()
    assert environment.stamp is None


def test_a_working_environment_is_kept_and_counts_as_unfinished(environment: Environment) -> None:
    link_python(environment)
    environment.stamp = finished_stamp(environment)
    assert environment.make("cuda", ("test",), reset=False) is False
    begun = finished_stamp(environment, stage=Stage.INSTALLING, torch="cuda", extras=("test",))
    assert environment.stamp == begun
    environment.finish("cuda", "no libEGL")
    assert environment.stamp == begun._replace(stage=Stage.FINISHED, qt_problem="no libEGL")


@pytest.mark.parametrize(
    ("stage", "reset"), [(Stage.MAKING, False), (Stage.INSTALLING, True), (Stage.FINISHED, True)]
)
def test_a_half_made_one_is_made_anew_and_keeps_its_stamp_meanwhile(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, stage: Stage, reset: bool
) -> None:
    link_python(environment)
    environment.stamp = finished_stamp(environment, stage=stage)
    seen: list[tuple[Stamp | None, list[str]]] = []

    def create(made: Environment) -> None:
        seen.append((made.stamp, [path.name for path in made.folder.iterdir()]))
        link_python(made)

    monkeypatch.setattr(Environment, "_create", create)
    assert environment.make("cpu", (), reset=reset) is True
    making = finished_stamp(environment, stage=Stage.MAKING, python="")
    assert seen == [(making, ["octavo-setup.json"])]
    assert environment.stamp == finished_stamp(environment, stage=Stage.INSTALLING)


def test_what_a_killed_pip_left_is_found(tmp_path: Path) -> None:
    folder = "Lib/site-packages" if sys.platform == "win32" else "lib/python3.11/site-packages"
    site_packages = tmp_path / folder
    for name, files in {
        "whole": ("METADATA", "INSTALLER", "RECORD"),
        "half": ("METADATA",),
        "almost": ("METADATA", "INSTALLER"),
    }.items():
        record = site_packages / f"{name}-1.0.dist-info"
        record.mkdir(parents=True)
        for file in files:
            (record / file).write_text("")
    found = sorted(path.name for path in half_installed(tmp_path))
    assert found == ["almost-1.0.dist-info", "half-1.0.dist-info"]


def test_a_disk_that_is_too_small_is_seen_first(environment: Environment) -> None:
    environment.folder.mkdir()
    environment.check_room(0)
    with pytest.raises(SetupError, match="needs about 1000000 GB"):
        environment.check_room(10**6)

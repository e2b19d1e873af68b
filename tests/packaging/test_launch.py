"""The launcher's command line. What it does to a machine is tried by hand, and by every CI run."""

import ast
import subprocess
import sys
from pathlib import Path

import launch
import pytest
from launcher.console import SetupError

PACKAGING = Path(launch.__file__).parent
MODULES = [PACKAGING / "launch.py", *(PACKAGING / "launcher").glob("*.py")]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_standard_library_only(module: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= sys.stdlib_module_names | {"launcher"}


def test_an_old_python_can_read_as_far_as_the_sentence() -> None:
    """Syntax of a later Python anywhere in the file would end in a SyntaxError instead."""
    source = (PACKAGING / "launch.py").read_text(encoding="utf-8")
    old = ast.parse(source, feature_version=(3, 7))
    check = next(index for index, node in enumerate(old.body) if isinstance(node, ast.If))
    before = [ast.unparse(node) for node in old.body[1:check]]
    assert before == ["import sys"], "nothing of launcher/ is imported before the sentence"


@pytest.mark.parametrize("switches", [(), ("-P",)])
def test_it_starts_in_any_folder(tmp_path: Path, switches: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, *switches, str(PACKAGING / "launch.py"), "--torch"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("octavo: --torch needs a word after it")


@pytest.mark.parametrize(
    ("arguments", "torch", "reset", "words"),
    [
        ([], "", False, ()),
        (["run", "--torch", "x"], "", False, ("run", "--torch", "x")),
        (["--torch", "cpu", "test", "-k", "hub"], "cpu", False, ("test", "-k", "hub")),
        (["--torch=torch==2.12", "--reset"], "torch==2.12", True, ()),
        (["--reset", "--torch", "cuda", "--version"], "cuda", True, ("--version",)),
    ],
)
def test_options_come_first_and_the_rest_is_the_apps(
    arguments: list[str], torch: str, reset: bool, words: tuple[str, ...]
) -> None:
    assert launch.parse_arguments(arguments) == launch.Options(torch, reset, words)


@pytest.mark.parametrize("arguments", [["--torch"], ["--torch="], ["--reset", "--torch", ""]])
def test_torch_needs_a_word(arguments: list[str]) -> None:
    with pytest.raises(SetupError, match="cpu, cuda"):
        launch.parse_arguments(arguments)


def test_only_the_checks_need_the_test_tools() -> None:
    assert launch.parse_arguments(["test", "-k", "hub"]).extras == ("test",)
    assert launch.parse_arguments(["run", "test"]).extras == ()

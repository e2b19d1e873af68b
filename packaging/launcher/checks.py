"""The checks of the `test` command: linters, types and tests."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import system_packages
from launcher.console import detail, say

FOLDERS = ("desktop", "packaging", "tests")
# Not the script of that name: it holds the path of the checkout it was installed in.
LINT_IMPORTS = "from importlinter.cli import lint_imports_command as lint; lint()"
LINTERS = {
    "ruff check": ("-m", "ruff", "check", *FOLDERS),
    "ruff format --check": ("-m", "ruff", "format", "--check", *FOLDERS),
    "lint-imports": ("-c", LINT_IMPORTS),
    "mypy": ("-m", "mypy"),
}


def prepare_display() -> None:
    """The window's tests run in a display of their own, or skip themselves and say so."""
    if sys.platform != "linux" or shutil.which("Xvfb"):
        return
    if not system_packages.install(["xvfb"]):
        detail("No Xvfb (`sudo apt-get install xvfb`): tests that need a display are skipped.")


def run_checks(python: Path, root: Path, pytest_arguments: Sequence[str]) -> int:
    """Runs every check, also after one that failed; pytest's closing line comes last."""
    failed = [name for name, words in LINTERS.items() if run(name, python, words, root)]
    if failed:
        say(f"== Failed so far: {', '.join(failed)}; the exit code will say so")
    code = run("pytest", python, ("-m", "pytest", *pytest_arguments), root)
    return code or (1 if failed else 0)


def run(name: str, python: Path, words: Sequence[str], root: Path) -> int:
    """The exit code of one check."""
    say(f"== {name}")
    return subprocess.call([str(python), *words], cwd=root)

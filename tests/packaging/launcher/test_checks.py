import subprocess
from pathlib import Path

import pytest
from launcher.checks import run_checks


@pytest.mark.parametrize(
    ("failing", "pytest_code", "expected"), [((), 0, 0), (("mypy",), 0, 1), (("mypy",), 2, 2)]
)
def test_every_check_runs_and_pytest_comes_last(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: tuple[str, ...],
    pytest_code: int,
    expected: int,
) -> None:
    commands: list[list[str]] = []

    def call(command: list[str], cwd: Path) -> int:
        assert cwd == Path("checkout")
        commands.append(command)
        if command[2] == "pytest":
            return pytest_code
        return int(any(name in command for name in failing))

    monkeypatch.setattr(subprocess, "call", call)
    assert run_checks(Path("python"), Path("checkout"), ["-k", "hub"]) == expected
    assert [command[2] for command in commands[:2]] == ["ruff", "ruff"]
    assert commands[-1] == ["python", "-m", "pytest", "-k", "hub"]
    assert len(commands) == 5
    assert capsys.readouterr().out.endswith("== pytest\n")

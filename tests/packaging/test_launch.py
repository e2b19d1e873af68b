"""The launcher's decisions. What it does to a machine is tried by hand, and by every CI run."""

import ast
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "packaging" / "launch.py"


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The launcher as a module of its own, in a checkout that holds nothing but pyproject.toml."""
    spec = importlib.util.spec_from_file_location("octavo_launch", LAUNCHER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["a"]\n')
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "STAMP", venv / "octavo-setup.json")
    monkeypatch.setattr(module, "UNFINISHED", venv / "octavo-setup.unfinished")
    return module


def test_standard_library_only() -> None:
    tree = ast.parse(LAUNCHER.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert imported <= sys.stdlib_module_names


def test_an_old_python_can_read_as_far_as_the_sentence() -> None:
    """Syntax of a later Python anywhere in the file would end in a SyntaxError instead."""
    ast.parse(LAUNCHER.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_the_tested_torch_is_one_that_pyproject_allows(launch: ModuleType) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = next(
        requirement
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "torch"
    )
    assert torch.specifier.contains(launch.TORCH_VERSION)


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
    launch: ModuleType, arguments: list[str], torch: str, reset: bool, words: tuple[str, ...]
) -> None:
    assert launch.parse_arguments(arguments) == launch.Options(torch, reset, words)


@pytest.mark.parametrize("arguments", [["--torch"], ["--torch="], ["--reset", "--torch", ""]])
def test_torch_needs_a_word(launch: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(launch.SetupError, match="cpu, cuda"):
        launch.parse_arguments(arguments)


CPU_PLAN = (("torch", "2.13.0+cpu"), ("sympy", "1.14.0"), ("nvidia-ml-py", "13.0"))
PLAIN_CPU_PLAN = (("torch", "2.13.0"), ("sympy", "1.14.0"))
CUDA_PLAN = (("torch", "2.13.0"), ("nvidia-cudnn-cu13", "9.20"), ("cuda-toolkit", "13.0.3"))
BUNDLED_CUDA_PLAN = (("torch", "2.13.0+cu130"),)


@pytest.mark.parametrize(
    ("packages", "cuda_major"),
    [
        (CPU_PLAN, None),
        (PLAIN_CPU_PLAN, None),
        ((), None),
        (CUDA_PLAN, 13),
        (BUNDLED_CUDA_PLAN, 13),
        ((("torch", "2.9.1"), ("nvidia-cuda-runtime-cu12", "12.8.90")), 12),
        ((("torch", "2.9.1"), ("nvidia-cublas", "1")), 0),
    ],
)
def test_a_plan_tells_its_cuda(launch: ModuleType, packages: Any, cuda_major: int | None) -> None:
    assert launch.Plan(packages).cuda_major == cuda_major


def pip_with(launch: ModuleType, **plans: Any) -> Callable[[tuple[str, ...]], Any]:
    """A pip that has plans for `local` (+cpu, own sources), `page` and `plain`."""

    def ask(request: tuple[str, ...]) -> Any:
        own_sources = "local" if "+cpu" in request[0] else "plain"
        packages = plans.get("page" if len(request) > 1 else own_sources)
        return None if packages is None else launch.Plan(packages)

    return ask


@pytest.mark.parametrize(
    ("option", "platform", "driver", "plans", "kind", "request_part"),
    [
        ("", "linux", None, {"local": CPU_PLAN, "plain": CUDA_PLAN}, "cpu", "2.13.0+cpu"),
        ("", "linux", None, {"page": CPU_PLAN, "plain": CUDA_PLAN}, "cpu", "/whl/cpu"),
        ("", "linux", None, {"plain": PLAIN_CPU_PLAN}, "cpu", "torch==2.13.0"),
        ("", "linux", (13,), {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cuda", "torch===2.13.0"),
        ("", "linux", (None,), {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cuda", "torch===2.13.0"),
        ("cpu", "linux", (13,), {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cpu", "2.13.0+cpu"),
        ("cuda", "linux", None, {"plain": CUDA_PLAN, "local": CPU_PLAN}, "cuda", "torch===2.13.0"),
        ("cuda", "linux", None, {"page": BUNDLED_CUDA_PLAN}, "cuda", "/whl/cu130"),
        ("", "win32", None, {"plain": PLAIN_CPU_PLAN}, "cpu", "torch==2.13.0"),
        ("", "win32", (13,), {"page": BUNDLED_CUDA_PLAN}, "cuda", "/whl/cu130"),
        ("", "darwin", None, {"plain": PLAIN_CPU_PLAN}, "cpu", "torch==2.13.0"),
    ],
)
def test_which_torch(
    launch: ModuleType,
    option: str,
    platform: str,
    driver: tuple[int | None] | None,
    plans: Any,
    kind: str,
    request_part: str,
) -> None:
    found = None if driver is None else launch.Driver(*driver)
    choice = launch.choose_torch(option, platform, found, pip_with(launch, **plans))
    assert choice.kind == kind
    assert any(word.endswith(request_part) for word in choice.arguments)
    assert choice.note == ""


@pytest.mark.parametrize(
    ("driver", "plans", "words"),
    [
        (
            12,
            {"plain": CUDA_PLAN, "local": CPU_PLAN},
            "runs CUDA 12 and this PyTorch needs CUDA 13",
        ),
        (13, {"local": CPU_PLAN}, "pip finds no CUDA build"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_said(
    launch: ModuleType, driver: int, plans: Any, words: str
) -> None:
    choice = launch.choose_torch("", "linux", launch.Driver(driver), pip_with(launch, **plans))
    assert choice.kind == "cpu"
    assert words in choice.note


@pytest.mark.parametrize(
    ("option", "platform", "plans", "words"),
    [
        ("", "linux", {"plain": CUDA_PLAN}, "add `--torch cuda` to accept them"),
        ("", "linux", {}, "check the network"),
        ("cuda", "linux", {"local": CPU_PLAN}, "no CUDA build"),
        ("cuda", "darwin", {"plain": PLAIN_CPU_PLAN}, "no CUDA on macOS"),
    ],
)
def test_no_torch_of_the_right_kind_is_one_sentence(
    launch: ModuleType, option: str, platform: str, plans: Any, words: str
) -> None:
    with pytest.raises(launch.SetupError, match=words) as caught:
        launch.choose_torch(option, platform, None, pip_with(launch, **plans))
    assert "\n" not in str(caught.value)


def test_any_other_word_goes_to_pip_as_it_stands(launch: ModuleType) -> None:
    spec = "torch==2.12.1+cu126 --extra-index-url https://download.pytorch.org/whl/cu126"
    choice = launch.choose_torch(spec, "linux", None, pip_with(launch))
    assert choice.arguments == tuple(spec.split())
    assert choice.kind == spec


def test_a_wheels_path_counts_from_where_the_person_is(
    launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.whl").write_text("")
    choice = launch.choose_torch("torch.whl", "linux", None, pip_with(launch))
    assert choice.arguments == (str(tmp_path.resolve() / "torch.whl"),)


def test_pips_report_becomes_a_plan(launch: ModuleType) -> None:
    report = {"install": [{"metadata": {"name": "Torch", "version": "2.13.0+cpu"}}]}
    assert launch.parse_plan(json.dumps(report)).packages == (("torch", "2.13.0+cpu"),)
    assert launch.parse_plan('{"install": []}').packages == ()
    assert launch.parse_plan("no JSON") is None


def finished_stamp(launch: ModuleType, **changes: Any) -> Any:
    version = "{}.{}".format(*sys.version_info[:2])
    return launch.Stamp(
        launch.STAMP_FORMAT, launch.project_hash(), str(launch.ROOT), version, "cpu", (), ""
    )._replace(**changes)


@pytest.fixture
def venv_is_there(launch: ModuleType) -> Path:
    python: Path = launch.venv_python()
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return python


@pytest.mark.usefixtures("venv_is_there")
def test_a_matching_stamp_needs_no_set_up(launch: ModuleType) -> None:
    launch.write_stamp(launch.STAMP, finished_stamp(launch, extras=("test",)))
    stamp = launch.read_stamp(launch.STAMP)
    for arguments in ([], ["run", "x"], ["test"], ["--torch", "cpu"]):
        assert launch.is_current(stamp, launch.parse_arguments(arguments))
    (launch.ROOT / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["a"]\n[tool.ruff]\nline-length = 5\n'
    )
    assert launch.is_current(stamp, launch.Options())


@pytest.mark.usefixtures("venv_is_there")
@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, ["test"]),
        ({}, ["--torch", "cuda"]),
        ({"format": 0}, []),
        ({"root": "/somewhere/else"}, []),
        ({"project": "other dependencies"}, []),
        ({"python": "3.9"}, []),
    ],
)
def test_anything_else_does(
    launch: ModuleType, changes: dict[str, Any], arguments: list[str]
) -> None:
    stamp = finished_stamp(launch, **changes)
    assert not launch.is_current(stamp, launch.parse_arguments(arguments))


def test_an_environment_without_its_python_is_set_up_anew(launch: ModuleType) -> None:
    launch.VENV.mkdir()
    assert not launch.is_current(finished_stamp(launch), launch.Options())


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1}'])
def test_a_broken_stamp_is_none(launch: ModuleType, content: str) -> None:
    launch.VENV.mkdir()
    launch.STAMP.write_text(content)
    assert launch.read_stamp(launch.STAMP) is None


def test_an_environment_of_someone_else_is_not_deleted(launch: ModuleType) -> None:
    launch.VENV.mkdir()
    (launch.VENV / "mine").write_text("")
    with pytest.raises(launch.SetupError, match="was not made by this launcher"):
        launch.make_venv(launch.venv_python(), finished_stamp(launch), reset=False)
    assert (launch.VENV / "mine").exists()


def test_what_a_killed_pip_left_is_found(launch: ModuleType, tmp_path: Path) -> None:
    folder = "Lib/site-packages" if sys.platform == "win32" else "lib/python3.11/site-packages"
    site_packages = tmp_path / folder
    for name, files in {
        "whole": ("METADATA", "INSTALLER", "RECORD"),
        "half": ("METADATA",),
        "almost": ("METADATA", "INSTALLER"),
    }.items():
        info = site_packages / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        for file in files:
            (info / file).write_text("")
    found = sorted(path.name for path in launch.half_installed(tmp_path))
    assert found == ["almost-1.0.dist-info", "half-1.0.dist-info"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("Retrying after connection broken by 'NewConnectionError(...)'", "check the network"),
        ("ReadTimeoutError: Read timed out.", "check the network"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED NewConnectionError", "PIP_CERT"),
        ("ERROR: [Errno 13] Permission denied: '/x'", "check who owns"),
        ("ERROR: a\nERROR: No matching distribution found for y", "No matching distribution found"),
        ("", "pip gave no reason"),
    ],
)
def test_a_failed_pip_is_one_sentence(launch: ModuleType, output: str, words: str) -> None:
    sentence = launch.failure_sentence(output, "PyTorch", Path.cwd())
    assert words in sentence
    assert "PyTorch" in sentence
    assert "\n" not in sentence


def test_a_disk_that_is_too_small_is_seen_first(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(launch.NEEDED_GB, "cpu", 10**6)
    launch.VENV.mkdir()
    with pytest.raises(launch.SetupError, match="needs about 1000000 GB"):
        launch.check_room("cpu")


def test_missing_libraries_are_collected_in_one_go(launch: ModuleType) -> None:
    error = "libEGL.so.1: cannot open shared object file: No such file or directory"
    missing = {"libxcb-cursor.so.0", "libEGL.so.1"}
    found = launch.missing_libraries(f"ImportError: {error}", lambda name: name not in missing)
    assert found == ["libEGL.so.1", "libxcb-cursor.so.0"]
    assert launch.missing_libraries("ImportError: no module", lambda _name: False) == []


def test_what_the_window_misses_is_one_sentence(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda name: f"/usr/bin/{name}")
    sentence = launch.qt_sentence("libEGL.so.1: cannot", ["libegl1", "libgl1"])
    assert "`sudo apt-get install libegl1 libgl1`" in sentence
    assert "terminal works without" in sentence
    monkeypatch.setattr(launch.shutil, "which", lambda _name: None)
    assert "(libEGL.so.1: cannot)" in launch.qt_sentence("libEGL.so.1: cannot", ["libegl1"])


@pytest.mark.parametrize(
    ("failing", "pytest_code", "expected"), [((), 0, 0), (("mypy",), 0, 1), (("mypy",), 2, 2)]
)
def test_every_check_runs_and_pytest_comes_last(
    launch: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    failing: tuple[str, ...],
    pytest_code: int,
    expected: int,
) -> None:
    commands: list[list[str]] = []

    def call(command: list[str], cwd: Path) -> int:
        commands.append(command)
        if command[2] == "pytest":
            return pytest_code
        return int(any(name in command for name in failing))

    monkeypatch.setattr(launch.subprocess, "call", call)
    assert launch.run_checks(Path("python"), ["-k", "hub"]) == expected
    assert [command[2] for command in commands[:2]] == ["ruff", "ruff"]
    assert commands[-1] == ["python", "-m", "pytest", "-k", "hub"]
    assert len(commands) == 5


def test_nothing_of_the_outside_leads_pip_astray(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_CERT", "/company.pem")
    environment = launch.pip_environment()
    assert "PYTHONPATH" not in environment
    assert environment["PIP_USER"] == "0"
    assert environment["PIP_CERT"] == "/company.pem"

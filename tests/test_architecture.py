"""The house rules that types and linters do not see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import octavo

PACKAGE = Path(octavo.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


NOT_BEFORE_PAINT = {
    *("torch", "triton", "numpy", "transformers", "tokenizers", "jinja2"),
    *("huggingface_hub", "httpx", "keyring", "fastapi", "starlette", "uvicorn", "pydantic"),
    *("pygments", "markdown_it", "psutil", "pynvml", "http.client"),
    *("octavo.engine.checkpoint_parts", "octavo.hub.hub_pull", "octavo.monitor.machine"),
    *("octavo.ui.chat.message_view", "octavo.ui.crash_dialog", "octavo.ui.models.models_page"),
}
"""What a window without a conversation does not need; each costs time before the first paint."""


def loaded_after(statement: str) -> set[str]:
    """Names of the modules a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(output.stdout.split())


def test_core_loads_neither_torch_nor_qt() -> None:
    modules = loaded_after("import octavo.core")
    assert not modules & {"torch", "PySide6", "triton", "numba", "huggingface_hub", "transformers"}


def test_window_loads_nothing_heavy() -> None:
    """What it loads until its first paint is looked at in tests/ui/test_desktop.py."""
    assert sorted(loaded_after("import octavo.ui.desktop") & NOT_BEFORE_PAINT) == []


@pytest.mark.parametrize("module", ["cli.main", "cli.models", "cli.chat", "cli.doctor"])
def test_verbs_start_without_torch_and_qt(module: str) -> None:
    assert not loaded_after(f"import octavo.{module}") & {"torch", "PySide6"}


@pytest.mark.parametrize("module", ["core", "cli.main", "cli.serve", "server.thread"])
def test_http_server_is_not_loaded_before_it_starts(module: str) -> None:
    assert not loaded_after(f"import octavo.{module}") & {"fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_says_what_it_holds(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "every module begins with one sentence that says what is here"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_has_one_noun(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc", "types"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, "cut it along its nouns"


def test_catch_alls_stand_where_they_are_allowed() -> None:
    """Top of the engine thread, the window's `spawn`, and the server's outermost handler."""
    allowed = {Path("engine/thread.py"), Path("ui/tasks.py"), Path("server/access.py")}
    found = {
        path.relative_to(PACKAGE)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    }
    assert found <= allowed


def test_no_module_level_instances_of_ours() -> None:
    """Parts are made in `Core` and handed on; a module holds no state."""
    offenders = []
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if (
                isinstance(value, ast.Call)
                and isinstance(value.func, ast.Name)
                and value.func.id in classes
                and not _is_frozen(tree, value.func.id)
            ):
                offenders.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not offenders


def _is_frozen(tree: ast.Module, name: str) -> bool:
    """Constants made of a frozen dataclass (a theme, a layout) are no state."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return any("frozen=True" in ast.unparse(item) for item in node.decorator_list)
    return False

"""Kernels are compiled by a child process, once; a killed one leaves nothing in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.engine.kernels.cpu.kernel_cache import (
    KernelCompiler,
    kernel_folder,
    mark_ready,
    mark_used,
    missing_parts,
    parts,
)
from octavo.engine.kernels.cpu.preparation import prepare_kernels
from octavo.engine.kernels.cpu.simd_tier import cache_key
from octavo.errors import EngineError
from octavo.jobs import JobCancelled

FORMS = ("q4_1", "q8_0")


def test_each_processor_and_version_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert kernel_folder(None) is None
    assert kernel_folder(str(tmp_path)) == tmp_path / cache_key()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    assert kernel_folder(str(tmp_path)) == tmp_path / "own"


def test_what_is_ready_is_not_missing(tmp_path: Path) -> None:
    assert missing_parts(None, FORMS) == parts(FORMS)
    for part in parts(FORMS)[:-1]:
        mark_ready(tmp_path, part)
    assert missing_parts(tmp_path, FORMS) == ["q8_0"]


def test_folders_of_older_versions_go_and_two_others_stay(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcde"]
    for age, folder in enumerate(folders):
        mark_ready(folder, "linear")
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "file").touch()
    mark_used(folders[4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "e", "file"]
    mark_used(folders[1])
    assert all(folder.is_dir() for folder in (folders[0], folders[1], folders[4]))


def test_a_cancelled_wait_ends_the_child(tmp_path: Path) -> None:
    compiler = KernelCompiler(tmp_path, FORMS)
    seen = []

    def cancel(done: int, total: int) -> None:
        seen.append((done, total))
        raise JobCancelled

    with pytest.raises(JobCancelled):
        compiler.wait(cancel)
    assert seen == [(0, len(parts(FORMS)))]
    assert not compiler.is_running


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /bin/false")
def test_a_child_that_fails_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    compiler = KernelCompiler(tmp_path, FORMS)
    assert not compiler.wait(lambda _done, _total: None)
    assert compiler.last_words == "it ended with the status 1"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no shell")
def test_a_child_s_error_is_told_and_nothing_is_tried_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho LLVM has no room. >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))  # put back afterwards
    with pytest.raises(EngineError, match=r"could not be compiled: LLVM has no room\."):
        prepare_kernels(FORMS, None, lambda _done, _total: None, in_child_only=True)
    assert missing_parts(tmp_path, FORMS) == parts(FORMS)


def test_a_lock_of_a_killed_child_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "compiling").write_text(str(os.getpid()), encoding="ascii")
    os.utime(tmp_path / "compiling", (0, 0))
    code = (
        "from pathlib import Path; import sys;"
        "from octavo.engine.kernels.cpu.preparation import alone\n"
        "with alone(Path(sys.argv[1])): print((Path(sys.argv[1]) / 'compiling').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() not in ("", str(os.getpid()))
    assert not (tmp_path / "compiling").exists()

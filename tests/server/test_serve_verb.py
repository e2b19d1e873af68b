"""`octavo serve` as a person runs it: a process, its first line, a signal."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from octavo.paths import AppPaths
from tests.support.gguf_files import write_tiny_llama


@pytest.fixture
def tiny(paths: AppPaths) -> Path:
    paths.models_dir.mkdir(parents=True)
    return write_tiny_llama(paths.models_dir / "tiny.gguf")


def octavo(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "octavo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
def test_serves_until_it_is_told_to_end(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "sk-1")
    with octavo("serve", "tiny", "--port", "0", "--device", "cpu") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.match(r"tiny is served at (http://127\.0\.0\.1:\d+/v1)\. An API key", first)
        assert found, first
        headers = {"Authorization": "Bearer sk-1"}
        body = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(f"{found[1]}/completions", json=body, headers=headers, timeout=30)
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert httpx.get(f"{found[1]}/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors.strip() == "Stopped."


def test_an_open_address_without_a_key_is_refused_before_the_load(tiny: Path) -> None:
    with octavo("serve", "tiny", "--host", "0.0.0.0", "--port", "0") as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "no API key is set" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("option", "value"), [("--port", "70000"), ("--host", "0.0.0.0")])
def test_nothing_is_fetched_for_an_address_that_is_refused(
    paths: AppPaths, option: str, value: str
) -> None:
    with octavo("serve", option, value) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert value in errors
    assert "Fetching" not in errors
    assert not list(paths.models_dir.glob("*"))

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launcher.pip import end, failure_sentence, parse_plan, pip_environment, relay


def test_pips_report_becomes_a_plan() -> None:
    report = {"install": [{"metadata": {"name": "Torch", "version": "2.13.0+cpu"}}]}
    assert parse_plan(json.dumps(report)) == (("torch", "2.13.0+cpu"),)
    assert parse_plan('{"install": []}') == ()
    assert parse_plan("no JSON") is None


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
def test_a_failed_pip_is_one_sentence(output: str, words: str) -> None:
    sentence = failure_sentence(output, "PyTorch", Path.cwd())
    assert words in sentence
    assert "PyTorch" in sentence
    assert "\n" not in sentence


def test_downloads_are_shown_and_everything_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["Collecting torch\n", "  Downloading torch.whl (200 MB)\n", "ERROR: no\n"]
    assert relay(lines) == "".join(lines)
    assert capsys.readouterr().out == "      Downloading torch.whl (200 MB)\n"


def test_nothing_of_the_outside_leads_pip_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_CERT", "/company.pem")
    environment = pip_environment()
    assert "PYTHONPATH" not in environment
    assert environment["PIP_USER"] == "0"
    assert environment["PIP_CERT"] == "/company.pem"


@pytest.mark.parametrize(("code", "returncode"), [("pass", 0), ("input()", -signal.SIGTERM)])
@pytest.mark.skipif(sys.platform == "win32", reason="a Windows process ends without a signal")
def test_an_interrupted_pip_is_gone_before_the_launcher(code: str, returncode: int) -> None:
    patience_s = 30.0 if returncode == 0 else 0.01
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as pip:
        end(pip, patience_s)
    assert pip.returncode == returncode

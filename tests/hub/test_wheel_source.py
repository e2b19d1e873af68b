import importlib.util
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from octavo.errors import DownloadError
from octavo.hub import wheel_source
from octavo.hub.wheel_source import ask_pip, parse_pip_config
from octavo.jobs import JobCancelled, JobControl
from tests.hub.wheels import make_wheel

ENTRY = make_wheel(1000).entry


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pip that knows a folder of wheels and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put_wheel(folder: Path) -> Path:
    """The least that pip takes for a wheel."""
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = "tiny_model-1.0.dist-info/"
        archive.writestr(
            info + "METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(info + "RECORD", "")
    return path


def test_the_real_pip_finds_a_local_wheel(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_wheel(offline)
    monkeypatch.setenv("PIP_CERT", "/company.pem")
    monkeypatch.setenv("PIP_PROXY", "http://proxy:3128")
    # Settings of a person who installs into their home must not forbid the question.
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    source = ask_pip(ENTRY, JobControl())
    assert source.url == path.as_uri()
    assert source.proxy == "http://proxy:3128"
    assert source.certificates == "/company.pem"


def test_the_real_pip_finds_nothing(offline: Path) -> None:
    with pytest.raises(DownloadError, match=r"has no tiny-model==1\.0") as caught:
        ask_pip(ENTRY, JobControl())
    assert "mirror" in caught.value.hint


def test_no_pip_is_said_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(DownloadError, match="has no pip") as caught:
        ask_pip(ENTRY, JobControl())
    assert f"{sys.executable} -m ensurepip" in caught.value.hint


def test_cancel_ends_pip(offline: Path) -> None:
    control = JobControl()
    threading.Timer(0.05, control.cancel).start()
    with pytest.raises(JobCancelled):
        ask_pip(ENTRY, control)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("WARNING: broken by 'NewConnectionError(...)'\nERROR: No match", "cannot be reached"),
        ("SSLError(SSLCertVerificationError())\nERROR: No match", "does not trust"),
        ("ERROR: No matching distribution found for x.", "pip said: No matching"),
    ],
)
def test_what_pip_says_becomes_a_sentence(said: str, words: str) -> None:
    error = wheel_source._pip_failure("x==1", said)
    assert words in error.message
    assert error.hint


def test_the_environment_wins_over_the_files() -> None:
    listing = (
        ":env:.cert='/env.pem'\nglobal.cert='/global.pem'\ninstall.proxy='http://b'\n"
        "global.proxy='http://a'\nglobal.timeout='60'\nfreeze.cert='/no.pem'\nno sense\nglobal.x=["
    )
    assert parse_pip_config(listing) == {
        "cert": "/env.pem",
        "proxy": "http://b",
        "timeout": "60",
    }

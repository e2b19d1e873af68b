"""A window that asks for a new process gets one, in the place of its own."""

import argparse
import os
import sys

import pytest

from octavo.cli import window
from octavo.paths import AppPaths
from octavo.ui import desktop


@pytest.mark.parametrize(("status", "restarts"), [(0, False), (desktop.RESTART, True)])
def test_restart(
    paths: AppPaths, monkeypatch: pytest.MonkeyPatch, status: int, restarts: bool
) -> None:
    replaced: list[list[str]] = []
    monkeypatch.setattr(window, "why_no_window", lambda *_: None)
    monkeypatch.setattr(desktop, "run_desktop", lambda *_, **__: status)
    monkeypatch.setattr(os, "execv", lambda _, command: replaced.append(command))
    assert window.open_window(argparse.Namespace(opened=""), paths) == status
    assert replaced == ([[sys.executable, "-m", "octavo"]] if restarts else [])

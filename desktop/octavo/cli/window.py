"""`octavo` without a verb: the window, or where there is no display the terminal."""

import argparse
import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from octavo.paths import AppPaths

SAMPLE_QUESTION = "Why is the sky blue?"


def open_window(options: argparse.Namespace, paths: AppPaths) -> int:
    """Opens the window, or says why it cannot and does its main job on the terminal."""
    reason = why_no_window(os.environ, sys.platform)
    if reason is None:
        try:
            from octavo.ui.desktop import RESTART, run_desktop
        except ImportError as error:
            reason = f"Qt cannot start: {error}"
        else:
            status = run_desktop(paths, opened=absolute(options.opened))
            if status == RESTART:
                # The window comes back as it was left, and loads the model that was in use.
                os.execv(sys.executable, [sys.executable, "-m", "octavo"])  # noqa: S606
            return status
    from octavo.cli.chat import answer_once, converse

    print(f"{reason.rstrip('.')}. Chatting on the terminal instead.", file=sys.stderr)
    if sys.stdin is not None and sys.stdin.isatty():
        return converse(options, paths)
    print(f"> {SAMPLE_QUESTION}", file=sys.stderr)
    return answer_once(options, paths, SAMPLE_QUESTION)


def absolute(opened: str) -> str:
    """A file's whole path, for another process with another folder may open it; addresses stay."""
    return opened if not opened or "://" in opened else str(Path(opened).expanduser().absolute())


def why_no_window(environment: Mapping[str, str], platform: str) -> str | None:
    """The reason why no window can be shown here; None if one can.

    Qt ends the whole process when it cannot reach the display, so this asks first.
    """
    if importlib.util.find_spec("PySide6") is None:
        return "PySide6 is not installed"
    if not platform.startswith("linux") or environment.get("QT_QPA_PLATFORM"):
        return None
    wayland, x11 = environment.get("WAYLAND_DISPLAY"), environment.get("DISPLAY")
    if not wayland and not x11:
        return "There is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    if wayland and _wayland_answers(wayland, environment):
        return None
    if x11 and _x11_answers(x11):
        return None
    return f"The display {wayland or x11!r} does not answer"


def _wayland_answers(name: str, environment: Mapping[str, str]) -> bool:
    path = Path(environment.get("XDG_RUNTIME_DIR", "/run"), name)
    return _connects(socket.AF_UNIX, str(path))


def _x11_answers(display: str) -> bool:
    """DISPLAY is host:number.screen; without a host the server listens on a local socket."""
    host, _, rest = display.rpartition(":")
    number = rest.split(".")[0]
    if not number.isdigit():
        return False
    if host in ("", "unix"):
        path = f"/tmp/.X11-unix/X{number}"  # noqa: S108  (where X servers listen)
        return _connects(socket.AF_UNIX, path) or _connects(socket.AF_UNIX, f"\0{path}")
    return _connects(socket.AF_INET, (host, 6000 + int(number)))


def _connects(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(2.0)
        try:
            connection.connect(address)
        except OSError:
            return False
    return True

"""The system libraries that Qt's window needs: what is missing, and how to get it."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher import system_packages
from launcher.console import detail, shorten

# What Qt's window plugins need of a bare Debian or Ubuntu, library by library.
QT_PACKAGES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libX11.so.6": "libx11-6",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxcb.so.1": "libxcb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libz.so.1": "zlib1g",
    "libzstd.so.1": "libzstd1",
}
# Run in the private environment: the import finds Qt's own needs, the plugin those of the display.
QT_PROBE = """
import ctypes, pathlib, sys
try:
    import PySide6.QtWidgets
    if sys.platform == "linux":
        folder = pathlib.Path(PySide6.__file__).parent / "Qt" / "plugins" / "platforms"
        ctypes.CDLL(str(folder / "libqxcb.so"))
except (ImportError, OSError) as error:
    sys.exit(str(error))
"""


def check_window(python: Path) -> str:
    """Installs what Qt misses where it may; returns what to say about what is missing still."""
    error = probe_qt(python)
    if not error:
        return ""
    libraries = missing_libraries(error, can_load)
    packages = sorted({QT_PACKAGES[name] for name in libraries if name in QT_PACKAGES})
    if packages and system_packages.install(packages):
        error = probe_qt(python)
        if not error:
            return ""
    sentence = qt_sentence(error, packages)
    detail(sentence)
    return sentence


def probe_qt(python: Path) -> str:
    """Qt's own complaint, empty if it can open a window."""
    result = subprocess.run(
        [str(python), "-c", QT_PROBE], capture_output=True, text=True, check=False
    )
    return result.stderr.strip()[-500:] if result.returncode else ""


def missing_libraries(error: str, can_load: Callable[[str], bool]) -> list[str]:
    """The library an error names, and every other one of the table that is missing, too."""
    named = re.search(r"(\S+\.so[.\d]*): cannot open shared object", error)
    if named is None:
        return []
    others = [name for name in QT_PACKAGES if name != named[1] and not can_load(name)]
    return [named[1], *others]


def can_load(library: str) -> bool:
    """Whether the system has a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def qt_sentence(error: str, packages: Sequence[str]) -> str:
    """What is missing for the window, and how to get it."""
    if packages and shutil.which("apt-get"):
        return (
            f"The window needs system packages: run `sudo apt-get install {' '.join(packages)}`. "
            "The chat on the terminal works without them."
        )
    return (
        f"The window cannot open ({shorten(error)}): install the system package with that library. "
        "The chat on the terminal works without it."
    )

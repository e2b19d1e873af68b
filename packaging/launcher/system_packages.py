"""Packages of the system itself: installed where no password is needed (a container, CI)."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from launcher.console import detail, shorten


def install(packages: Sequence[str]) -> bool:
    """True if the packages are installed now; False where that is left to the person."""
    if not may_use_apt():
        return False
    detail(f"Installing {', '.join(packages)}")
    apt_get("update", "-qq")
    result = apt_get("install", "-qq", "--yes", "--no-install-recommends", *packages)
    if result.returncode:
        detail(f"apt-get could not install {' '.join(packages)}: {shorten(result.stderr)}")
    return result.returncode == 0


def may_use_apt() -> bool:
    """Whether system packages can be installed without asking for a password."""
    return os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_get(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs apt-get, which must ask nothing."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        ["apt-get", *words], env=environment, capture_output=True, text=True, check=False
    )

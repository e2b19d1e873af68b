"""Asks pip where a wheel is, so that the user's own mirror, proxy and certificates count.

Octavo knows no address of a package index: pip does.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from octavo.errors import DownloadError
from octavo.hub.catalog import CatalogEntry
from octavo.jobs import JobCancelled, JobControl, Progress

_QUESTION = (
    *("install", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:"),
    *("--no-input", "--quiet", "--report", "-"),
)
_NETWORK_SIGNS = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "name resolution",
    "Max retries exceeded",
    "ProxyError",
    "connection broken",
)
_CERTIFICATE_SIGNS = ("CERTIFICATE_VERIFY_FAILED", "SSLError", "SSLCertVerificationError")


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Where a wheel lies, and how pip would get there."""

    url: str
    sha256: str = ""
    """As the index says; empty if it does not."""
    proxy: str = ""
    """Empty: as the environment says."""
    certificates: str = ""
    """File or folder of trusted certificates; empty: the system's."""


def ask_pip(entry: CatalogEntry, control: JobControl) -> WheelSource:
    """Where pip would download the entry's wheel from; takes some seconds.

    Raises:
        DownloadError: pip is missing, does not reach the index, or finds no such wheel there.
        JobCancelled: the work is to stop.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            "The Python that runs Octavo has no pip, which knows where the package index is.",
            hint=f"Run `{sys.executable} -m ensurepip`, then try again.",
        )
    wheel = f"{entry.package}=={entry.version}"
    control.report(Progress(f"Looking for {entry.title}"))
    returncode, output, errors = _run_pip(
        [*_QUESTION, wheel],
        control,
    )
    if returncode:
        raise _pip_failure(wheel, errors)
    try:
        download = json.loads(output)["install"][0]["download_info"]
        url = str(download["url"])
        hashes: dict[str, Any] = download.get("archive_info", {}).get("hashes", {})
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise DownloadError(
            f"pip gave no address for {wheel}.", hint=f"Update it: {_pip_command('install -U pip')}"
        ) from error
    _, listing, _ = _run_pip(["config", "list"], control)
    settings = parse_pip_config(listing)
    return WheelSource(
        url=url,
        sha256=str(hashes.get("sha256", "")),
        proxy=settings.get("proxy", ""),
        # pip's own order: its setting, then what its HTTP library looks at.
        certificates=settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE", ""),
    )


def parse_pip_config(listing: str) -> dict[str, str]:
    """The output of `pip config list` as one table, in which the environment wins."""
    order = {":env:": 2, "install": 1, "global": 0}
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, equals, quoted = line.partition("=")
        section, _, name = key.partition(".")
        if not equals or section not in order:
            continue
        try:
            value = ast.literal_eval(quoted)
        except (ValueError, SyntaxError):
            continue
        rank = order[section]
        if isinstance(value, str) and rank >= found.get(name, (-1, ""))[0]:
            found[name] = (rank, value)
    return {name: value for name, (_, value) in found.items()}


def _run_pip(arguments: list[str], control: JobControl) -> tuple[int, str, str]:
    """Return code, standard output and standard error; a cancel ends pip."""
    # A person's own settings for installing must not forbid a question.
    environment = os.environ | {
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_USER": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    with subprocess.Popen(  # noqa: S603  (our own interpreter, arguments from our catalogue)
        [sys.executable, "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    ) as process:
        while True:
            try:
                output, errors = process.communicate(timeout=0.1)
            except subprocess.TimeoutExpired:
                try:
                    control.raise_if_cancelled()
                except JobCancelled:
                    process.kill()
                    raise
            else:
                return process.returncode, output, errors


def _pip_failure(wheel: str, errors: str) -> DownloadError:
    lines = [line.removeprefix("ERROR: ") for line in errors.splitlines() if "ERROR: " in line]
    said = f" pip said: {lines[-1].rstrip('.')}." if lines else ""
    if any(sign in errors for sign in _CERTIFICATE_SIGNS):
        return DownloadError(
            f"The package index shows a certificate that this machine does not trust.{said}",
            hint="Behind a company proxy, set PIP_CERT to the company's certificate file.",
        )
    if any(sign in errors for sign in _NETWORK_SIGNS):
        return DownloadError(
            "The package index cannot be reached.",
            hint="Check the network (behind a proxy set HTTPS_PROXY), then try again.",
        )
    return DownloadError(
        f"The package index has no {wheel}.{said}",
        hint="If pip uses a mirror (`pip config list`), the mirror must have this package.",
    )


def _pip_command(arguments: str) -> str:
    return f"`{sys.executable} -m pip {arguments}`."

"""pip of the private environment: its plan, its run, and what its failures mean."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.console import SetupError, detail, shorten

Plan = tuple[tuple[str, str], ...]
"""What pip would install: names in lower case, and versions."""


class Pip:
    """Runs the pip that belongs to `python`, in the folder `root`."""

    def __init__(self, python: Path, root: Path) -> None:
        self._command = [str(python), "-m", "pip", "install"]
        self._root = root

    def plan(self, request: Sequence[str]) -> Plan | None:
        """What pip would install into an empty environment; None if it finds nothing."""
        # The page of PyTorch may be blocked: one retry, or a person waits for minutes.
        options = [
            *("--dry-run", "--quiet", "--report", "-", "--ignore-installed"),
            *("--only-binary=:all:", "--retries", "1"),
        ]
        result = subprocess.run(
            [*self._command, *options, *request],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=pip_environment(),
            check=False,
        )
        return parse_plan(result.stdout) if result.returncode == 0 else None

    def install(self, arguments: Sequence[str], what: str) -> None:
        """Shows pip's own progress bars on a terminal, its downloads line by line elsewhere.

        Args:
            what: how an error names what was being installed.
        """
        on_terminal = sys.stdout.isatty()
        with subprocess.Popen(
            [*self._command, *arguments],
            cwd=self._root,
            stdin=subprocess.DEVNULL,
            stdout=None if on_terminal else subprocess.PIPE,
            stderr=subprocess.PIPE if on_terminal else subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=pip_environment(),
        ) as process:
            stream = process.stderr if on_terminal else process.stdout
            assert stream is not None
            try:
                output = relay(stream)
            except KeyboardInterrupt:
                end(process)
                raise
        if process.returncode:
            raise SetupError(failure_sentence(output, what, self._root))


def relay(lines: Iterable[str]) -> str:
    """Passes on what tells a person that pip is alive; returns all of it."""
    said = []
    for line in lines:
        said.append(line)
        if line.lstrip().startswith(("Downloading ", "Installing ")) or "Retrying" in line:
            detail(shorten(line))
    return "".join(said)


def end(process: subprocess.Popen[str], patience_s: float = 3.0) -> None:
    """Waits until an interrupted pip is gone: the next set-up must not meet it at work."""
    # Ctrl-C reaches pip as well, which then tidies up; a signal to the launcher alone does not.
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.terminate()


def parse_plan(report: str) -> Plan | None:
    """pip's installation report, read."""
    try:
        found = [item["metadata"] for item in json.loads(report)["install"]]
        return tuple((item["name"].lower(), item["version"]) for item in found)
    except (ValueError, LookupError, TypeError):
        return None


def pip_environment() -> dict[str, str]:
    """The person's mirrors and proxies count; what would lead pip out of `.venv` does not."""
    misleading = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX")
    kept = {name: value for name, value in os.environ.items() if name not in misleading}
    return kept | {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_USER": "0",
    }


NETWORK_SIGNS = (
    *("NewConnectionError", "name resolution", "Max retries exceeded", "ProxyError"),
    *("Read timed out", "ConnectTimeout", "IncompleteRead"),
)


def failure_sentence(output: str, what: str, folder: Path) -> str:
    """What a failed pip or venv means, in one sentence with the next step."""
    again = "then run the same command again; it goes on from here"
    errors = [line.partition("ERROR: ")[2].strip() for line in output.splitlines()]
    last = next((line for line in reversed(errors) if line), output.strip()[-300:])
    if "No space left on device" in output or "Errno 28" in output:
        free_gb = shutil.disk_usage(folder).free / 1e9
        return (
            f"The disk is full while installing {what} ({free_gb:.1f} GB free): make room, {again}."
        )
    # Before the network: pip reports an untrusted certificate as a lost connection, too.
    if "CERTIFICATE_VERIFY_FAILED" in output:
        return (
            f"{what} cannot be downloaded, since this machine does not trust the index's "
            f"certificate: set PIP_CERT to your company's certificate file, {again}."
        )
    if any(sign in output for sign in NETWORK_SIGNS):
        return (
            f"{what} cannot be downloaded, since the package index does not answer: check the "
            f"network (behind a proxy set HTTPS_PROXY), {again}."
        )
    if "Permission denied" in output or "Errno 13" in output:
        return f"{what} cannot be written ({last}): check who owns {folder}, {again}."
    return f"{what} could not be installed: {last or 'pip gave no reason'}"

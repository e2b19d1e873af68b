"""`octavo search`, and `octavo pull` for what is not the starter model: the hub's GGUF models."""

import argparse
import json
import os
import sys
import urllib.parse
from dataclasses import asdict

from octavo.cli.terminal import ProgressLine, print_table
from octavo.core import Core
from octavo.engine.checkpoint_parts import read_model_config
from octavo.errors import InvalidInputError
from octavo.hub.hub_files import DEFAULT_ENDPOINT, parse_address
from octavo.hub.hub_pull import pull_from_hub
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.library import LibraryModel
from octavo.jobs import JobControl
from octavo.paths import AppPaths
from octavo.units import format_count

MAX_RESULTS = 100


def search_verb(options: argparse.Namespace, _paths: AppPaths) -> int:
    """`octavo search TEXT`."""
    if not 1 <= options.limit <= MAX_RESULTS:
        raise InvalidInputError(f"--limit is {options.limit}; it must be 1 to {MAX_RESULTS}.")
    text = " ".join(options.text)
    models = make_hub(options.endpoint).search(text, limit=options.limit)
    if options.json:
        print(json.dumps([asdict(model) for model in models], indent=2))
        return 0
    if not models:
        print(f"The hub has no GGUF model that fits {text!r}.")
        return 0
    rows = [
        (
            model.repository,
            format_count(model.num_parameters) if model.num_parameters else "–",
            model.architecture or "–",
            format_count(model.downloads),
            format_count(model.likes),
            "gated" if model.is_gated else "open",
        )
        for model in models
    ]
    print_table(("NAME", "PARAMETERS", "ARCHITECTURE", "DOWNLOADS", "LIKES", "ACCESS"), rows)
    return 0


def pull_hub_model(core: Core, name: str, endpoint: str | None) -> LibraryModel:
    """Fetches one of the hub's models with a progress line; raises as `pull_from_hub`."""
    hub = make_hub(endpoint)
    address = parse_address(name, endpoint=hub.endpoint)
    line = ProgressLine()
    try:
        pulled = pull_from_hub(
            hub, address, core.models_dir, JobControl(line.show), check=read_model_config
        )
    finally:
        line.clear()
    if pulled.was_here:
        print(f"{pulled.file.path} was here already, whole and unchanged.", file=sys.stderr)
    return core.library.find(str(pulled.path))


def make_hub(endpoint: str | None) -> HuggingFace:
    """The hub that the command line or the environment names.

    Raises:
        InvalidInputError: the endpoint is no web address, or the token cannot be one.
    """
    url = endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    if not _is_web_address(url):
        raise InvalidInputError(
            f"The endpoint {url!r} is no web address.",
            hint=f"It looks like {DEFAULT_ENDPOINT}; see --endpoint and $HF_ENDPOINT.",
        )
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable():
        # The value stays out of the message: messages go into the log and into bug reports.
        raise InvalidInputError("$HF_TOKEN holds characters that no token has.")
    return HuggingFace(url.rstrip("/"), token)


def _is_web_address(url: str) -> bool:
    try:
        address = urllib.parse.urlsplit(url)
        # Asking for the port checks it.
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        return False

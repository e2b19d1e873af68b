"""`octavo search`, and `octavo pull` for what is not the starter model: models of the hub."""

import argparse
import json
import sys
from dataclasses import asdict

from octavo.cli.terminal import ProgressLine, make_core, print_table
from octavo.core import Core
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.memory import MemoryPlan
from octavo.errors import InsufficientMemoryError, InvalidInputError
from octavo.hub.hub_files import HubRepository, HubVariant, choose_variant, parse_address
from octavo.hub.hub_inspect import inspect_variant
from octavo.hub.hub_pull import is_here, pull_variant
from octavo.hub.hugging_face import HubModel, HuggingFace
from octavo.hub.library import LibraryModel
from octavo.jobs import JobControl, Progress
from octavo.paths import AppPaths
from octavo.units import format_bytes, format_count

MAX_RESULTS = 100
_KINDS = {"gguf": "GGUF model", "safetensors": "model in safetensors", "any": "model Octavo reads"}


def search_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo search TEXT`."""
    if not 1 <= options.limit <= MAX_RESULTS:
        raise InvalidInputError(f"--limit is {options.limit}; it must be 1 to {MAX_RESULTS}.")
    text = " ".join(options.text)
    hub = make_core(options, paths).hub(options.endpoint or "")
    models = hub.search(text, limit=options.limit, sort=options.sort, kind=options.kind)
    if options.json:
        print(json.dumps([asdict(model) for model in models], indent=2))
        return 0
    if not models:
        print(f"The hub has no {_KINDS[options.kind]} that fits {text!r}.")
        return 0
    header = ("NAME", "KIND", "PARAMETERS", "ARCHITECTURE", "DOWNLOADS", "LIKES", "UPDATED")
    print_table((*header, "ACCESS"), [_row(model) for model in models])
    return 0


def pull_hub_model(
    core: Core, name: str, *, endpoint: str = "", force: bool = False
) -> LibraryModel:
    """Says whether one of the hub's models fits, then fetches it with a progress line.

    Args:
        force: fetches what can never fit into this machine, too.

    Raises:
        InsufficientMemoryError: it can never fit.
        OctavoError: as `pull_variant`.
    """
    hub = core.hub(endpoint)
    address = parse_address(name, endpoint=hub.endpoint)
    line = ProgressLine()
    control = JobControl(line.show)
    cache = core.hub_cache
    try:
        control.report(Progress(f"Asking about {address.repository}"))
        repository = hub.repository(address)
        variant = choose_variant(address, repository)
        was_here = is_here(repository, variant, cache)
        if not was_here:
            _judge(_plan(core, hub, repository, variant, control), line, force=force)
        path = pull_variant(
            hub,
            repository,
            variant,
            cache,
            control,
            check=read_model_config,
            cache_dir=core.paths.cache_dir,
        )
    finally:
        line.clear()
    if was_here:
        title = f"{repository.name} {variant.label}"
        print(f"{title} was here already, whole and unchanged.", file=sys.stderr)
    return core.library.find(str(path))


def _plan(
    core: Core,
    hub: HuggingFace,
    repository: HubRepository,
    variant: HubVariant,
    control: JobControl,
) -> MemoryPlan:
    """Reads the header alone; raises as `inspect_variant` and `ModelHost.plan_header`."""
    header = inspect_variant(hub, repository, variant, core.paths.cache_dir, control)
    return core.host.plan_header(header)


def _judge(plan: MemoryPlan, line: ProgressLine, *, force: bool) -> None:
    """Says whether the model fits; raises InsufficientMemoryError if it never can."""
    line.clear()
    needs, free = format_bytes(plan.total_bytes), format_bytes(plan.free_bytes)
    where = f"on {plan.device.name}"
    if plan.fits:
        tokens = f"room for {plan.kv_tokens:,} tokens of conversation"
        print(f"It fits {where}: needs {needs} of {free} free, with {tokens}.", file=sys.stderr)
        return
    # The plan is at its smallest here: shorter of cache it could not be used.
    if plan.total_bytes > plan.device.total_bytes and not force:
        raise InsufficientMemoryError(
            f"It can never fit {where}: it needs {needs}, and the whole memory there is"
            f" {format_bytes(plan.device.total_bytes)}.",
            needed_bytes=plan.total_bytes,
            free_bytes=plan.free_bytes,
            hint="Choose a smaller one. --force downloads it all the same.",
        )
    advice = " ".join(plan.remedies)
    print(f"It does not fit {where} now: needs {needs}, {free} are free. {advice}", file=sys.stderr)


def _row(model: HubModel) -> tuple[str, ...]:
    return (
        model.repository,
        model.kind,
        format_count(model.num_parameters) if model.num_parameters else "–",
        model.architecture or "–",
        format_count(model.downloads),
        format_count(model.likes),
        model.last_modified[:10] or "–",
        "gated" if model.is_gated else "open",
    )

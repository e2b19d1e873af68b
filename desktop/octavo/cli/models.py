"""`octavo pull`, `import`, `list`, `show`, `rm` and `ps`: the models on this machine."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo.checkpoint.header import read_checkpoint
from octavo.cli.hub import pull_hub_model
from octavo.cli.terminal import STARTER, find_model, make_core, print_table, pull_starter
from octavo.core import Core
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.support import family_of, format_of
from octavo.errors import OctavoError, UnsupportedModelError
from octavo.hub.library import LibraryModel
from octavo.hub.model_import import LinkKind, import_model
from octavo.hub.model_removal import link_target
from octavo.paths import AppPaths
from octavo.running import running_models
from octavo.units import format_bytes, format_count, format_seconds


def pull_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo pull`: the starter model, or one of the hub."""
    core = make_core(options, paths)
    if options.name == STARTER:
        pull_starter(core)
        model = core.library.find(STARTER)
    else:
        endpoint = options.endpoint or ""
        model = pull_hub_model(core, options.name, endpoint=endpoint, force=options.force)
    print(f"{model.name} is ready: {format_bytes(model.size_bytes)} at {model.path}")
    return 0


def import_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo import PATH…`: every path is tried; 1 if one of them was refused."""
    core = make_core(options, paths)
    status = 0
    for path in options.paths:
        try:
            print(_import_one(core, Path(path)))
        except OctavoError as error:
            print(f"octavo: {error}", file=sys.stderr)
            status = 1
    return status


def _import_one(core: Core, path: Path) -> str:
    """Imports a model and says in a sentence what became of it."""
    if model := core.library.find_at(path):
        return f"{path} is in the library already, as {model.name}."
    done = import_model(path, core.models_dir, check=read_model_config)
    name = core.library.find(str(done.path)).name
    if done.was_here:
        return f"{path} is in the library already, as {name}."
    if done.kind is LinkKind.COPY:
        return f"{name} is copied to {done.path}: this drive has no links to {done.source}."
    return f"{name} is in the library; its files stay at {done.source}."


def list_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo list`: the library, unreadable files included."""
    core = make_core(options, paths)
    models = core.library.scan()
    for problem in core.library.problems:
        print(f"octavo: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps([_as_json(model) for model in models], indent=2))
        return 0
    if not models:
        print(f"No models yet. `octavo pull {STARTER}` fetches a small one.")
        return 0
    rows = [
        (
            model.name,
            format_bytes(model.size_bytes),
            model.quantization or "–",
            format_count(model.num_parameters) if model.num_parameters else "–",
            f"{model.context_length:,}" if model.context_length else "–",
            model.repository or short_path(model.path.parent),
            model.problem or "ready",
        )
        for model in models
    ]
    print_table(("NAME", "SIZE", "QUANT", "PARAMETERS", "CONTEXT", "FROM", "STATE"), rows)
    return 0


def show_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo show MODEL`: what it is, whether it runs, and the memory plan of a load."""
    core = make_core(options, paths)
    model = find_model(core, options.model)
    support = _support(model)
    if model.problem:
        if options.json:
            print(json.dumps({"model": _as_json(model), "support": support}, indent=2))
        elif support:
            print_table((model.title, ""), list(support.items()))
        print(f"{model.name}: {model.problem}", file=sys.stderr)
        return 1
    plan = core.host.plan(model)
    if options.json:
        content = {"model": _as_json(model), "support": support, "plan": asdict(plan)}
        print(json.dumps(content, indent=2, default=str))
        return 0
    print_table(
        (model.title, ""),
        [
            ("name", model.name),
            ("path", str(model.path)),
            ("from", model.repository or "this machine"),
            ("size", format_bytes(model.size_bytes)),
            ("architecture", model.architecture),
            ("quantisation", model.quantization),
            ("parameters", format_count(model.num_parameters)),
            ("context", f"{model.context_length:,} tokens"),
            ("licence", model.license or "not stated"),
            *support.items(),
        ],
    )
    print(f"\nMemory plan on {plan.device.name}, {plan.dtype}")
    rows = [(item.name, format_bytes(item.num_bytes), item.detail) for item in plan.items]
    total = f"{format_bytes(plan.free_bytes)} are free"
    print_table(("", "", ""), [*rows, ("total", format_bytes(plan.total_bytes), total)])
    print(f"\n{fit_sentence(core, model)}")
    return 0


def _support(model: LibraryModel) -> dict[str, str]:
    """Family and format of a model and how they are tested; empty if its header is damaged."""
    try:
        header = read_checkpoint(model.path)
    except OctavoError:
        return {}
    family = family_of(header)
    found = {"family": family.covers if family else f"{header.architecture}: none that runs"}
    try:
        stored = format_of(header)
    except UnsupportedModelError as error:
        return {**found, "format": header.quantization, "support": f"no: {error.message}"}
    found["format"] = f"{stored.title}: {header.quantization}"
    found["support"] = "does not run"
    if family is not None and not model.problem:
        found["support"] = (
            "runs; tiny random models of this family and format give transformers' logits"
        )
    if header.left_out:
        found["left out"] = header.left_out
    return found


def fit_sentence(core: Core, model: LibraryModel) -> str:
    """Whether it fits, in one sentence; the refusal of a load word for word if it does not."""
    plan = core.host.plan(model)
    try:
        plan.require_fit()
    except OctavoError as error:
        return str(error)
    return f"It fits, with room for {plan.kv_tokens:,} tokens of conversation."


def remove_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo rm MODEL`."""
    core = make_core(options, paths)
    model = core.library.find(options.model)
    target = link_target(model.path)
    freed = core.library.remove(model)
    if target is not None:
        print(f"The link to {model.name} is deleted; the model stays at {target}.")
    elif not freed and not model.problem:
        print(f"{model.name} is deleted. It frees nothing: its content has another name, too.")
    else:
        print(f"{model.name} is deleted; {format_bytes(freed)} are free again.")
    return 0


def ps_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo ps`: the models loaded by every Octavo process of this person."""
    records = running_models(paths.run_dir)
    if options.json:
        print(json.dumps([asdict(record) for record in records], indent=2))
        return 0
    if not records:
        print("No model is loaded.")
        return 0
    rows = [
        (
            record.model,
            record.device,
            format_bytes(record.memory_bytes),
            str(record.pid),
            format_seconds(time.time() - record.since),
        )
        for record in records
    ]
    print_table(("MODEL", "DEVICE", "MEMORY", "PROCESS", "FOR"), rows)
    return 0


def _as_json(model: LibraryModel) -> dict[str, Any]:
    return {**asdict(model), "path": str(model.path)}


def short_path(path: Path) -> str:
    """With `~` for the person's own folder, as terminals write it."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)

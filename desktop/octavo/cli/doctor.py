"""`octavo doctor`: machine, devices, versions, folders, what models run; what is missing."""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from octavo import __version__
from octavo.cli.terminal import STARTER, make_core, print_table
from octavo.cli.window import why_no_window
from octavo.core import Core
from octavo.engine.device import Device, default_cpu_threads, detect_devices
from octavo.engine.families import FAMILIES, Family
from octavo.engine.support import FORMATS, TESTED, StoredFormat, runs
from octavo.errors import OctavoError
from octavo.hub.library import LibraryModel
from octavo.monitor.inventory import InventoryCard, take_inventory
from octavo.paths import AppPaths
from octavo.units import format_bytes

PACKAGES = ("torch", "pyside6-essentials", "qasync", "tokenizers", "nvidia-ml-py", "numba", "numpy")
LOW_DISK_BYTES = 2 * 1024**3
RUNNABLE = "Models that run"


@dataclass(slots=True)
class Findings:
    """What was found, section by section, and what a person should know or do about it."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)


def doctor_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo doctor`: always 0; what is wrong is said, not signalled."""
    findings = examine(paths, make_core(options, paths))
    if options.json:
        runnable = {
            family.covers: {stored.title: _entry(family, stored) for stored in FORMATS}
            for family in FAMILIES
        }
        content = {**findings.sections, RUNNABLE: runnable, "advice": findings.advice}
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    for title, entries in findings.sections.items():
        print_table((title, ""), [(f"  {name}", value) for name, value in entries.items()])
        print()
    _print_runnable()
    if not findings.advice:
        print("Everything Octavo needs is here.")
    for sentence in findings.advice:
        print(f"→ {sentence}")
    return 0


def _print_runnable() -> None:
    """Which families run from which formats, by how that is tested."""
    print_table(
        (RUNNABLE, *(stored.title for stored in FORMATS)),
        [
            (f"  {family.covers}", *(_entry(family, stored) for stored in FORMATS))
            for family in FAMILIES
        ],
    )
    print(f"  {TESTED}: runs; tiny random models of it, so stored, give transformers' logits\n")


def _entry(family: Family, stored: StoredFormat) -> str:
    return TESTED if runs(family, stored) else "–"


def examine(paths: AppPaths, core: Core) -> Findings:
    """Looks at everything; loads no model and creates nothing."""
    findings = Findings()
    findings.sections["Machine"] = _machine()
    _examine_devices(findings, detect_devices())
    _examine_kernels(findings, paths, core)
    _examine_cards(findings, take_inventory())
    _examine_versions(findings)
    _examine_window(findings)
    _examine_folders(findings, paths, core)
    _examine_library(findings, core)
    return findings


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{psutil.cpu_count(logical=False) or '?'} cores,"
        f" {psutil.cpu_count()} threads",
        "memory": f"{format_bytes(memory.total)}, {format_bytes(memory.available)} free",
    }


def _examine_devices(findings: Findings, devices: list[Device]) -> None:
    findings.sections["Devices"] = {
        device.torch_name: f"{device.name}, {format_bytes(device.total_bytes)}"
        + ("" if device.supported else f" – not used: {device.reason}")
        for device in devices
    }
    if not any(device.kind == "cuda" for device in devices):
        findings.advice.append("No NVIDIA GPU answers; models run on the CPU.")
    for device in devices:
        if not device.supported:
            findings.advice.append(f"{device.name} is not used: {device.reason}")


def _examine_kernels(findings: Findings, paths: AppPaths, core: Core) -> None:
    """What the processor's compiled kernels have to work with."""
    # Loads llvmlite, which knows the processor.
    from octavo.engine.kernels.cpu.simd_tier import Tier, compiled_tier, has_bfloat_dots

    settings = core.settings.value.engine
    tier = compiled_tier()
    num_kept = core.tile_store.num_models()
    findings.sections["CPU kernels"] = {
        "vectors": "none that they know: torch computes" if tier is Tier.NONE else str(tier),
        "prompts": "attend in 16 bits where weights are quantised"
        if has_bfloat_dots()
        else "attend in float32",
        "threads": str(settings.cpu_threads or default_cpu_threads()),
        "switched": "off" if settings.cpu_kernels == "off" else "on",
        "compiled": str(paths.kernels_dir),
        "weights kept for loads": f"{format_bytes(core.tile_store.num_bytes())} of"
        f" {num_kept} model{'' if num_kept == 1 else 's'} in {paths.tiles_dir}",
    }


def _examine_cards(findings: Findings, cards: list[InventoryCard]) -> None:
    """Every graphics card, also one that no driver speaks for, and what can use it."""
    entries: dict[str, str] = {}
    for index, card in enumerate(cards):
        number = f" ({index + 1})" if len(cards) > 1 else ""
        name = f"{card.manufacturer} {card.model.removeprefix(card.manufacturer).strip()}{number}"
        entries[name] = (
            f"{card.vram_text} VRAM, {card.interface or 'interface unknown'},"
            f" compute capability {card.compute_capability_text}"
        )
        if card.problem:
            entries[f"{name}: now"] = card.problem
            if card.could_be_used:
                findings.advice.append(f"{name}: {card.problem}")
        for verdict in card.verdicts:
            answer = {True: "yes", False: "no", None: "not known"}[verdict.is_supported]
            entries[f"{name}: {verdict.software}"] = f"{answer}. {verdict.reason}"
    findings.sections["Graphics cards"] = entries or {"cards": "none found"}


def _examine_versions(findings: Findings) -> None:
    versions = {"octavo": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
            findings.advice.append(
                f"{package} is missing. `python3 packaging/launch.py` sets everything up."
            )
    findings.sections["Versions"] = versions


def _examine_window(findings: Findings) -> None:
    reason = why_no_window(os.environ, sys.platform)
    findings.sections["Window"] = {"display": "answers" if reason is None else reason}
    if reason is not None:
        findings.advice.append(f"{reason}: `octavo` chats on the terminal instead.")


def _examine_folders(findings: Findings, paths: AppPaths, core: Core) -> None:
    folders = {
        "models": core.models_dir,
        "data": paths.data_dir,
        "settings": paths.config_dir,
        "cache": paths.cache_dir,
    }
    entries = {}
    for name, folder in folders.items():
        existing = _nearest_existing(folder)
        free = shutil.disk_usage(existing).free
        entries[name] = f"{folder} ({format_bytes(free)} free)"
        if not os.access(existing, os.W_OK):
            findings.advice.append(f"The {name} folder {folder} cannot be written.")
        elif name == "models" and free < LOW_DISK_BYTES:
            findings.advice.append(
                f"Only {format_bytes(free)} are free at {folder}: too little for most models."
            )
    entries["log"] = str(paths.log_file)
    findings.sections["Folders"] = entries
    if core.settings_error is not None:
        findings.advice.append(str(core.settings_error))


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _examine_library(findings: Findings, core: Core) -> None:
    models = core.library.scan()
    findings.sections["Library"] = {
        model.name: model.problem or _describe(core, model) for model in models
    } or {"models": "none"}
    findings.advice += core.library.problems
    if not models:
        findings.advice.append(f"No models yet: `octavo pull {STARTER}` fetches a small one.")


def _describe(core: Core, model: LibraryModel) -> str:
    """What a model is, and what would run it."""
    text = f"{model.quantization}, {format_bytes(model.size_bytes)}"
    try:
        plan = core.host.plan(model)
    except OctavoError as error:
        return f"{text}; cannot be loaded: {error}"
    if plan.uses_kernels:
        return f"{text}; runs on the CPU kernels"
    if plan.device.kind == "cpu":
        return f"{text}; runs in plain torch. {plan.why_not_kernels}"
    return f"{text}; runs on {plan.device.name}"

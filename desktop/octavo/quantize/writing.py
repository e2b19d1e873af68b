"""`write_model`: from a recipe to a finished model on disk, weight by weight; no evaluation."""

import contextlib
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from octavo.checkpoint.header import CheckpointHeader, read_checkpoint
from octavo.hub.disk import storage_error
from octavo.hub.file_lock import locked
from octavo.jobs import JobControl, Progress
from octavo.quantize.conversion.folder_files import write_folder_files
from octavo.quantize.conversion.gguf_metadata import gguf_metadata
from octavo.quantize.conversion.gguf_values import string, uint32
from octavo.quantize.file_layout import FileLayout
from octavo.quantize.methods import ROW, QuantizeMethod
from octavo.quantize.methods.encoders import encode
from octavo.quantize.partial_output import PartialOutput
from octavo.quantize.plan import QuantizePlan
from octavo.quantize.recipe import METHOD_KEY, QuantizeRecipe
from octavo.quantize.source_weights import SourceWeights, source_files
from octavo.quantize.writer_gguf import lay_out_gguf
from octavo.quantize.writer_safetensors import lay_out_safetensors

ENCODER_VERSION = 2
"""Raised when the same recipe gives other bytes than before, so that no run goes on from those."""

_FILE_TYPES = {"q8_0": 7, "q4_0": 2}
"""`general.file_type` of GGUF."""
_GGUF_QUANTIZATION_VERSION = 2
_DTYPES = {"f16": "float16", "bf16": "bfloat16"}
_GGUF_FILE = "model.gguf-part"
"""Not `.gguf`: what is not finished must not be listed as a model."""


def write_model(recipe: QuantizeRecipe, control: JobControl) -> QuantizePlan:
    """Writes the quantised model; goes on from what an interrupted run left.

    Raises:
        OctavoError: as `QuantizeRecipe.check`, or a weight is damaged, or the disk is full.
        JobCancelled: `control` was cancelled; what is finished is kept.
    """
    plan = recipe.check()
    header = read_checkpoint(recipe.source)
    layout = _lay_out(header, plan)
    is_folder = plan.method.container == "safetensors"
    folder = recipe.partial
    num_threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(num_threads, "octavo-encode", torch.set_num_threads, (1,))
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, num_threads)
        stack.callback(executor.shutdown, cancel_futures=True)
        torch.set_num_threads(1)
        stack.enter_context(locked(folder / "lock", control, "Waiting for another Octavo"))
        if recipe.output.exists():
            # Another Octavo has just finished the same.
            recipe.check()
        partial = stack.enter_context(
            PartialOutput(folder, layout, _fingerprint(header, recipe, layout))
        )
        if is_folder:
            # First: what has no place in a folder is refused now, not after an hour.
            dtype = _DTYPES[plan.half]
            packing = compressed_tensors_config(plan)
            write_folder_files(header, partial.small_files, packing, dtype=dtype)
        weights = SourceWeights(header)
        done_bytes = 0

        def report(num_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += num_bytes
            control.report(Progress("Quantising", done_bytes, plan.num_bytes))

        report(0)
        for weight in plan.weights:
            if partial.holds(weight):
                report(weight.num_bytes)
            else:
                partial.write(weight, encode(weight, weights.read(weight), executor), report)
        control.report(Progress("Finishing the files"))
        partial.finish(recipe.output, is_folder=is_folder)
    return plan


def compressed_tensors_config(plan: QuantizePlan) -> dict[str, Any]:
    """`quantization_config` of a config.json, as compressed-tensors writes and reads it.

    The first group is for all linear layers; those whose groups are smaller are named before it
    counts, as names come before classes.
    """
    groups = {"group_0": _config_group(plan.method, plan.method.group_size, ["Linear"])}
    smaller: dict[int, set[str]] = {}
    for weight in plan.matrices:
        if weight.group_size not in (0, plan.method.group_size):
            smaller.setdefault(weight.group_size, set()).add(_pattern(weight.name))
    for size in sorted(smaller, reverse=True):
        groups[f"group_{len(groups)}"] = _config_group(plan.method, size, sorted(smaller[size]))
    return {
        "config_groups": groups,
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": plan.unquantized_modules,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _config_group(method: QuantizeMethod, group_size: int, targets: list[str]) -> dict[str, Any]:
    is_per_row = group_size == ROW
    weights: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None if is_per_row else group_size,
        "num_bits": method.bits,
        "observer": "mse" if method.bits == 4 else "minmax",
        "observer_kwargs": {},
        "strategy": "channel" if is_per_row else "group",
        "symmetric": True,
        "type": "int",
    }
    return {
        "input_activations": None,
        "output_activations": None,
        "targets": targets,
        "weights": weights,
    }


def _pattern(name: str) -> str:
    """A module's name in any layer, and of any expert: their widths are the same."""
    module = re.escape(name.removesuffix(".weight"))
    return "re:" + re.sub(r"\\\.[0-9]+\\\.", r"\\.[0-9]+\\.", module) + "$"


def _lay_out(header: CheckpointHeader, plan: QuantizePlan) -> FileLayout:
    if plan.method.container == "safetensors":
        return lay_out_safetensors(plan)
    metadata = {
        **gguf_metadata(header),
        "general.file_type": uint32(_FILE_TYPES[plan.method.id]),
        "general.quantization_version": uint32(_GGUF_QUANTIZATION_VERSION),
        METHOD_KEY: string(plan.method.id),
    }
    tensors = [output for weight in plan.weights for output in weight.outputs]
    return lay_out_gguf(tensors, metadata, _GGUF_FILE)


def _fingerprint(header: CheckpointHeader, recipe: QuantizeRecipe, layout: FileLayout) -> str:
    """The same for the same source, method and layout only."""
    try:
        sources = [
            (str(path), path.stat().st_size, path.stat().st_mtime_ns)
            for path in source_files(header)
        ]
    except OSError as error:
        raise storage_error(error, recipe.source) from error
    facts = [ENCODER_VERSION, recipe.method, layout.fingerprint, sources]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

"""Matrices of experts that folders store as one, taken apart into those of gate, up and down.

transformers 5 keeps gate and up of all experts in one tensor. gpt-oss has always done so, with
their rows in turn and, where they are not packed, with input features before output features.
"""

import re
from collections.abc import Mapping

from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.checkpoint.stored_weights import PLAIN_DTYPES, ExpertRows, StoredWeight
from octavo.checkpoint.weight_format import Layout, WeightFormat
from octavo.errors import CheckpointError

_GPT_OSS = "gpt_oss"
_MERGED = re.compile(r"(.+\.mlp\.experts\.)(gate_up|down)_proj(_bias|_blocks|)")
_BLOCKS = "_blocks"
_SCALES = "_scales"


def merged_experts(
    tensors: Mapping[str, SafetensorsTensor],
    architecture: str,
    weight_format: WeightFormat | None,
) -> tuple[dict[str, StoredWeight], dict[str, SafetensorsTensor]]:
    """What merged tensors hold, by parameter, and the tensors that are not of that kind.

    Raises:
        CheckpointError: packed experts lack their scales.
    """
    packing = None if weight_format is None else weight_format.default
    if packing is not None and packing.layout is not Layout.MXFP4:
        packing = None
    found: dict[str, StoredWeight] = {}
    others = dict(tensors)
    for name, tensor in tensors.items():
        match = _MERGED.fullmatch(name)
        if match is None or (match[2] == "down" and architecture != _GPT_OSS):
            continue
        prefix, matrix, kind = match.groups()
        if tensor.dtype not in ({"U8"} if kind == _BLOCKS and packing else PLAIN_DTYPES):
            continue
        companions: dict[str, SafetensorsTensor] = {}
        if kind == _BLOCKS:
            scales = name.removesuffix(_BLOCKS) + _SCALES
            companions = {"scales": _scales(tensor, scales, tensors)}
            others.pop(scales)
        others.pop(name)
        suffix = "_bias" if kind == "_bias" else ""
        for part, rows in _rows(matrix, architecture, is_transposed=not kind).items():
            parameter = f"{prefix}{part}_proj{suffix}"
            linear = packing if kind == _BLOCKS else None
            found[parameter] = StoredWeight(parameter, tensor, linear, companions, rows)
    return found, others


def _rows(matrix: str, architecture: str, *, is_transposed: bool) -> dict[str, ExpertRows]:
    """Which rows of a merged matrix are whose."""
    if architecture != _GPT_OSS:
        return {name: ExpertRows(part=i, num_parts=2) for i, name in enumerate(("gate", "up"))}
    if matrix == "down":
        return {"down": ExpertRows(is_transposed=is_transposed)}
    return {
        name: ExpertRows(i, 2, is_transposed=is_transposed) for i, name in enumerate(("gate", "up"))
    }


def _scales(
    blocks: SafetensorsTensor, name: str, tensors: Mapping[str, SafetensorsTensor]
) -> SafetensorsTensor:
    scales = tensors.get(name)
    if scales is None:
        problem = f"is there, but not {name!r} that belongs to it"
    elif scales.dtype != "U8":
        problem = f"has scales of the data type {scales.dtype} instead of U8"
    else:
        return scales
    raise CheckpointError(
        f"The tensor {blocks.name!r} in {blocks.path.name} {problem}.",
        path=blocks.path,
        tensor=blocks.name,
        hint="Download the file again, or another version of this model.",
    )

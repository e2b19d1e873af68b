"""Reads what `checkpoint.merged_experts` found: one parameter's rows of a stack of experts."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.checkpoint.stored_weights import ExpertRows, StoredWeight
from octavo.engine.quantization.mxfp4 import NAN_SCALE, MXFP4Rows
from octavo.engine.quantization.packed import PackedBlocks
from octavo.engine.weights.pieces import (
    PIECE_BYTES,
    PackedTarget,
    damaged,
    not_finite,
    read_pieces,
)

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
)

_PLAIN_TYPES: Mapping[str, GGMLType] = MappingProxyType(
    {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
)


def read_merged_into(weight: StoredWeight, rows: ExpertRows, out: Tensor) -> None:
    """Reads one parameter into memory that is already there.

    The tensor is read whole for each of its parameters: the file is in the system's cache then.

    Args:
        weight: that `checkpoint.merged_experts` found.
        rows: its rows.
        out: [experts, output features, input features], or [experts, output features] for
            biases, of any floating type, on any device.

    Raises:
        CheckpointError: shapes differ, or a value is infinite or NaN.
        StorageError: a file cannot be read to the tensor's end.
    """
    weight.check(tuple(out.shape))
    if rows.is_transposed:
        selected = rows.features(out.shape[1])
        for expert, start, stored in _slabs(weight.main, 1):
            target = out[expert].T[start : start + len(stored)]
            target.copy_(stored[:, selected.start : selected.stop : selected.step])
            _check(weight.main, target)
        return
    for target, stored, scales in _selected(weight, rows, out):
        target.copy_(stored if scales is None else MXFP4Rows(stored, scales).unpack())
        _check(weight.main, target)


def read_merged_packed(
    weight: StoredWeight, rows: ExpertRows, target: PackedTarget
) -> PackedBlocks:
    """Reads one parameter in the type that its tensors are stored in.

    MXFP4 comes in the blocks of GGUF, which hold the same in another order.

    Args:
        weight: that `checkpoint.merged_experts` found.
        rows: its rows.
        target: what the model wants.

    Raises:
        As `read_merged_into`.
    """
    if "scales" not in weight.companions:
        out = torch.empty(target.shape, dtype=_DTYPES[weight.main.dtype], device=target.device)
        read_merged_into(weight, rows, out)
        packed = PackedBlocks(
            out.view(target.matrix_shape).view(torch.uint8), _PLAIN_TYPES[weight.main.dtype]
        )
    else:
        weight.check(target.shape)
        block_elements, block_bytes = BLOCK_LAYOUT[GGMLType.MXFP4]
        *stack, num_columns = target.shape
        out = torch.empty(
            *stack,
            num_columns // block_elements,
            block_bytes,
            dtype=torch.uint8,
            device=target.device,
        )
        for blocks, stored, scales in _selected(weight, rows, out):
            assert scales is not None
            blocks.copy_(MXFP4Rows(stored, scales).ggml_blocks())
        packed = PackedBlocks(out.view(target.matrix_shape[0], -1), GGMLType.MXFP4)
    if not packed.is_finite(target.dtype):
        raise not_finite(weight.path, weight.main, target.dtype)
    return packed


def _selected(
    weight: StoredWeight, rows: ExpertRows, out: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Parts of `out` with the rows that belong there, as stored, and their scales if packed.

    Args:
        weight: that `checkpoint.merged_experts` found.
        rows: its rows, input features last.
        out: [experts, output features, ...].
    """
    selected = rows.features(out.shape[1])
    for expert, start, stored, scales in _scaled_slabs(weight, rows.step):
        inside = _inside(selected, start, len(stored))
        if not inside:
            continue
        cut = slice(inside.start - start, inside.stop - start, inside.step)
        chosen = None if scales is None else scales[cut].to(out.device)
        if chosen is not None and bool((chosen == NAN_SCALE).any()):
            raise damaged(weight.path, weight.companions["scales"], "holds a scale that is NaN")
        first = (inside.start - selected.start) // selected.step
        yield out[expert, first : first + len(inside)], stored[cut].to(out.device), chosen


def _inside(selected: range, start: int, length: int) -> range:
    """Those of the selected rows that lie in a slab; slabs begin where a turn does."""
    first = max(selected.start, start + selected.start % selected.step)
    return range(first, min(selected.stop, start + length), selected.step)


def _rows_per_slab(tensor: SafetensorsTensor, unit: int) -> int:
    row_bytes = max(1, tensor.num_bytes // (tensor.shape[0] * tensor.shape[1]))
    return max(1, PIECE_BYTES // (row_bytes * unit)) * unit


def _slabs(
    tensor: SafetensorsTensor, unit: int, rows_per_slab: int | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """The stack piece by piece: expert, first row, and the rows as stored.

    Args:
        tensor: [experts, rows, ...].
        unit: slabs begin at multiples of it.
        rows_per_slab: None: as many as make a piece.
    """
    num_experts, num_rows, *rest = tensor.shape
    step = rows_per_slab or _rows_per_slab(tensor, unit)
    spans = [
        (expert, start, min(step, num_rows - start))
        for expert in range(num_experts)
        for start in range(0, num_rows, step)
    ]
    row_bytes = tensor.num_bytes // (num_experts * num_rows)
    sizes = [length * row_bytes for _, _, length in spans]
    pieces = read_pieces(tensor.path, tensor, sizes)
    for (expert, start, length), raw in zip(spans, pieces, strict=True):
        yield expert, start, raw.view(_DTYPES[tensor.dtype]).view(length, *rest)


def _scaled_slabs(
    weight: StoredWeight, unit: int
) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """As `_slabs`, with the scales of the rows where they are packed."""
    scales = weight.companions.get("scales")
    if scales is None:
        for expert, start, rows in _slabs(weight.main, unit):
            yield expert, start, rows, None
        return
    step = _rows_per_slab(weight.main, unit)
    for (expert, start, rows), (_, _, row_scales) in zip(
        _slabs(weight.main, unit, step), _slabs(scales, unit, step), strict=True
    ):
        yield expert, start, rows, row_scales


def _check(tensor: SafetensorsTensor, target: Tensor) -> None:
    # One infinity or NaN makes the sum infinite or NaN; weights are too small to do so.
    if not torch.sum(target, dtype=torch.float32).isfinite():
        kind = str(target.dtype).removeprefix("torch.")
        raise damaged(tensor.path, tensor, f"holds values that are NaN or infinite in {kind}")

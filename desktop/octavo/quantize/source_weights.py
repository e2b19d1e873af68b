"""`SourceWeights`: reads the weights of a source one at a time, with the engine's own unpackers."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.gguf import TensorInfo
from octavo.checkpoint.gguf_types import BLOCK_LAYOUT, GGMLType
from octavo.checkpoint.header import CheckpointHeader
from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.quantization.gguf import dequantize_into
from octavo.engine.weights.pieces import PIECE_BYTES, damaged, read_pieces
from octavo.quantize.conversion.row_order import permute_rows, unpermute_rows
from octavo.quantize.conversion.weight_sources import SourcePart
from octavo.quantize.methods.encoders import unpacked_dtype
from octavo.quantize.plan import WeightPlan

_TYPES: Mapping[str, GGMLType] = MappingProxyType(
    {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
)
"""Data types of safetensors in the words of `dequantize_into`."""


class SourceWeights:
    """The weights that a plan names. Holds nothing open and keeps none of them."""

    def __init__(self, header: CheckpointHeader) -> None:
        self._header = header
        self._config = read_model_config(header)

    def read(self, weight: WeightPlan) -> Iterator[Tensor]:
        """One weight in its `unpacked_dtype`, part by part, each as the output has it.

        Raises:
            CheckpointError: a value is infinite, NaN or makes no sense.
            StorageError: the file cannot be read to the weight's end.
        """
        source, dtype = weight.source, unpacked_dtype(weight)
        if source.values:
            yield torch.tensor(source.values, dtype=dtype)
        rows = source.shape[0] // max(1, len(source.parts))
        is_stack = len(source.parts) > 1
        for part in source.parts:
            # One matrix of a stack; or all there is, a single row counting as a list.
            shape = source.shape[1:] if is_stack else (rows, *source.shape[1:])
            # In float32 as long as something is added: the difference to 1 may be small.
            values = torch.empty(shape, dtype=torch.float32 if source.offset else dtype)
            self._read_part(part, values)
            if source.offset:
                values = (values + source.offset).to(dtype)
            if source.row_order != "kept":
                reorder = permute_rows if source.row_order == "to_gguf" else unpermute_rows
                values = reorder(values, self._config.head_dim, self._config.rope.rotary_dim)
            yield values

    def _read_part(self, part: SourcePart, out: Tensor) -> None:
        tensor = self._header.tensors[part.tensor]
        if isinstance(tensor, SafetensorsTensor):
            ggml_type = _TYPES[tensor.dtype]
        else:
            ggml_type = tensor.ggml_type
        if part.expert is not None:
            tensor = _rows_of(tensor, part.expert, part.rows)
        assert math.prod(tensor.shape) == out.numel(), "the plan has the shapes of the source"
        _read_into(out, tensor.path, tensor, ggml_type)


def _rows_of(
    stack: SafetensorsTensor | TensorInfo, index: int, rows: tuple[int, int] | None
) -> SafetensorsTensor | TensorInfo:
    """Rows of one matrix of several in a tensor, as if they were a tensor of their own."""
    num_rows = stack.shape[1]
    first, last = (0, num_rows) if rows is None else rows
    row_bytes = stack.num_bytes // (stack.shape[0] * num_rows)
    return dataclasses.replace(
        stack,
        shape=(last - first, *stack.shape[2:]),
        num_bytes=(last - first) * row_bytes,
        offset=stack.offset + (index * num_rows + first) * row_bytes,
    )


def source_files(header: CheckpointHeader) -> list[Path]:
    """The files that the weights lie in."""
    return sorted({tensor.path for tensor in header.tensors.values()})


def _read_into(
    out: Tensor, path: Path, tensor: SafetensorsTensor | TensorInfo, ggml_type: GGMLType
) -> None:
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    blocks = out.view(-1, block_elements)
    pieces = torch.split(blocks, max(1, PIECE_BYTES // block_bytes))
    sizes = [len(piece) * block_bytes for piece in pieces]
    for piece, raw in zip(pieces, read_pieces(path, tensor, sizes), strict=True):
        if not dequantize_into(piece, raw, ggml_type):
            kind = str(out.dtype).removeprefix("torch.")
            raise damaged(path, tensor, f"holds values that are NaN or infinite in {kind}")

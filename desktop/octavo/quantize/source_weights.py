"""`SourceWeights`: reads the weights of a source one at a time, with the engine's own unpackers."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

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
_Stored: TypeAlias = SafetensorsTensor | TensorInfo


class SourceWeights:
    """The weights that a plan names. Holds nothing open and keeps none of them."""

    def __init__(self, header: CheckpointHeader) -> None:
        self._header = header
        self._config = read_model_config(header)

    def read(self, weight: WeightPlan) -> Iterator[Tensor]:
        """One weight in its `unpacked_dtype`, some rows at a time, each as the output has it.

        Raises:
            CheckpointError: a value is infinite, NaN or makes no sense.
            StorageError: the file cannot be read to the weight's end.
        """
        source, dtype = weight.source, unpacked_dtype(weight)
        if source.values:
            yield torch.tensor(source.values, dtype=dtype)
        for part in source.parts:
            tensor, ggml_type = self._find(part)
            num_rows = tensor.shape[0]
            for first in range(0, num_rows, weight.rows_at_a_time):
                rows = _rows_of(tensor, first, min(first + weight.rows_at_a_time, num_rows))
                # In float32 as long as something is added: the difference to 1 may be small.
                kind = torch.float32 if source.offset else dtype
                values = torch.empty(rows.shape, dtype=kind)
                _read_into(values, rows.path, rows, ggml_type)
                if source.offset:
                    values = (values + source.offset).to(dtype)
                if source.row_order != "kept":
                    reorder = permute_rows if source.row_order == "to_gguf" else unpermute_rows
                    values = reorder(values, self._config.head_dim, self._config.rope.rotary_dim)
                yield values

    def _find(self, part: SourcePart) -> tuple[_Stored, GGMLType]:
        """The tensor of a part, and how its values are stored."""
        tensor = self._header.tensors[part.tensor]
        if isinstance(tensor, SafetensorsTensor):
            ggml_type = _TYPES[tensor.dtype]
        else:
            ggml_type = tensor.ggml_type
        if len(tensor.shape) > 1:
            # The rows of all matrices, where there are several, one after the other.
            rows = (math.prod(tensor.shape[:-1]), tensor.shape[-1])
            flat = dataclasses.replace(tensor, shape=rows)
        else:
            flat = tensor
        if part.expert is None:
            return flat, ggml_type
        num_rows = tensor.shape[1]
        first, last = part.rows or (0, num_rows)
        start = part.expert * num_rows
        return _rows_of(flat, start + first, start + last), ggml_type


def _rows_of(tensor: _Stored, first: int, last: int) -> _Stored:
    """Some rows of a tensor, as if they were a tensor of their own."""
    row_bytes = tensor.num_bytes // tensor.shape[0]
    return dataclasses.replace(
        tensor,
        shape=(last - first, *tensor.shape[1:]),
        num_bytes=(last - first) * row_bytes,
        offset=tensor.offset + first * row_bytes,
    )


def source_files(header: CheckpointHeader) -> list[Path]:
    """The files that the weights lie in."""
    return sorted({tensor.path for tensor in header.tensors.values()})


def _read_into(out: Tensor, path: Path, tensor: _Stored, ggml_type: GGMLType) -> None:
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    blocks = out.view(-1, block_elements)
    pieces = torch.split(blocks, max(1, PIECE_BYTES // block_bytes))
    sizes = [len(piece) * block_bytes for piece in pieces]
    for piece, raw in zip(pieces, read_pieces(path, tensor, sizes), strict=True):
        if not dequantize_into(piece, raw, ggml_type):
            kind = str(out.dtype).removeprefix("torch.")
            raise damaged(path, tensor, f"holds values that are NaN or infinite in {kind}")

"""Reads the weights of a model folder; its names and layout are those of the modules."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.checkpoint.stored_weights import StoredWeight
from octavo.engine.quantization.gguf import dequantize_into
from octavo.engine.quantization.packed import PLAIN_DTYPES, PackedBlocks, PackedWeight
from octavo.engine.weights.merged_experts import read_merged_into, read_merged_packed
from octavo.engine.weights.pieces import (
    PIECE_BYTES,
    PackedTarget,
    is_held_dense,
    not_finite,
    piece_bytes,
    read_into_memory,
    read_pieces,
)
from octavo.engine.weights.quantized import read_packed_linear, read_quantized_into

_TYPES: Mapping[str, tuple[GGMLType, int]] = MappingProxyType(
    {"F32": (GGMLType.F32, 4), "F16": (GGMLType.F16, 2), "BF16": (GGMLType.BF16, 2)}
)
"""The same type in the words of `dequantize_into`, and its bytes."""
_IGNORED = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tables of early checkpoints that follow from config.json."""


_BIAS_SUFFIX = ".bias"


class SafetensorsWeights:
    """The weights of one folder. Holds nothing open, and any thread may read from it.

    Raises:
        UnsupportedModelError: a kind of quantisation or a data type that is not understood.
        CheckpointError: a quantised weight lacks one of its tensors.
    """

    def __init__(self, header: FolderHeader, *, has_place: Callable[[str], bool]) -> None:
        is_quantized = header.weight_format() is not None
        self.tensors: Mapping[str, StoredWeight] = {
            name: weight
            for name, weight in header.weights().items()
            if not _IGNORED.fullmatch(name)
            # Early GPTQ writers gave every matrix a bias of zeros.
            and not (
                is_quantized
                and name.endswith(_BIAS_SUFFIX)
                and not has_place(name)
                and _is_zero(weight.main)
            )
        }

    def read_into(self, name: str, out: Tensor) -> None:
        """Reads one weight into memory that is already there; as `CheckpointWeights` says."""
        weight = self.tensors[name]
        if weight.rows is not None:
            read_merged_into(weight, weight.rows, out)
            return
        if weight.format is not None:
            read_quantized_into(weight, weight.format, out)
            return
        weight.check(tuple(out.shape))
        tensor = weight.main
        ggml_type, element_bytes = _TYPES[tensor.dtype]
        if out.device.type != "cpu" and PLAIN_DTYPES[ggml_type] is out.dtype:
            # As it is stored, so straight to where it stays.
            read_into_memory(tensor.path, tensor, out.view(-1).view(torch.uint8))
            if not bool(torch.sum(out, dtype=torch.float32).isfinite()):
                raise not_finite(tensor.path, tensor, out.dtype)
            return
        pieces = torch.split(out.view(-1), piece_bytes(out.device) // element_bytes)
        sizes = [len(piece) * element_bytes for piece in pieces]
        raws = read_pieces(tensor.path, tensor, sizes, out.device)
        for piece, raw in zip(pieces, raws, strict=True):
            if not dequantize_into(piece, raw, ggml_type):
                raise not_finite(tensor.path, tensor, out.dtype)

    def read_packed(self, name: str, target: PackedTarget) -> Tensor | PackedWeight:
        """Reads one matrix as it is stored; as `CheckpointWeights` says."""
        weight = self.tensors[name]
        if weight.rows is None and weight.format is not None:
            return read_packed_linear(weight, weight.format, target)
        tensor = weight.main
        ggml_type, _ = _TYPES.get(tensor.dtype, (None, 0))
        if ggml_type is not None and is_held_dense(PLAIN_DTYPES[ggml_type], target.dtype):
            out = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            self.read_into(name, out)
            return out.view(target.matrix_shape)
        if weight.rows is not None:
            return read_merged_packed(weight, weight.rows, target)
        assert ggml_type is not None
        weight.check(target.shape)
        raw = torch.empty(tensor.num_bytes, dtype=torch.uint8, device=target.device)
        read_into_memory(tensor.path, tensor, raw)
        packed = PackedBlocks(raw.view(target.matrix_shape[0], -1), ggml_type)
        if not packed.is_finite(target.dtype):
            raise not_finite(tensor.path, tensor, target.dtype)
        return packed


def _is_zero(tensor: SafetensorsTensor) -> bool:
    sizes = [PIECE_BYTES] * (tensor.num_bytes // PIECE_BYTES)
    sizes += [tensor.num_bytes % PIECE_BYTES]
    return not any(bool(raw.any()) for raw in read_pieces(tensor.path, tensor, sizes))

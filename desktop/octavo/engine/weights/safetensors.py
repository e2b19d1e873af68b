"""Reads the weights of a model folder; its names and layout are those of the modules."""

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGMLType
from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.engine.quantization.gguf import dequantize_into
from octavo.engine.weights.pieces import PIECE_BYTES, damaged, read_pieces

_TYPES: Mapping[str, tuple[GGMLType, int]] = MappingProxyType(
    {"F32": (GGMLType.F32, 4), "F16": (GGMLType.F16, 2), "BF16": (GGMLType.BF16, 2)}
)
"""The same type in the words of `dequantize_into`, and its bytes."""
_IGNORED = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tables of early checkpoints that follow from config.json."""


class SafetensorsWeights:
    """The weights of one folder. Holds nothing open, and any thread may read from it."""

    def __init__(self, header: FolderHeader) -> None:
        self.tensors: Mapping[str, SafetensorsTensor] = {
            name: tensor for name, tensor in header.tensors.items() if not _IGNORED.fullmatch(name)
        }

    def read_into(self, name: str, out: Tensor) -> None:
        """Reads one weight into memory that is already there; as `CheckpointWeights` says."""
        tensor = self.tensors[name]
        if tensor.shape != tuple(out.shape):
            raise damaged(
                tensor.path,
                tensor,
                f"has the shape {list(tensor.shape)} instead of {list(out.shape)}",
            )
        ggml_type, element_bytes = _TYPES[tensor.dtype]
        pieces = torch.split(out.view(-1), PIECE_BYTES // element_bytes)
        sizes = [len(piece) * element_bytes for piece in pieces]
        for piece, raw in zip(pieces, read_pieces(tensor.path, tensor, sizes), strict=True):
            if not dequantize_into(piece, raw.to(out.device), ggml_type):
                kind = str(out.dtype).removeprefix("torch.")
                raise damaged(
                    tensor.path, tensor, f"holds values that are NaN or infinite in {kind}"
                )

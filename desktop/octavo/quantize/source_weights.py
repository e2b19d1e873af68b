"""`SourceWeights`: reads the weights of a source one at a time, with the engine's own unpackers."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import TensorInfo
from octavo.checkpoint.gguf_names import FREQ_FACTORS
from octavo.checkpoint.gguf_types import BLOCK_LAYOUT, GGMLType
from octavo.checkpoint.header import CheckpointHeader
from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.quantization.gguf import dequantize_into
from octavo.engine.weights.gguf import GGUFWeights
from octavo.engine.weights.pieces import PIECE_BYTES, damaged, read_pieces
from octavo.quantize.conversion.rope_scaling import rope_factors
from octavo.quantize.conversion.tensor_names import permute_rows
from octavo.quantize.methods.encoders import unpacked_dtype
from octavo.quantize.plan import QuantizePlan, WeightPlan

_TYPES: Mapping[str, GGMLType] = MappingProxyType(
    {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
)
"""Data types of safetensors in the words of `dequantize_into`."""


class SourceWeights:
    """The weights that a plan names. Holds nothing open and keeps none of them."""

    def __init__(self, header: CheckpointHeader, plan: QuantizePlan) -> None:
        self._header = header
        self._config = read_model_config(header)
        self._becomes_folder = plan.method.container == "safetensors"

    def read(self, weight: WeightPlan) -> Tensor:
        """One weight in its `unpacked_dtype`, its rows in the order of the output.

        Raises:
            CheckpointError: a value is infinite, NaN or makes no sense.
            StorageError: the file cannot be read to the weight's end.
        """
        values = torch.empty(weight.shape, dtype=unpacked_dtype(weight))
        header = self._header
        if isinstance(header, FolderHeader):
            if weight.name == FREQ_FACTORS:
                return torch.tensor(rope_factors(header), dtype=torch.float32)
            tensor = header.tensors[weight.name]
            _read_into(values, tensor.path, tensor, _TYPES[tensor.dtype])
            if weight.is_permuted:
                config = self._config
                values = permute_rows(values, config.head_dim, config.rope.rotary_dim)
        elif self._becomes_folder:
            # Under its parameter's name and with the rows where Hugging Face has them.
            GGUFWeights(header, self._config).read_into(weight.name, values)
        else:
            info = header.tensors[weight.name]
            _read_into(values, info.path, info, info.ggml_type)
        return values


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

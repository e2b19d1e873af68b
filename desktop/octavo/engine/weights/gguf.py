"""Reads the weights of a GGUF file under the names Hugging Face gives them.

The file is read piece by piece into one small buffer instead of being mapped: nothing of it stays
resident, a failing disk is an error instead of a crash, and Windows can still replace the file.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGUFHeader, TensorInfo
from octavo.checkpoint.gguf_names import FREQ_FACTORS, TENSOR_NAMES
from octavo.engine.model_config import ModelConfig
from octavo.engine.quantization.gguf import dequantize_into
from octavo.engine.quantization.packed import PLAIN_DTYPES, PackedBlocks, PackedWeight
from octavo.engine.weights.pieces import (
    PIECE_BYTES,
    PackedTarget,
    damaged,
    is_held_dense,
    not_finite,
    piece_bytes,
    read_into_memory,
    read_pieces,
)
from octavo.errors import UnsupportedModelError

_IGNORED = re.compile(r"blk\.[0-9]+\.attn_rot_embd(\.weight)?")
"""Tables of early converters that follow from the metadata."""
_DIVISORS = frozenset(
    {FREQ_FACTORS, "model.rotary_emb.short_factors", "model.rotary_emb.long_factors"}
)


class GGUFWeights:
    """The weights of one file. Holds nothing open, and any thread may read from it.

    Raises:
        UnsupportedModelError: the file has tensors that a model of this architecture has not.
    """

    def __init__(self, header: GGUFHeader, config: ModelConfig) -> None:
        self._header = header
        self._config = config
        self.tensors: Mapping[str, TensorInfo] = _canonical_names(header)

    def read_into(self, name: str, out: Tensor) -> None:
        """Unpacks one weight into memory that is already there, and un-permutes q and k.

        Llama files hold the rows of q and k for rotating neighbours; here, as in Hugging Face's
        layout, channel i of a head turns with channel i + rotary_dim / 2.

        Args:
            name: as in `tensors`.
            out: contiguous, of that tensor's shape, any floating type, on any device.

        Raises:
            CheckpointError: the shapes differ, or a value is infinite, NaN or makes no sense.
            StorageError: the file cannot be read to the tensor's end.
        """
        tensor = self.tensors[name]
        path = tensor.path
        is_permuted = self._check(name, tuple(out.shape))
        row_elements = math.prod(tensor.shape[1:])
        block_elements, block_bytes = BLOCK_LAYOUT[tensor.ggml_type]
        head_elements = self._config.head_dim * row_elements if is_permuted else 1
        unit_elements = math.lcm(head_elements, block_elements)
        unit_bytes = unit_elements // block_elements * block_bytes
        units = out.view(-1, unit_elements)
        units_per_piece = max(1, piece_bytes(out.device) // unit_bytes)
        pieces = torch.split(units, units_per_piece)
        sizes = [len(piece) * unit_bytes for piece in pieces]
        raws = read_pieces(path, tensor, sizes, out.device)
        for piece, raw in zip(pieces, raws, strict=True):
            if not dequantize_into(piece, raw, tensor.ggml_type):
                raise not_finite(path, tensor, out.dtype)
            if is_permuted:
                heads = piece.view(-1, self._config.head_dim, row_elements)
                _split_pairs_into_halves(heads[:, : self._config.rope.rotary_dim])
        if name in _DIVISORS and not bool((out > 0).all()):
            raise damaged(path, tensor, "holds divisors that are zero or negative")

    def read_packed(self, name: str, target: PackedTarget) -> Tensor | PackedWeight:
        """Reads one matrix, or stack of matrices, as it is stored; q and k are un-permuted.

        As `CheckpointWeights` says.
        """
        tensor = self.tensors[name]
        if is_held_dense(PLAIN_DTYPES.get(tensor.ggml_type), target.dtype):
            out = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            self.read_into(name, out)
            return out.view(target.matrix_shape)
        is_permuted = self._check(name, target.shape)
        raw = torch.empty(tensor.num_bytes, dtype=torch.uint8, device=target.device)
        read_into_memory(tensor.path, tensor, raw)
        num_rows, _ = target.matrix_shape
        weight = PackedBlocks(raw.view(num_rows, -1), tensor.ggml_type)
        if is_permuted:
            heads = weight.blocks.view(-1, self._config.head_dim, weight.blocks.shape[1])
            for some in torch.split(heads, max(1, PIECE_BYTES // heads[0].nbytes)):
                _split_pairs_into_halves(some[:, : self._config.rope.rotary_dim])
        if not weight.is_finite(target.dtype):
            raise not_finite(tensor.path, tensor, target.dtype)
        return weight

    def _check(self, name: str, shape: tuple[int, ...]) -> bool:
        """Checks that a tensor has this shape; returns whether its rows are permuted."""
        tensor = self.tensors[name]
        # A matrix of one row is a plain list here.
        if tensor.shape not in (shape, shape[1:] if shape[:1] == (1,) else shape):
            raise damaged(
                tensor.path, tensor, f"has the shape {list(tensor.shape)} instead of {list(shape)}"
            )
        is_permuted = TENSOR_NAMES[self._header.architecture].is_permuted(name)
        if is_permuted and tensor.shape[0] % self._config.head_dim:
            raise damaged(
                tensor.path, tensor, f"has {tensor.shape[0]} rows, which are no whole heads"
            )
        return is_permuted


def _canonical_names(header: GGUFHeader) -> dict[str, TensorInfo]:
    """Tensors by their Hugging Face names, in the order in which they lie, file by file."""
    names = TENSOR_NAMES[header.architecture]
    tensors = {}
    for tensor in sorted(header.tensors.values(), key=lambda one: (one.path, one.offset)):
        if _IGNORED.fullmatch(tensor.name):
            continue
        name = names.parameter_name(tensor.name)
        if name is None:
            raise UnsupportedModelError(
                f"{header.path.name} has the tensor {tensor.name!r}, which Octavo does not know "
                f"in models of the architecture {header.architecture!r}.",
                hint="Choose another model, or another conversion of this one.",
            )
        tensors[name] = tensor
    return tensors


def _split_pairs_into_halves(heads: Tensor) -> None:
    """Reorders rows in place: those at even places first, those at odd places after them.

    Args:
        heads: [num_heads, rotary_dim, columns].
    """
    num_heads, rotary_dim, columns = heads.shape
    pairs = heads.reshape(num_heads, rotary_dim // 2, 2, columns)
    heads.copy_(pairs.transpose(1, 2).reshape(heads.shape))

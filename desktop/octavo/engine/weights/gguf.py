"""Reads the weights of a GGUF file under the names Hugging Face gives them.

The file is read piece by piece into one small buffer instead of being mapped: nothing of it stays
resident, a failing disk is an error instead of a crash, and Windows can still replace the file.
"""

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGUFHeader, TensorInfo
from octavo.engine.model_config import (
    EMBEDDING_TENSOR,
    OUTPUT_TENSOR,
    ROPE_FACTORS_TENSOR,
    ModelConfig,
)
from octavo.engine.quantization.gguf import dequantize_into
from octavo.engine.weights.pieces import PIECE_BYTES, damaged, read_pieces
from octavo.errors import UnsupportedModelError

FREQ_FACTORS = "model.rotary_emb.freq_factors"

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        EMBEDDING_TENSOR: "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        OUTPUT_TENSOR: "lm_head.weight",
        ROPE_FACTORS_TENSOR: FREQ_FACTORS,
    }
)
_LAYER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm.weight": "input_layernorm.weight",
        "attn_q.weight": "self_attn.q_proj.weight",
        "attn_q.bias": "self_attn.q_proj.bias",
        "attn_k.weight": "self_attn.k_proj.weight",
        "attn_k.bias": "self_attn.k_proj.bias",
        "attn_v.weight": "self_attn.v_proj.weight",
        "attn_v.bias": "self_attn.v_proj.bias",
        "attn_output.weight": "self_attn.o_proj.weight",
        "attn_output.bias": "self_attn.o_proj.bias",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "ffn_gate.weight": "mlp.gate_proj.weight",
        "ffn_up.weight": "mlp.up_proj.weight",
        "ffn_down.weight": "mlp.down_proj.weight",
    }
)
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.(.+)")
_IGNORED = re.compile(r"blk\.[0-9]+\.attn_rot_embd(\.weight)?")
"""Tables of early converters that follow from the metadata."""
_PERMUTED = re.compile(r".*\.self_attn\.[qk]_proj\.(weight|bias)")


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
        tensor, path = self.tensors[name], self._header.path
        if tensor.shape != tuple(out.shape):
            raise damaged(
                path, tensor, f"has the shape {list(tensor.shape)} instead of {list(out.shape)}"
            )
        is_permuted = _PERMUTED.fullmatch(name) is not None
        row_elements = math.prod(tensor.shape[1:])
        if is_permuted and tensor.shape[0] % self._config.head_dim:
            raise damaged(path, tensor, f"has {tensor.shape[0]} rows, which are no whole heads")
        block_elements, block_bytes = BLOCK_LAYOUT[tensor.ggml_type]
        head_elements = self._config.head_dim * row_elements if is_permuted else 1
        unit_elements = math.lcm(head_elements, block_elements)
        unit_bytes = unit_elements // block_elements * block_bytes
        units = out.view(-1, unit_elements)
        units_per_piece = max(1, PIECE_BYTES // unit_bytes)
        pieces = torch.split(units, units_per_piece)
        sizes = [len(piece) * unit_bytes for piece in pieces]
        for piece, raw in zip(pieces, read_pieces(path, tensor, sizes), strict=True):
            if not dequantize_into(piece, raw.to(out.device), tensor.ggml_type):
                kind = str(out.dtype).removeprefix("torch.")
                raise damaged(path, tensor, f"holds values that are NaN or infinite in {kind}")
            if is_permuted:
                heads = piece.view(-1, self._config.head_dim, row_elements)
                _split_pairs_into_halves(heads[:, : self._config.rope.rotary_dim])
        if name == FREQ_FACTORS and not bool((out > 0).all()):
            raise damaged(path, tensor, "holds divisors that are zero or negative")


def iter_gguf_weights(
    header: GGUFHeader, config: ModelConfig, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight with its name, in the order of the file, each in memory of its own.

    All come in `dtype` but the divisors of the rotary frequencies, which are always float32.

    Raises:
        UnsupportedModelError: the file has tensors that a model of this architecture has not.
        CheckpointError: a weight is damaged.
        StorageError: the file cannot be read.
    """
    weights = GGUFWeights(header, config)
    for name, tensor in weights.tensors.items():
        out = torch.empty(tensor.shape, dtype=torch.float32 if name == FREQ_FACTORS else dtype)
        weights.read_into(name, out)
        yield name, out


def _canonical_names(header: GGUFHeader) -> dict[str, TensorInfo]:
    """Tensors by their Hugging Face names, in the order in which they lie in the file."""
    tensors = {}
    for tensor in sorted(header.tensors.values(), key=lambda tensor: tensor.offset):
        if _IGNORED.fullmatch(tensor.name):
            continue
        name = _NAMES.get(tensor.name)
        if layer := _LAYER.fullmatch(tensor.name):
            part = _LAYER_NAMES.get(layer[2])
            name = f"model.layers.{layer[1]}.{part}" if part else None
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

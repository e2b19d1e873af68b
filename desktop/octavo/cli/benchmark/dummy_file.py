"""GGUF files of known shapes with random weights: speed does not depend on their values.

As llama.cpp's quantiser does it, the head is in Q6_K, also where it is the embedding, and norms are
in F32. Weights are written a piece at a time, so that memory holds no more than that.
"""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from octavo.checkpoint.gguf_names import EMBEDDING_TENSOR, OUTPUT_TENSOR
from octavo.checkpoint.gguf_types import BLOCK_LAYOUT, GGMLType
from octavo.cli.terminal import ProgressLine
from octavo.errors import InvalidInputError
from octavo.hub.disk import storage_error
from octavo.jobs import Progress
from octavo.quantize.conversion.gguf_values import (
    GGUFValue,
    GGUFValueType,
    array,
    float32,
    string,
    uint32,
)
from octavo.quantize.plan import OutputTensor
from octavo.quantize.writer_gguf import lay_out_gguf

if TYPE_CHECKING:
    from octavo.engine.model_config import ModelConfig

_FILE_TYPES: Mapping[str, tuple[GGMLType, int]] = MappingProxyType(
    {"q4_0": (GGMLType.Q4_0, 2), "q4_k": (GGMLType.Q4_K, 14)}
)
"""The type of the layers' matrices, and `general.file_type`."""
DUMMY_FILE_FORMATS = tuple(_FILE_TYPES)
_HEAD_TYPE = GGMLType.Q6_K
_PLAIN, _CONTROL = 1, 3
"""Kinds of tokens."""
_PIECE_BYTES = 16 << 20
_CODE_SPREAD = {GGMLType.Q4_0: 4.61, GGMLType.Q4_K: 4.61, GGMLType.Q6_K: 18.47}
"""Standard deviation of codes that are all as likely."""
_MEAN_CODE = 7.5
_SCALE_SPREAD = 41.9
"""Root of the mean square of block scales from 16 to 63."""

_Blocks: TypeAlias = npt.NDArray[np.uint8]


@contextlib.contextmanager
def dummy_file(shape_name: str, weight_format: str, kept: Path | None) -> Iterator[Path]:
    """A file of that shape for as long as the context lasts, or for good where `kept` says.

    Raises:
        InvalidInputError: there is no such shape or format, or `kept` is there already.
        StorageError: the disk cannot take it.
    """
    # Here, because torch comes with it.
    from octavo.engine.dummy_model import dummy_shapes, dummy_vocabulary

    shapes = dummy_shapes()
    if shape_name not in shapes:
        raise InvalidInputError(
            f"There is no shape {shape_name!r}.", hint=f"Choose one of: {', '.join(shapes)}."
        )
    if kept is not None and kept.exists():
        raise InvalidInputError(
            f"{kept} is there already.", hint="Measure it as `octavo bench PATH`, or name another."
        )
    config = shapes[shape_name]
    if config.moe is not None:
        raise InvalidInputError(
            f"{shape_name} has experts, which are not written to files.", hint="Choose bf16."
        )
    vocabulary = dummy_vocabulary(config.vocab_size)
    with contextlib.ExitStack() as stack:
        path = kept
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="octavo-"))
            path = Path(folder) / f"{shape_name}.{weight_format.upper()}.gguf"
        write_dummy_file(path, config, weight_format, vocabulary)
        yield path


def write_dummy_file(
    path: Path,
    config: "ModelConfig",
    weight_format: str,
    vocabulary: Mapping[str, str | list[str]],
) -> None:
    """Writes a model of that configuration, whole or not at all.

    Raises:
        StorageError: the disk cannot take it.
    """
    tensors = _tensors(config, _FILE_TYPES[weight_format][0])
    layout = lay_out_gguf(tensors, _metadata(config, weight_format, vocabulary), path.name)
    random = np.random.default_rng()
    line = ProgressLine()
    written = 0
    try:
        with path.open("xb") as file:
            file.write(layout.header)
            for tensor in tensors:
                # Places are aligned; what lies between them is zeros.
                file.seek(layout.offsets[tensor.name])
                for piece in _pieces(tensor, random):
                    written += file.write(piece)
                    line.show(Progress("Writing random weights", written, layout.num_bytes))
            file.truncate(layout.num_bytes)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(error, path) from error
        raise
    finally:
        line.clear()


def _tensors(config: "ModelConfig", matrix_type: GGMLType) -> list[OutputTensor]:
    """In the order in which converters write them."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    if config.qk_norm == "head":
        layer |= {"attn_q_norm": (config.head_dim,), "attn_k_norm": (config.head_dim,)}
    head = EMBEDDING_TENSOR if config.tie_word_embeddings else OUTPUT_TENSOR
    tensors = [_tensor(head, (config.vocab_size, hidden), _HEAD_TYPE)]
    if head != EMBEDDING_TENSOR:
        tensors.append(_tensor(EMBEDDING_TENSOR, (config.vocab_size, hidden), matrix_type))
    for number in range(config.num_layers):
        tensors += [
            _tensor(f"blk.{number}.{name}.weight", shape, matrix_type)
            for name, shape in layer.items()
        ]
    return [*tensors, _tensor("output_norm.weight", (hidden,), matrix_type)]


def _tensor(name: str, shape: tuple[int, ...], matrix_type: GGMLType) -> OutputTensor:
    ggml_type = matrix_type if len(shape) > 1 else GGMLType.F32
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    num_bytes = math.prod(shape) // block_elements * block_bytes
    return OutputTensor(name, ggml_type.name, shape, num_bytes)


def _metadata(
    config: "ModelConfig", weight_format: str, vocabulary: Mapping[str, str | list[str]]
) -> dict[str, GGUFValue]:
    numbers = {
        "vocab_size": uint32(config.vocab_size),
        "context_length": uint32(config.max_position_embeddings),
        "embedding_length": uint32(config.hidden_size),
        "block_count": uint32(config.num_layers),
        "feed_forward_length": uint32(config.intermediate_size),
        "attention.head_count": uint32(config.num_heads),
        "attention.head_count_kv": uint32(config.num_kv_heads),
        "attention.key_length": uint32(config.head_dim),
        "attention.value_length": uint32(config.head_dim),
        "attention.layer_norm_rms_epsilon": float32(config.rms_norm_eps),
        "rope.dimension_count": uint32(config.rope.rotary_dim),
        "rope.freq_base": float32(config.rope.theta),
    }
    return {
        "general.architecture": string(config.architecture),
        "general.name": string(f"{config.name} with random weights"),
        "general.file_type": uint32(_FILE_TYPES[weight_format][1]),
        "general.quantization_version": uint32(2),
        **{f"{config.architecture}.{key}": value for key, value in numbers.items()},
        **{
            key: string(value) if isinstance(value, str) else array(GGUFValueType.STRING, value)
            for key, value in vocabulary.items()
        },
        # What other programs want of a vocabulary, too: a token that is no text.
        "tokenizer.ggml.token_type": array(
            GGUFValueType.INT32, [*[_PLAIN] * (config.vocab_size - 1), _CONTROL]
        ),
        "tokenizer.ggml.bos_token_id": uint32(config.vocab_size - 1),
        "tokenizer.ggml.eos_token_id": uint32(config.vocab_size - 1),
    }


def _pieces(tensor: OutputTensor, random: np.random.Generator) -> Iterator[bytes]:
    """The bytes of a tensor, so that activations neither vanish nor grow, as in a trained model."""
    ggml_type = GGMLType[tensor.dtype]
    if ggml_type is GGMLType.F32:
        yield random.normal(1.0, 0.1, tensor.shape).astype(np.float32).tobytes()
        return
    block_bytes = BLOCK_LAYOUT[ggml_type][1]
    num_blocks = tensor.num_bytes // block_bytes
    spread = tensor.shape[-1] ** -0.5 / _CODE_SPREAD[ggml_type]
    for first in range(0, num_blocks, _PIECE_BYTES // block_bytes):
        count = min(_PIECE_BYTES // block_bytes, num_blocks - first)
        blocks = np.frombuffer(bytearray(random.bytes(count * block_bytes)), np.uint8)
        blocks = blocks.reshape(count, block_bytes)
        _SET_SCALES[ggml_type](blocks, spread, random)
        yield blocks.tobytes()


def _set_q4_0(blocks: _Blocks, spread: float, _random: np.random.Generator) -> None:
    blocks[:, :2] = _half(spread)


def _set_q4_k(blocks: _Blocks, spread: float, random: np.random.Generator) -> None:
    """Scale and minimum of a block are the same code, so that values lie around zero."""
    blocks[:, :2] = _half(spread / _SCALE_SPREAD)
    blocks[:, 2:4] = _half(_MEAN_CODE * spread / _SCALE_SPREAD)
    codes = random.integers(16, 64, (len(blocks), 8), dtype=np.uint8)
    # Six bits each: the upper two of the last four stand above the first four.
    blocks[:, 4:8] = blocks[:, 8:12] = codes[:, :4] | codes[:, 4:] >> 4 << 6
    blocks[:, 12:16] = (codes[:, 4:] & 15) * 17


def _set_q6_k(blocks: _Blocks, spread: float, random: np.random.Generator) -> None:
    blocks[:, 192:208] = random.integers(16, 64, (len(blocks), 16), dtype=np.uint8)
    blocks[:, 208:] = _half(spread / _SCALE_SPREAD)


def _half(value: float) -> _Blocks:
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


_SET_SCALES: Mapping[GGMLType, Callable[[_Blocks, float, np.random.Generator], None]] = (
    MappingProxyType(
        {
            GGMLType.Q4_0: _set_q4_0,
            GGMLType.Q4_K: _set_q4_k,
            GGMLType.Q6_K: _set_q6_k,
        }
    )
)
"""Puts scales into blocks of random bytes; `spread` is what a code counts."""

"""`QuantizePlan`: every tensor the output will have, from the source's header alone. No torch."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_names import EMBEDDING_TENSOR, FREQ_FACTORS, OUTPUT_TENSOR
from octavo.checkpoint.gguf_types import BLOCK_LAYOUT, GGMLType
from octavo.checkpoint.header import CheckpointHeader
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.quantize.conversion.rope_scaling import rope_factors
from octavo.quantize.conversion.tensor_names import gguf_tensor_names, permuted_parameters
from octavo.quantize.methods import QuantizeMethod

Encoding = Literal["f32", "f16", "bf16", "int4", "int8", "q4_0", "q8_0"]
"""What becomes of one weight; `methods/encoders.py` has the arithmetic."""

_OUTPUT = "lm_head.weight"
_FOLLOWS_FROM_CONFIG = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tables of early checkpoints."""
_ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8}
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output file."""

    name: str
    dtype: str
    """As the container writes it: `BF16`, `I32`, … or the name of a `GGMLType`."""
    shape: tuple[int, ...]
    """Outermost first."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """One weight of the source, and the tensors that it becomes."""

    name: str
    """As the source's file has it; of a GGUF file that becomes a folder, its parameter's."""
    shape: tuple[int, ...]
    encoding: Encoding
    outputs: tuple[OutputTensor, ...]
    is_permuted: bool = False
    """Whether its rows are written in GGUF's order, which is not the source's."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of all its outputs."""
        return sum(output.num_bytes for output in self.outputs)


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """The whole output, in the order in which it is written."""

    method: QuantizeMethod
    num_parameters: int
    """Of the source, as stored."""
    weights: tuple[WeightPlan, ...]
    half: Encoding
    """The 16-bit type of what is not quantised in a folder, and of the scales."""

    @property
    def num_bytes(self) -> int:
        return sum(weight.num_bytes for weight in self.weights)

    @property
    def bits_per_weight(self) -> float:
        return self.num_bytes * 8 / max(1, self.num_parameters)

    @property
    def largest_weight_bytes(self) -> int:
        """What unpacking it takes: float32 where it is quantised, else the type it is stored in."""
        return max(
            weight.num_elements * _unpacked_bytes(weight.encoding) for weight in self.weights
        )

    @property
    def unquantized_modules(self) -> list[str]:
        """Linear layers that stay as they are, as compressed-tensors lists them."""
        kept = [
            weight.name.removesuffix(".weight")
            for weight in self.weights
            if _is_linear(weight.name, weight.shape) and len(weight.outputs) == 1
        ]
        return ["lm_head", *(name for name in kept if name != "lm_head")]


def plan_output(header: CheckpointHeader, method: QuantizeMethod) -> QuantizePlan:
    """Decides for every weight of a model what it becomes.

    In folders the matrices of the layers are quantised; embedding, output, norms and biases stay
    in 16 bits. In GGUF files all matrices are quantised and the rest is F32, as llama.cpp does; of
    `q4_0` the matrix that gives the logits is Q8_0, where llama.cpp takes Q6_K. What cannot be cut
    into whole groups stays in 16 bits.

    Raises:
        ModelError: the source cannot be understood, or not be written into the other container.
    """
    half: Encoding = "bf16" if header.quantization == "BF16" else "f16"
    if method.container == "gguf":
        weights = [
            WeightPlan(name, shape, encoding, (_ggml_tensor(tensor, shape, encoding),), is_permuted)
            for name, shape, tensor, is_permuted in _gguf_weights(header)
            for encoding in [_gguf_encoding(tensor, shape, method, header)]
        ]
    else:
        weights = [
            WeightPlan(name, shape, encoding, _folder_tensors(name, shape, encoding, method, half))
            for name, shape in _folder_weights(header)
            for encoding in [_folder_encoding(name, shape, method, half)]
        ]
    num_parameters = sum(weight.num_elements for weight in weights)
    return QuantizePlan(method, num_parameters, tuple(weights), half)


def _gguf_weights(header: CheckpointHeader) -> Iterator[tuple[str, tuple[int, ...], str, bool]]:
    """Source's name, shape, name of the output's tensor, and whether its rows are reordered."""
    if isinstance(header, GGUFHeader):
        # One to one, for every architecture: names and the order of rows are GGUF's already.
        for name, tensor in header.tensors.items():
            yield name, tensor.shape, name, False
        return
    permuted = permuted_parameters(header)
    names = gguf_tensor_names(header)
    for name in header.tensors:
        if name not in names and not _FOLLOWS_FROM_CONFIG.fullmatch(name):
            raise UnsupportedModelError(
                f"{header.path.name} has the tensor {name!r}, for which a GGUF file of such models"
                " has no place.",
                hint="Choose a method that keeps the kind of file the model has.",
            )
    for name, tensor_name in names.items():
        if name == FREQ_FACTORS:
            factors = rope_factors(header) or ()
            yield name, (len(factors),), tensor_name, False
        else:
            yield name, _shape_in(header, name), tensor_name, name in permuted


def _folder_weights(header: CheckpointHeader) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Source's name and shape."""
    if isinstance(header, FolderHeader):
        for name, tensor in header.tensors.items():
            if not _FOLLOWS_FROM_CONFIG.fullmatch(name):
                yield name, tensor.shape
        return
    for name, tensor_name in gguf_tensor_names(header).items():
        # config.json says it in other words.
        if name != FREQ_FACTORS:
            yield name, _shape_in(header, tensor_name)


def _shape_in(header: CheckpointHeader, name: str) -> tuple[int, ...]:
    tensor = header.tensors.get(name)
    if tensor is None:
        raise CheckpointError(
            f"{header.path.name} has no tensor {name!r}: it is incomplete.",
            path=header.path,
            tensor=name,
            hint="Download it again.",
        )
    return tensor.shape


def _gguf_encoding(
    tensor: str, shape: tuple[int, ...], method: QuantizeMethod, header: CheckpointHeader
) -> Encoding:
    is_router = tensor.endswith("ffn_gate_inp.weight")
    if len(shape) < 2 or not tensor.endswith(".weight") or is_router:
        return "f32"
    if shape[-1] % method.group_in(shape[-1]):
        return "f16"
    is_tied = OUTPUT_TENSOR not in header.tensors and _OUTPUT not in header.tensors
    gives_logits = tensor == (EMBEDDING_TENSOR if is_tied else OUTPUT_TENSOR)
    return "q8_0" if method.bits == 8 or gives_logits else "q4_0"


def _ggml_tensor(name: str, shape: tuple[int, ...], encoding: Encoding) -> OutputTensor:
    ggml_type = GGMLType[encoding.upper()]
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    num_bytes = math.prod(shape) // block_elements * block_bytes
    return OutputTensor(name, ggml_type.name, shape, num_bytes)


def _folder_encoding(
    name: str, shape: tuple[int, ...], method: QuantizeMethod, half: Encoding
) -> Encoding:
    if not _is_linear(name, shape):
        return half
    values_per_word = _WORD_BITS // method.bits
    if shape[1] % method.group_in(shape[1]) or shape[1] % values_per_word:
        return half
    return "int8" if method.bits == 8 else "int4"


def _folder_tensors(
    name: str, shape: tuple[int, ...], encoding: Encoding, method: QuantizeMethod, half: Encoding
) -> tuple[OutputTensor, ...]:
    if encoding == half:
        return (_plain_tensor(name, half.upper(), shape),)
    module = name.removesuffix(".weight")
    rows, columns = shape
    return (
        _plain_tensor(
            f"{module}.weight_packed", "I32", (rows, columns * method.bits // _WORD_BITS)
        ),
        _plain_tensor(
            f"{module}.weight_scale", half.upper(), (rows, columns // method.group_in(columns))
        ),
        _plain_tensor(f"{module}.weight_shape", "I64", (2,)),
    )


def _plain_tensor(name: str, dtype: str, shape: tuple[int, ...]) -> OutputTensor:
    return OutputTensor(name, dtype, shape, math.prod(shape) * _ELEMENT_BYTES[dtype])


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith("_proj.weight")


def _unpacked_bytes(encoding: Encoding) -> int:
    return 2 if encoding in ("f16", "bf16") else 4

"""`QuantizePlan`: every tensor the output will have, from the source's header alone. No torch."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_names import EMBEDDING_TENSOR, OUTPUT_TENSOR
from octavo.checkpoint.gguf_types import BLOCK_LAYOUT, GGMLType
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.checkpoint_parts import read_model_config
from octavo.quantize.conversion.config_numbers import family_in_folders
from octavo.quantize.conversion.model_numbers import config_of_gguf, gguf_keys_of_folder
from octavo.quantize.conversion.weight_sources import WeightSource, weight_sources
from octavo.quantize.methods import OFFERED_GROUP_SIZES, ROW, QuantizeMethod
from octavo.units import format_bytes

Encoding = Literal["f32", "f16", "bf16", "int4", "int8", "q4_0", "q8_0"]
"""What becomes of one weight; `methods/encoders.py` has the arithmetic."""

_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "lm_head.weight"
_LINEAR = re.compile(r".+(_proj|\.experts\.[0-9]+\.w[123])\.weight")
"""Matrices that are quantised in folders; routers and what gives the logits are not."""
_ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8}
_READ_ELEMENTS = 1 << 24
"""Unpacked at a time, where rows stay in their order: 64 MiB."""
_UNPACKED_BYTES = 4
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
    """One weight of the output: what it is made from, and the tensors that hold it."""

    source: WeightSource
    encoding: Encoding
    outputs: tuple[OutputTensor, ...]
    group_size: int = 0
    """Weights that share a scale, `ROW`, or 0: it is not quantised."""

    @property
    def name(self) -> str:
        """Its own in the output, before anything says how it is packed."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def rows_at_a_time(self) -> int:
        """As many as are unpacked together; all of those that change their order."""
        num_rows = self.num_elements // self.width
        if self.source.row_order != "kept":
            return num_rows
        return min(num_rows, max(1, _READ_ELEMENTS // self.width))

    @property
    def width(self) -> int:
        """Of its rows; each value of a list is one."""
        return self.shape[-1] if len(self.shape) > 1 else 1

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
    left_out: str = ""
    """What of the source is not in the output, as a sentence."""

    @property
    def num_bytes(self) -> int:
        return sum(weight.num_bytes for weight in self.weights)

    @property
    def bits_per_weight(self) -> float:
        return self.num_bytes * 8 / max(1, self.num_parameters)

    @property
    def unpacked_bytes(self) -> int:
        """What is unpacked at a time, at most."""
        return max(
            weight.rows_at_a_time * weight.width * _UNPACKED_BYTES for weight in self.weights
        )

    @property
    def matrices(self) -> list[WeightPlan]:
        """Those that the method is for, quantised or not."""
        is_for = _is_linear if self.method.container == "safetensors" else _is_matrix
        return [weight for weight in self.weights if is_for(weight.source)]

    @property
    def unquantized_modules(self) -> list[str]:
        """Layers that stay as they are, as compressed-tensors lists them."""
        kept = [
            weight.name.removesuffix(".weight")
            for weight in self.weights
            if _is_matrix(weight.source) and not weight.group_size and weight.name != _EMBEDDING
        ]
        return ["lm_head", *(name for name in kept if name != "lm_head")]

    @property
    def remarks(self) -> list[str]:
        """What somebody who chose the method should know of it with this model, in sentences."""
        matrices, wanted = self.matrices, self.method.group_size
        sizes = Counter(weight.group_size for weight in matrices)
        remarks = [
            f"{sizes[size]:,} of {len(matrices):,} matrices have groups of {size} weights: "
            f"{wanted} does not divide their width."
            for size in sorted(sizes.keys() - {wanted, 0}, reverse=True)
        ]
        if self.left_out:
            remarks.append(self.left_out)
        kept = [weight for weight in matrices if not weight.group_size]
        if kept:
            smallest = min(OFFERED_GROUP_SIZES) if wanted != ROW else 32 // self.method.bits
            remarks.append(
                f"{len(kept):,} of {len(matrices):,} matrices stay in 16 bits "
                f"({format_bytes(sum(weight.num_bytes for weight in kept))}): {smallest} does not "
                "divide their width."
            )
        return remarks


def plan_output(header: CheckpointHeader, method: QuantizeMethod) -> QuantizePlan:
    """Decides for every weight of a model what it becomes.

    In folders the matrices of the layers are quantised; embedding, output, norms and biases stay
    in 16 bits. In GGUF files all matrices are quantised and the rest is F32, as llama.cpp does; of
    `q4_0` the matrix that gives the logits is Q8_0, where llama.cpp takes Q6_K. Groups are as
    large as the method says, or the largest offered ones below that cut a width into whole
    groups; what none does stays in 16 bits.

    Raises:
        ModelError: the source cannot be understood, or not be written into the other container.
    """
    if method.container == "gguf" and isinstance(header, FolderHeader):
        gguf_keys_of_folder(header)
    elif method.container == "safetensors" and isinstance(header, GGUFHeader):
        config_of_gguf(header)
    sources = weight_sources(header, method.container)
    half = _half(header)
    if method.container == "gguf":
        is_tied = all(source.name != OUTPUT_TENSOR for source in sources)
        logits = EMBEDDING_TENSOR if is_tied else OUTPUT_TENSOR
        weights = [_gguf_weight(source, method, logits) for source in sources]
    else:
        weights = [_folder_weight(source, method, half) for source in sources]
    num_parameters = sum(tensor.num_elements for tensor in header.tensors.values())
    return QuantizePlan(method, num_parameters, tuple(weights), half, header.left_out)


def _half(header: CheckpointHeader) -> Encoding:
    """Gemma's activations are too large for float16, in which others would then compute."""
    if isinstance(header, GGUFHeader):
        family = family_in_folders(read_model_config(header), header)
        if family.norm_offset:
            return "bf16"
    return "bf16" if header.quantization == "BF16" else "f16"


def _gguf_weight(source: WeightSource, method: QuantizeMethod, logits: str) -> WeightPlan:
    width = source.shape[-1]
    encoding: Encoding
    if not _is_matrix(source):
        encoding, group_size = "f32", 0
    elif width % method.group_size:
        encoding, group_size = "f16", 0
    else:
        is_fine = method.bits == 8 or source.name == logits
        encoding, group_size = "q8_0" if is_fine else "q4_0", method.group_size
    ggml_type = GGMLType[encoding.upper()]
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    num_bytes = math.prod(source.shape) // block_elements * block_bytes
    output = OutputTensor(source.name, ggml_type.name, source.shape, num_bytes)
    return WeightPlan(source, encoding, (output,), group_size)


def _folder_weight(source: WeightSource, method: QuantizeMethod, half: Encoding) -> WeightPlan:
    group_size = _group_size(source.shape[-1], method) if _is_linear(source) else 0
    if not group_size:
        plain = _plain_tensor(source.name, half.upper(), source.shape)
        return WeightPlan(source, half, (plain,))
    module = source.name.removesuffix(".weight")
    rows, columns = source.shape
    num_groups = 1 if group_size == ROW else columns // group_size
    packed_columns = columns * method.bits // _WORD_BITS
    outputs = (
        _plain_tensor(f"{module}.weight_packed", "I32", (rows, packed_columns)),
        _plain_tensor(f"{module}.weight_scale", half.upper(), (rows, num_groups)),
        _plain_tensor(f"{module}.weight_shape", "I64", (2,)),
    )
    return WeightPlan(source, "int8" if method.bits == 8 else "int4", outputs, group_size)


def _group_size(width: int, method: QuantizeMethod) -> int:
    """The method's, or the largest smaller one on offer that divides; 0: none does."""
    if width % (_WORD_BITS // method.bits):
        return 0
    if method.group_size == ROW:
        return ROW
    fitting = (size for size in OFFERED_GROUP_SIZES if size <= method.group_size)
    return max((size for size in fitting if width % size == 0), default=0)


def _plain_tensor(name: str, dtype: str, shape: tuple[int, ...]) -> OutputTensor:
    return OutputTensor(name, dtype, shape, math.prod(shape) * _ELEMENT_BYTES[dtype])


def _is_linear(source: WeightSource) -> bool:
    return len(source.shape) == 2 and _LINEAR.fullmatch(source.name) is not None


def _is_matrix(source: WeightSource) -> bool:
    """Of any kind but routers, which decide too much for the little they are."""
    is_router = source.name.endswith("ffn_gate_inp.weight")
    return len(source.shape) > 1 and source.name.endswith(".weight") and not is_router

"""Lays out a GGUF file, version 3: metadata, the list of tensors, their places.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Mapping, Sequence

from octavo.checkpoint.gguf_types import GGMLType, GGUFValueType
from octavo.quantize.conversion.gguf_values import GGUFScalar, GGUFValue
from octavo.quantize.file_layout import FileLayout
from octavo.quantize.plan import OutputTensor

_MAGIC = b"GGUF"
_VERSION = 3
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_FORMATS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


def lay_out_gguf(
    tensors: Sequence[OutputTensor], metadata: Mapping[str, GGUFValue], file_name: str
) -> FileLayout:
    """Places tensors behind the metadata, in their order."""
    # A source's own alignment is not carried over: the places are all new.
    kept = {key: value for key, value in metadata.items() if key != _ALIGNMENT_KEY}
    places, offset = [], 0
    for tensor in tensors:
        places.append(offset)
        offset = _aligned(offset + tensor.num_bytes)
    header = bytearray(_MAGIC)
    header += struct.pack("<IQQ", _VERSION, len(tensors), len(kept))
    for key, value in kept.items():
        header += _string(key) + _typed_value(value)
    header += _tensor_list(tensors, places)
    header += bytes(_aligned(len(header)) - len(header))
    offsets = {
        tensor.name: len(header) + place for tensor, place in zip(tensors, places, strict=True)
    }
    return FileLayout(file_name, bytes(header), offsets, len(header) + offset)


def _tensor_list(tensors: Sequence[OutputTensor], places: Sequence[int]) -> bytes:
    entries = bytearray()
    for tensor, place in zip(tensors, places, strict=True):
        # The file has the innermost dimension first.
        dimensions = tuple(reversed(tensor.shape))
        entries += _string(tensor.name)
        entries += struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        entries += struct.pack("<IQ", GGMLType[tensor.dtype], place)
    return bytes(entries)


def _typed_value(value: GGUFValue) -> bytes:
    if not isinstance(value.value, tuple):
        return struct.pack("<I", value.type) + _scalar(value.type, value.value)
    head = struct.pack("<IIQ", GGUFValueType.ARRAY, value.type, len(value.value))
    return head + b"".join(_scalar(value.type, element) for element in value.value)


def _scalar(value_type: GGUFValueType, value: GGUFScalar) -> bytes:
    if value_type is GGUFValueType.STRING:
        return _string(str(value))
    return struct.pack(_FORMATS[value_type], value)


def _string(text: str) -> bytes:
    content = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(content)) + content


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _DEFAULT_ALIGNMENT) * _DEFAULT_ALIGNMENT

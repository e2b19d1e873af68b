"""Lays out a safetensors file: one file, tensors in the order of the plan.

Source: https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Sequence

from octavo.checkpoint.folder import SINGLE_FILE
from octavo.quantize.file_layout import FileLayout
from octavo.quantize.plan import OutputTensor, QuantizePlan

_ALIGNMENT = 8
"""Of the first tensor, filled up with spaces, as the reference implementation does."""
_LARGEST_FIRST = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}


def lay_out_safetensors(plan: QuantizePlan) -> FileLayout:
    """Places every tensor of a plan: widest data type first, so that all are aligned."""
    tensors = [output for weight in plan.weights for output in weight.outputs]
    tensors.sort(key=lambda tensor: -_LARGEST_FIRST[tensor.dtype])
    header = _header(tensors)
    offsets, offset = {}, len(header)
    for tensor in tensors:
        offsets[tensor.name] = offset
        offset += tensor.num_bytes
    return FileLayout(SINGLE_FILE, header, offsets, offset)


def _header(tensors: Sequence[OutputTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

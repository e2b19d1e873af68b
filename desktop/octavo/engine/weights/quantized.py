"""Reads the quantised weights of model folders: as they are, or unpacked part by part."""

import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from octavo.checkpoint.safetensors import SafetensorsTensor
from octavo.checkpoint.stored_weights import StoredWeight
from octavo.checkpoint.weight_format import Layout, LinearFormat
from octavo.engine.quantization.awq import AWQLinear
from octavo.engine.quantization.bitsandbytes import EightBitLinear, FourBitLinear
from octavo.engine.quantization.compressed_tensors import IntegersLinear, PackedIntegersLinear
from octavo.engine.quantization.float8 import Float8Linear
from octavo.engine.quantization.gptq import GPTQLinear
from octavo.engine.quantization.packed import PackedLinear
from octavo.engine.quantization.stored_linear import (
    Axis,
    LinearSource,
    StoredLinear,
    WrongValuesError,
)
from octavo.engine.weights.pieces import (
    PackedTarget,
    damaged,
    not_finite,
    read_into_memory,
    read_pieces,
)

PART_ELEMENTS = 1 << 18
"""Values unpacked at a time on the CPU: their intermediate forms take a few megabytes."""
DEVICE_PART_ELEMENTS = 1 << 23
"""The same on an accelerator."""

LINEARS: Mapping[Layout, type[StoredLinear]] = MappingProxyType(
    {
        Layout.PACKED_INTEGERS: PackedIntegersLinear,
        Layout.INTEGERS: IntegersLinear,
        Layout.FLOAT8: Float8Linear,
        Layout.GPTQ: GPTQLinear,
        Layout.AWQ: AWQLinear,
        Layout.BITSANDBYTES_4BIT: FourBitLinear,
        Layout.BITSANDBYTES_8BIT: EightBitLinear,
    }
)
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
        "U8": torch.uint8,
        "I8": torch.int8,
        "I32": torch.int32,
        "I64": torch.int64,
    }
)


def read_packed_linear(
    weight: StoredWeight, linear: LinearFormat, target: PackedTarget
) -> PackedLinear:
    """Reads one weight as it is stored.

    Args:
        weight: quantised.
        linear: its format.
        target: what the model wants.

    Raises:
        CheckpointError: shapes differ, or a value is infinite, NaN or makes no sense.
        StorageError: a file cannot be read to the tensor's end.
    """
    weight.check(target.shape)
    shape = target.matrix_shape
    companions = {
        role: _read_whole(tensor, target.device) for role, tensor in weight.companions.items()
    }
    source = LinearSource(linear, shape, companions)
    kind = LINEARS[linear.layout]
    try:
        # Refuses companions that make no sense, before much is read.
        kind.part_unit(source)
        main = _read_whole(weight.main, target.device)
        if kind.axis == "flat":
            main = main.view(-1).view(torch.uint8)
        length = {"out": shape[0], "in": shape[1], "flat": shape[0] * shape[1]}[kind.axis]
        packed = PackedLinear.whole(kind.take(source, main, 0, length), linear.layout, shape)
    except WrongValuesError as error:
        tensor = weight.companions.get(error.role, weight.main)
        raise damaged(tensor.path, tensor, error.problem) from error
    if not packed.is_finite(target.dtype):
        raise not_finite(weight.path, weight.main, target.dtype)
    return packed


def read_quantized_into(weight: StoredWeight, linear: LinearFormat, out: Tensor) -> None:
    """Reads and unpacks one weight into memory that is already there.

    Args:
        weight: quantised.
        linear: its format.
        out: [out_features, in_features], contiguous, any floating type, on any device.

    Raises:
        CheckpointError: shapes differ, or a value is infinite, NaN or makes no sense.
        StorageError: a file cannot be read to the tensor's end.
    """
    weight.check(tuple(out.shape))
    companions = {
        role: _read_whole(tensor, out.device) for role, tensor in weight.companions.items()
    }
    source = LinearSource(linear, (out.shape[0], out.shape[1]), companions)
    kind = LINEARS[linear.layout]
    try:
        for main, start, stop in _parts(weight, source, kind, out):
            part = kind.take(source, main, start, stop)
            target = _features(out, kind.axis, start, stop)
            target.copy_(part.unpack().view(target.shape))
            # One infinity or NaN makes the sum infinite or NaN; weights are too small to do so.
            if not torch.sum(target, dtype=torch.float32).isfinite():
                raise not_finite(weight.path, weight.main, out.dtype)
    except WrongValuesError as error:
        tensor = weight.companions.get(error.role, weight.main)
        raise damaged(tensor.path, tensor, error.problem) from error


def _parts(
    weight: StoredWeight, source: LinearSource, kind: type[StoredLinear], out: Tensor
) -> Iterator[tuple[Tensor, int, int]]:
    """The values' tensor in parts, with the features (or values) that each holds."""
    length = {"out": out.shape[0], "in": out.shape[1], "flat": out.numel()}[kind.axis]
    per_feature = out.numel() // length
    unit = kind.part_unit(source)
    most = PART_ELEMENTS if out.device.type == "cpu" else DEVICE_PART_ELEMENTS
    step = max(1, most // (per_feature * unit)) * unit
    spans = [(start, min(start + step, length)) for start in range(0, length, step)]
    stored = weight.main
    if kind.axis == "flat":
        row_bytes, ends = 1, [-(-stop // 2) for _, stop in spans]
    else:
        # Words hold several features, but parts are whole words.
        num_rows = stored.shape[0]
        row_bytes, ends = stored.num_bytes // num_rows, [e * num_rows // length for _, e in spans]
    sizes = [(end - begin) * row_bytes for begin, end in itertools.pairwise([0, *ends])]
    dtype = torch.uint8 if kind.axis == "flat" else _DTYPES[stored.dtype]
    pieces = read_pieces(stored.path, stored, sizes, out.device)
    for (start, stop), raw in zip(spans, pieces, strict=True):
        main = raw.view(dtype)
        yield main if kind.axis == "flat" else main.view(-1, *stored.shape[1:]), start, stop


def _features(out: Tensor, axis: Axis, start: int, stop: int) -> Tensor:
    if axis == "out":
        return out[start:stop]
    return out[:, start:stop] if axis == "in" else out.view(1, -1)[:, start:stop]


def _read_whole(tensor: SafetensorsTensor, device: torch.device) -> Tensor:
    if not tensor.num_bytes:
        raise damaged(tensor.path, tensor, "is empty")
    raw = torch.empty(tensor.num_bytes, dtype=torch.uint8, device=device)
    read_into_memory(tensor.path, tensor, raw)
    return raw.view(_DTYPES[tensor.dtype]).view(tensor.shape)

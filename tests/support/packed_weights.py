"""Packed weights for tests, without a file."""

from collections.abc import Callable

from torch import Tensor

from octavo.checkpoint.quantization_config import read_weight_format
from octavo.engine.quantization.packed import PackedLinear
from octavo.engine.quantization.stored_linear import LinearSource
from octavo.engine.weights.quantized import LINEARS
from tests.support.quantized_folders import QuantizedKind

_MAIN = ("qweight", "weight_packed", "weight")


def packed_linear(
    kind: QuantizedKind,
    rows: int,
    columns: int,
    *,
    seed: int = 0,
    change: Callable[[dict[str, Tensor]], None] | None = None,
) -> PackedLinear:
    """A random layer in a folder's format, its tensors changed first."""
    tensors, _ = kind.packed(rows, columns, seed=seed)
    if change is not None:
        change(tensors)
    weight_format = read_weight_format({"quantization_config": dict(kind.config)}, "tiny")
    assert weight_format is not None
    linear = weight_format.linear("layer")
    assert linear is not None
    main = next(tensors[name] for name in _MAIN if name in tensors)
    shape = (rows, columns)
    source = LinearSource(linear, shape, tensors)
    layer = LINEARS[linear.layout]
    length = {"out": rows, "in": columns, "flat": rows * columns}[layer.axis]
    return PackedLinear.whole(layer.take(source, main, 0, length), linear.layout, shape)

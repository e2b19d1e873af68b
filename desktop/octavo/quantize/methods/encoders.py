"""`encode_rows`: from rows of a weight to the bytes of the tensors that it becomes."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from functools import partial

import torch
from torch import Tensor

from octavo.quantize.methods.ggml_blocks import to_q4_0, to_q8_0
from octavo.quantize.methods.group_rounding import pack_words, round_groups
from octavo.quantize.plan import WeightPlan

SLAB_ELEMENTS = 1 << 18
"""Weights encoded at a time: what is computed on the way stays in a core's cache."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BITS = {"int4": 4, "int8": 8}


def unpacked_dtype(weight: WeightPlan) -> torch.dtype:
    """In which type a weight is encoded: the one it is stored in, or float32 to quantise it."""
    return _DTYPES.get(weight.encoding.upper(), torch.float32)


def encode(
    weight: WeightPlan, parts: Iterable[Tensor], executor: Executor
) -> Iterator[tuple[int, Tensor]]:
    """Yields the outputs' contents piece by piece, each output's pieces in their order.

    Args:
        weight: the plan for it.
        parts: what it consists of, one after the other: contiguous, in its `unpacked_dtype`.
        executor: encodes slabs side by side. Torch's own threads, which share one operation, wait
            for each other at every step, and there are fifty to a slab.

    Yields:
        Which of the plan's outputs, and the next piece of it: contiguous, any type.
    """
    for values in parts:
        yield from _encode_part(weight, values, executor)
    if weight.encoding in _BITS:
        yield 2, torch.tensor(weight.shape, dtype=torch.int64)


def _encode_part(
    weight: WeightPlan, values: Tensor, executor: Executor
) -> Iterator[tuple[int, Tensor]]:
    if weight.encoding in _BITS:
        _, scales, _ = weight.outputs
        slabs = torch.split(values, max(1, SLAB_ELEMENTS // weight.shape[1]))
        group_size = weight.shape[1] // scales.shape[1]
        encode_rows = partial(
            _encode_rows, _BITS[weight.encoding], group_size, _DTYPES[scales.dtype]
        )
        for words, scale in executor.map(encode_rows, slabs):
            yield 0, words
            yield 1, scale
        return
    blocks = {"q8_0": to_q8_0, "q4_0": to_q4_0}
    pieces: Iterable[Tensor] = torch.split(values.view(-1), SLAB_ELEMENTS)
    if weight.encoding in blocks:
        pieces = executor.map(blocks[weight.encoding], pieces)
    for piece in pieces:
        yield 0, piece


def _encode_rows(
    bits: int, group_size: int, scale_dtype: torch.dtype, rows: Tensor
) -> tuple[Tensor, Tensor]:
    codes, scale = round_groups(rows, bits, group_size, scale_dtype)
    return pack_words(codes, bits), scale

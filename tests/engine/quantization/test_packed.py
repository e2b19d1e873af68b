"""Rows of packed weights are what unpacking all of it says, wherever they begin and end."""

import pytest
import torch

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.model_config import SUPPORTED_TYPES
from octavo.engine.quantization.gguf import LARGEST_FACTOR, SCALE_OFFSETS, UNPACKERS
from octavo.engine.quantization.packed import PLAIN_DTYPES, PackedBlocks, PackedWeight
from tests.support.gguf_files import random_blocks
from tests.support.packed_weights import packed_linear
from tests.support.quantized_folders import KINDS, QuantizedKind, kind_named

KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
BLOCK_TYPES = sorted(SUPPORTED_TYPES - set(PLAIN_DTYPES))


def check_rows(weight: PackedWeight, expected: torch.Tensor) -> None:
    assert weight.shape == tuple(expected.shape)
    num_rows = len(expected)
    assert torch.equal(weight.unpack(torch.float32), expected)
    for start, stop in ((0, 1), (3, 17), (num_rows - 5, num_rows), (8, 8 + 32), (33, 33)):
        rows = weight.unpack_rows(start, stop, torch.bfloat16)
        assert torch.equal(rows, expected[start:stop].bfloat16())
    inner = weight.rows(5, num_rows - 2).rows(1, 20)
    assert torch.equal(inner.unpack(torch.float32), expected[6:25])
    indices = torch.tensor([7, 2, 7, 18, 0])
    assert torch.equal(inner.select(indices, torch.float32), expected[6:25][indices])
    assert inner.select(indices[:0], torch.float32).shape == (0, expected.shape[1])
    slabs = list(weight.slabs(3 * expected.shape[1] + 1))
    assert [start for start, _ in slabs] == list(range(0, num_rows, 3))
    assert slabs[-1][1] == num_rows
    parts = [weight.rows(start, stop).num_bytes for start, stop in slabs]
    assert sum(parts) == weight.num_bytes


@KIND
@pytest.mark.parametrize("shape", [(64, 96), (96, 32)])
def test_folders(kind: QuantizedKind, shape: tuple[int, int]) -> None:
    _, expected = kind.packed(*shape, seed=3)
    check_rows(packed_linear(kind, *shape, seed=3), expected)


@pytest.mark.parametrize("name", ["ct int4 channel", "ct int4 channel zero points"])
def test_rows_need_not_fill_words(name: str) -> None:
    _, expected = kind_named(name).packed(45, 13)
    check_rows(packed_linear(kind_named(name), 45, 13), expected)


@pytest.mark.parametrize("name", ["bnb nf4", "bnb nf4 nested", "bnb fp4"])
def test_rows_may_begin_inside_a_block(name: str) -> None:
    _, expected = kind_named(name).packed(50, 40)
    weight = packed_linear(kind_named(name), 50, 40)
    assert weight.stored.row_unit == 8
    check_rows(weight, expected)


@pytest.mark.parametrize("ggml_type", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_blocks(ggml_type: GGMLType) -> None:
    elements, _ = BLOCK_LAYOUT[ggml_type]
    raw = torch.from_numpy(random_blocks(ggml_type, 48 * 2))
    expected = torch.empty(48 * 2, elements)
    UNPACKERS[ggml_type](raw, expected)
    weight = PackedBlocks(raw.view(48, -1), ggml_type)
    assert weight.num_bytes == raw.nbytes
    check_rows(weight, expected.view(48, -1))


@pytest.mark.parametrize("ggml_type", PLAIN_DTYPES, ids=lambda kind: kind.name)
def test_plain_numbers_of_the_type_asked_for_are_not_copied(ggml_type: GGMLType) -> None:
    dtype = PLAIN_DTYPES[ggml_type]
    values = torch.randn(40, 6).to(dtype)
    weight = PackedBlocks(values.view(torch.uint8), ggml_type)
    assert weight.unpack_rows(2, 9, dtype).data_ptr() == values[2].data_ptr()
    check_rows(weight, values.float())


@pytest.mark.parametrize("ggml_type", sorted(SCALE_OFFSETS), ids=lambda kind: kind.name)
def test_scales_bound_the_values(ggml_type: GGMLType) -> None:
    """No byte of a block but its scales makes its values larger than is assumed."""
    elements, num_bytes = BLOCK_LAYOUT[ggml_type]
    blocks = torch.randint(0, 256, (4000, num_bytes)).to(torch.uint8)
    blocks[0], blocks[1] = 255, 127
    for offset in SCALE_OFFSETS[ggml_type]:
        blocks[:, offset : offset + 2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
    out = torch.empty(len(blocks), elements)
    UNPACKERS[ggml_type](blocks, out)
    assert out.abs().max() <= LARGEST_FACTOR


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "ggml_type", [*SCALE_OFFSETS, *PLAIN_DTYPES, GGMLType.MXFP4], ids=lambda kind: kind.name
)
def test_one_value_that_is_not_finite_is_found(ggml_type: GGMLType, device: str) -> None:
    elements, _ = BLOCK_LAYOUT[ggml_type]
    raw = torch.from_numpy(random_blocks(ggml_type, 24))
    if elements == 1:
        raw.fill_(1)
    weight = PackedBlocks(raw.view(12, -1).to(device), ggml_type)
    assert weight.device.type == device
    assert weight.is_finite(torch.float32)
    for offset in SCALE_OFFSETS.get(ggml_type, (0,)):
        for bad in (float("inf"), float("nan")):
            changed = raw.clone()
            if ggml_type is GGMLType.MXFP4:
                changed[17, 0] = 255
                changed[17, 1:] = 0x77
            else:
                dtype = PLAIN_DTYPES.get(ggml_type, torch.float16)
                value = torch.tensor([bad], dtype=dtype).view(torch.uint8)
                changed[17, offset : offset + len(value)] = value
            spoilt = PackedBlocks(changed.view(12, -1).to(device), ggml_type)
            assert not spoilt.is_finite(torch.float32)


def test_values_too_large_for_float16_are_found() -> None:
    raw = torch.from_numpy(random_blocks(GGMLType.Q8_0, 24))
    scale = torch.tensor([6e3], dtype=torch.float16).view(torch.uint8)
    raw[3, :2], raw[3, 2] = scale, 127
    weight = PackedBlocks(raw.view(12, -1), GGMLType.Q8_0)
    assert weight.is_finite(torch.float32)
    assert not weight.is_finite(torch.float16)
    raw[3, 2:] = 1
    assert weight.is_finite(torch.float16), "its integers are small"
    assert not weight.is_surely_finite(torch.float16)


@KIND
def test_scales_prove_most_folders_finite(kind: QuantizedKind) -> None:
    weight = packed_linear(kind, 64, 96)
    assert weight.device.type == "cpu"
    assert weight.is_finite(torch.float16)
    is_float = "float" in kind.name or "fp8" in kind.name
    assert weight.is_surely_finite(torch.float32) != is_float

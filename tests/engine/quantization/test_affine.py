"""The one form of all affine formats says what their own unpacking says."""

import pytest
import torch

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.model_config import SUPPORTED_TYPES
from octavo.engine.quantization.affine import AffineGroups, affine_groups, is_affine
from octavo.engine.quantization.gguf_affine import AFFINE_BLOCKS
from octavo.engine.quantization.packed import PackedBlocks, PackedWeight
from tests.support.gguf_files import random_blocks
from tests.support.packed_weights import packed_linear
from tests.support.quantized_folders import KINDS, QuantizedKind, kind_named

NUM_ROWS = 48
REORDERED = ("desc_act", "desc_act asym", "int4 g_idx")
NOT_AFFINE = ("float", "fp8", "bnb nf4", "bnb fp4")


def packed_blocks(ggml_type: GGMLType) -> PackedBlocks:
    raw = torch.from_numpy(random_blocks(ggml_type, NUM_ROWS * 2))
    return PackedBlocks(raw.view(NUM_ROWS, -1), ggml_type)


def check(weight: PackedWeight, start: int, stop: int) -> AffineGroups:
    groups = affine_groups(weight, start, stop)
    assert groups is not None
    num_columns = weight.shape[1]
    num_groups = -(-num_columns // groups.group_size)
    assert groups.codes.dtype == torch.uint8
    assert groups.codes.shape == (stop - start, num_columns)
    assert int(groups.codes.max()) < 1 << groups.bits
    assert groups.scales.dtype == groups.offsets.dtype == torch.float32
    assert groups.scales.shape == groups.offsets.shape == (stop - start, num_groups)
    # Rounded once more than the definition, at the magnitude of the largest product.
    largest = float((groups.scales.abs() * (1 << groups.bits)).max())
    expected = weight.unpack_rows(start, stop, torch.float32)
    torch.testing.assert_close(groups.unpack(), expected, rtol=0, atol=largest * 2**-23)
    return groups


@pytest.mark.parametrize("ggml_type", sorted(AFFINE_BLOCKS), ids=lambda kind: kind.name)
def test_blocks(ggml_type: GGMLType) -> None:
    weight = packed_blocks(ggml_type)
    assert is_affine(weight)
    check(weight, 0, NUM_ROWS)
    check(weight.rows(5, 40), 3, 20)


def test_blocks_of_short_scales_are_exact() -> None:
    for ggml_type in (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0, GGMLType.Q4_K):
        weight = packed_blocks(ggml_type)
        groups = affine_groups(weight, 0, NUM_ROWS)
        assert groups is not None
        assert torch.equal(groups.unpack(), weight.unpack(torch.float32))


@pytest.mark.parametrize(
    "ggml_type", sorted(SUPPORTED_TYPES - set(AFFINE_BLOCKS)), ids=lambda kind: kind.name
)
def test_tables_and_floats_are_not_affine(ggml_type: GGMLType) -> None:
    raw = torch.zeros(4, BLOCK_LAYOUT[ggml_type][1], dtype=torch.uint8)
    assert not is_affine(PackedBlocks(raw, ggml_type))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_folders(kind: QuantizedKind) -> None:
    weight = packed_linear(kind, 64, 96)
    if any(word in kind.name for word in NOT_AFFINE):
        assert not is_affine(weight)
        return
    assert is_affine(weight)
    groups = check(weight, 0, 64)
    assert (groups.input_order is not None) == kind.name.endswith(REORDERED)
    check(weight.rows(11, 60), 2, 31)


@pytest.mark.parametrize("name", ["ct int4 group", "awq"])
def test_the_last_group_may_be_short(name: str) -> None:
    check(packed_linear(kind_named(name), 56, 80), 0, 56)


def test_groups_of_unequal_size_have_no_such_form() -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["g_idx"][0] = (tensors["g_idx"][0] + 1) % 3

    kind = kind_named("gptq 4 bit v2 desc_act asym")
    assert not is_affine(packed_linear(kind, 64, 96, change=change))

"""What checkpoints store, in the layout of the GPU's kernels: the same numbers."""

import pytest
import torch

from tests.support.triton_device import DEVICE

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.checkpoint.gguf import GGMLType  # isort: skip
from octavo.engine.models import tiling  # isort: skip
from octavo.engine.models.tiling import tile_packed, tile_stack  # isort: skip
from octavo.engine.quantization.packed import PackedBlocks  # isort: skip
from tests.support.gguf_files import random_blocks  # isort: skip
from tests.support.packed_weights import packed_linear  # isort: skip
from tests.support.quantized_folders import KINDS, QuantizedKind  # isort: skip

NUM_ROWS, NUM_COLUMNS = 12, 512
BLOCKS = [
    GGMLType.Q4_0,
    GGMLType.Q4_1,
    GGMLType.Q5_0,
    GGMLType.Q5_1,
    GGMLType.Q8_0,
    GGMLType.Q4_K,
    GGMLType.Q5_K,
    GGMLType.Q6_K,
]
LEFT_TO_MODULES = ("bnb nf4", "bnb fp4", "float-quantized block")
"""Tables of values, blocks of 24 features."""


def packed_blocks(kind: GGMLType, num_rows: int = NUM_ROWS, seed: int = 0) -> PackedBlocks:
    per_row = NUM_COLUMNS // (256 if kind.name.endswith("_K") else 32)
    raw = torch.from_numpy(random_blocks(kind, num_rows * per_row, seed=seed))
    return PackedBlocks(raw.view(num_rows, -1).to(DEVICE), kind)


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_blocks_keep_their_values_and_their_size(kind: GGMLType) -> None:
    weight = packed_blocks(kind)
    (tiled,) = tile_packed(weight)
    expected = weight.unpack(torch.float32)
    # One rounding more or less, of the product with a scale.
    torch.testing.assert_close(tiled.unpack(), expected, rtol=2**-22, atol=0)
    assert tiled.num_bytes == weight.num_bytes


def test_matrices_of_one_format_become_one() -> None:
    q4, q6 = packed_blocks(GGMLType.Q4_K), packed_blocks(GGMLType.Q6_K, 4)
    first, second = tile_packed(q4, q4.rows(3, 7), q6)
    assert (first.out_features, second.out_features) == (16, 4)
    expected = torch.cat([q4.unpack(torch.float32), q4.rows(3, 7).unpack(torch.float32)])
    torch.testing.assert_close(first.unpack(), expected, rtol=2**-22, atol=0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_folders_keep_their_values(kind: QuantizedKind) -> None:
    weight = packed_linear(kind, 64, NUM_COLUMNS)
    tiled = tile_packed(weight)
    if not tiled:
        assert any(word in kind.name for word in LEFT_TO_MODULES), kind.name
        return
    expected = weight.unpack(torch.float32)
    if (order := tiled[0].input_order) is not None:
        expected = expected[:, order]
    assert (order is not None) == any(word in kind.name for word in ("desc_act", "int4 g_idx"))
    # Shifts are rounded to float16 where scales are of that type.
    largest = float(expected.abs().max())
    torch.testing.assert_close(tiled[0].unpack(), expected, rtol=1e-3, atol=largest * 2**-11)


@pytest.mark.parametrize("kind", [GGMLType.IQ4_NL, GGMLType.Q2_K, GGMLType.Q3_K])
def test_tables_and_few_bits_are_left_to_modules(kind: GGMLType) -> None:
    assert tile_packed(packed_blocks(kind)) == []


@pytest.mark.parametrize("slab", [2**25, 2 * NUM_ROWS * NUM_COLUMNS, NUM_ROWS * NUM_COLUMNS // 3])
def test_experts_become_one(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined, two at a time, or each in parts."""
    monkeypatch.setattr(tiling, "_SLAB_ELEMENTS", slab)
    experts = [packed_blocks(GGMLType.Q4_K, seed=seed) for seed in range(5)]
    tiled = tile_stack(experts)
    assert tiled is not None
    expected = torch.cat([one.unpack(torch.float32) for one in experts])
    torch.testing.assert_close(tiled.unpack(), expected, rtol=2**-22, atol=0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_experts_of_folders_become_one(
    kind: QuantizedKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time, then one; where one of them can be tiled and keeps its order."""
    monkeypatch.setattr(tiling, "_SLAB_ELEMENTS", 2 * 64 * NUM_COLUMNS)
    experts = [packed_linear(kind, 64, NUM_COLUMNS, seed=seed) for seed in range(3)]
    tiled = tile_stack(experts)
    alone = tile_packed(experts[0])
    if not alone or alone[0].input_order is not None:
        assert tiled is None
        return
    assert tiled is not None
    expected = torch.cat([one.unpack(torch.float32) for one in experts])
    largest = float(expected.abs().max())
    torch.testing.assert_close(tiled.unpack(), expected, rtol=1e-3, atol=largest * 2**-11)


def test_experts_that_lie_unlike_each_other_are_left_to_modules() -> None:
    experts = [packed_blocks(kind) for kind in (GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K)]
    assert tile_stack(experts[:2]) is not None
    assert tile_stack(experts) is None
    (kind,) = (one for one in KINDS if one.name == "gptq 4 bit v1 desc_act asym")
    ordered = packed_linear(kind, 64, NUM_COLUMNS)
    (tiled,) = tile_packed(ordered)
    assert tiled.input_order is not None
    assert tile_stack([ordered, ordered]) is None

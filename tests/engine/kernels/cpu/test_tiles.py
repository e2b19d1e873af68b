"""Packing moves numbers and changes none."""

import pytest
import torch

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.kernels.cpu import tiles_pack
from octavo.engine.kernels.cpu.tiles_forms import ALIGNMENT, FORMS
from tests.engine.kernels.cpu.matrices import KINDS, random_blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(16, 256), (7, 32), (50, 544), (130, 96)])
def test_tiles_stand_for_the_weights(kind: str, shape: tuple[int, int]) -> None:
    form, make = KINDS[kind]
    packed, weights = make(*shape, torch.Generator().manual_seed(3))
    if shape[1] >= 256:
        assert packed.form.name == form
    unpacked = packed.unpack()
    assert unpacked.shape == weights.shape
    if "bits" in kind and packed.form.name == "q4_1":
        # Offsets are rounded to float16: a hundredth of a step of at most 0.011.
        torch.testing.assert_close(unpacked, weights, atol=1.1e-4, rtol=0)
    elif "8 bits" in kind or "5 bits" in kind:
        # Signed codes have another offset, which is rounded once.
        torch.testing.assert_close(unpacked, weights, atol=5e-7, rtol=0)
    else:
        assert torch.equal(unpacked, weights)


@pytest.mark.parametrize("ggml_type", tiles_pack.GGUF_FORMS)
def test_tiles_are_as_small_as_the_file(ggml_type: GGMLType) -> None:
    elements, num_bytes = BLOCK_LAYOUT[ggml_type]
    raw = random_blocks(ggml_type, 32, 3 * 256, torch.Generator().manual_seed(4))
    packed = tiles_pack.pack_gguf(raw, ggml_type, 3 * 256)
    assert packed.tiles.numel() <= 32 * 3 * 256 // elements * num_bytes + 2 * (ALIGNMENT - 1)


def test_every_form_is_made_by_something() -> None:
    assert {form for form, _ in KINDS.values()} == set(FORMS)


def test_a_last_group_that_is_not_whole() -> None:
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (16, 160), dtype=torch.uint8, generator=generator)
    scales, offsets = torch.rand(2, 16, 2, generator=generator)
    packed = tiles_pack.pack_affine(codes, 4, 128, scales, offsets)
    assert packed.group_size == 32
    columns = torch.arange(160) // 128
    assert torch.equal(packed.unpack(), codes * scales[:, columns] + offsets[:, columns])


@pytest.mark.parametrize(("group_size", "num_columns"), [(16, 64), (48, 96), (96, 128)])
def test_groups_that_fit_no_tile_are_refused(group_size: int, num_columns: int) -> None:
    codes = torch.zeros(16, num_columns, dtype=torch.uint8)
    scales = torch.ones(16, -(-num_columns // group_size))
    with pytest.raises(ValueError, match="Groups of"):
        tiles_pack.pack_affine(codes, 4, group_size, scales, scales)


def test_an_odd_number_of_float_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="33 columns are an odd number"):
        tiles_pack.pack_floats(torch.zeros(16, 33))


@pytest.mark.parametrize("kind", ["4 bits, groups of 32", "8 bits, groups of 32, symmetric"])
def test_scales_that_float16_cannot_hold_are_kept_in_float32(kind: str) -> None:
    bits = int(kind[0])
    codes = torch.randint(0, 1 << bits, (16, 64), dtype=torch.uint8)
    scales = torch.full((16, 2), 1e-9)
    packed = tiles_pack.pack_affine(codes, bits, 32, scales, -(1 << (bits - 1)) * scales)
    assert packed.form.name == f"int{bits}"

"""Rounding in groups: the format word for word, and never worse than plain rounding."""

import pytest
import torch

from octavo.quantize.methods.group_rounding import pack_words, round_groups


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The format's definition: low bits first, each value shifted by half the range."""
    columns = [
        ((words.long() >> (bits * place)) & (2**bits - 1)) - 2 ** (bits - 1)
        for place in range(32 // bits)
    ]
    return torch.stack(columns, dim=-1).flatten(1)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone_by_the_definition(bits: int) -> None:
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = torch.randint(least, most + 1, (7, 64), dtype=torch.int32)
    codes[0, :2] = torch.tensor([least, most])
    words = pack_words(codes, bits)
    assert (words.dtype, tuple(words.shape)) == (torch.int32, (7, 64 * bits // 32))
    assert torch.equal(unpack(words, bits).int(), codes)


def test_first_weight_lies_in_the_lowest_bits() -> None:
    codes = torch.tensor([[-7, -8, -8, -8, -8, -8, -8, 7]], dtype=torch.int32)
    assert pack_words(codes, 4).tolist() == [[0xF0000001 - (1 << 32)]]


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_search_beats_the_scale_that_clips_nothing(group_size: int, dtype: torch.dtype) -> None:
    weight = matrix(64, 256)
    codes, scales = round_groups(weight, 4, group_size, dtype)
    assert scales.shape == (64, 256 // group_size)
    assert (int(codes.min()) >= -8, int(codes.max()) <= 7) == (True, True)
    groups = weight.view(64, -1, group_size)
    plain = (groups.abs().amax(-1) / 7).to(dtype).float()[..., None]
    plain_error = ((groups / plain).round().clamp(-8, 7) * plain - groups).square().sum(-1)
    ours = codes.view_as(groups) * scales.float()[..., None]
    error = (ours - groups).square().sum(-1)
    assert bool((error <= plain_error * 1.0001).all())
    assert float(error.sum()) < 0.95 * float(plain_error.sum())


def test_eight_bits_are_off_by_half_a_step_at_most() -> None:
    weight = matrix(32, 256)
    codes, scales = round_groups(weight, 8, 128, torch.float16)
    step = scales.float().repeat_interleave(128, dim=1)
    # Half a step, and what the scale's own rounding takes from the largest weight.
    assert bool(((codes * step - weight).abs() <= step * 0.57).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_and_next_to_zero_stay_finite(bits: int) -> None:
    weight = torch.zeros(2, 128)
    weight[1] = 1e-42
    codes, scales = round_groups(weight, bits, 128, torch.bfloat16)
    assert bool((codes * scales.float() == 0).all())

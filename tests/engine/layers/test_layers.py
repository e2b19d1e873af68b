"""Each part alone; together they are compared with transformers in tests/engine/models."""

import pytest
import torch
from torch.nn import functional

from octavo.engine.layers.layernorm import RMSNorm
from octavo.engine.layers.linear import FusedLinear, Linear
from octavo.engine.layers.mlp import GatedMLP
from octavo.engine.layers.rotary_embedding import RotaryEmbedding, rotate
from octavo.engine.model_config import RopeConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
def test_fused_linear_is_its_parts(bias: bool) -> None:
    fused = FusedLinear(12, (8, 4, 6), bias=bias, dtype=torch.float32, device=CPU)
    for part in fused.parts:
        for parameter in part.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    inputs = torch.randn(5, 12)
    expected = torch.cat([part(inputs) for part in fused.parts], dim=-1)
    torch.testing.assert_close(fused(inputs), expected)


def test_linear_with_bias() -> None:
    linear = Linear(3, 2, bias=True, dtype=torch.float32, device=CPU)
    assert linear.bias is not None
    linear.weight.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    linear.bias.copy_(torch.tensor([10.0, 20]))
    assert linear(torch.tensor([[1.0, 0, 1]])).tolist() == [[14.0, 30.0]]


def test_rms_norm_casts_before_it_scales() -> None:
    norm = RMSNorm(64, 1e-5, dtype=torch.bfloat16, device=CPU)
    norm.weight.copy_(torch.randn(64))
    hidden = (torch.randn(7, 64) * 30).bfloat16()
    wide = hidden.float()
    normalised = wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
    assert torch.equal(norm(hidden), normalised.bfloat16() * norm.weight)


def test_mlp() -> None:
    mlp = GatedMLP(6, 10, dtype=torch.float32, device=CPU)
    for parameter in mlp.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    inputs = torch.randn(3, 6)
    gated = functional.silu(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    torch.testing.assert_close(mlp(inputs), mlp.down_proj(gated))


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    rotary = RotaryEmbedding(RopeConfig(rotary_dim=16), max_model_len=256, device=CPU)
    query, key = torch.randn(2, 1, 1, 16)

    def score(query_position: int, key_position: int) -> float:
        positions = torch.tensor([query_position, key_position])
        rotated = rotate(torch.cat([query, key]), *rotary(positions))
        assert rotated.norm(dim=-1).flatten().tolist() == pytest.approx(
            [query.norm().item(), key.norm().item()]
        )
        return float(rotated[0, 0] @ rotated[1, 0])

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 5), abs=1e-2)


def test_partial_rotation_passes_the_rest() -> None:
    rotary = RotaryEmbedding(RopeConfig(rotary_dim=6), max_model_len=256, device=CPU)
    heads = torch.randn(4, 3, 10)
    rotated = rotate(heads, *rotary(torch.arange(4)))
    assert torch.equal(rotated[..., 6:], heads[..., 6:])
    assert torch.equal(rotated[0], heads[0])
    assert not torch.equal(rotated[1:, :, :6], heads[1:, :, :6])


def test_freq_factors_divide_the_frequencies() -> None:
    rotary = RotaryEmbedding(
        RopeConfig(rotary_dim=8, scaling="factors"), max_model_len=256, device=CPU
    )
    assert rotary.freq_factors is not None
    rotary.freq_factors.fill_(4.0)
    linear = RotaryEmbedding(
        RopeConfig(rotary_dim=8, scaling="linear", factor=4.0), max_model_len=256, device=CPU
    )
    positions = torch.arange(50)
    torch.testing.assert_close(rotary(positions), linear(positions))
    assert [name for name, _ in rotary.named_parameters()] == ["freq_factors"]


def test_rotation_is_exact_far_out() -> None:
    rotary = RotaryEmbedding(RopeConfig(rotary_dim=2), max_model_len=256, device=CPU)
    position = 131_071
    cosines, sines = rotary(torch.tensor([position]))
    expected = torch.tensor(float(position), dtype=torch.float64)
    assert cosines.item() == pytest.approx(expected.cos().item(), abs=1e-6)
    assert sines.item() == pytest.approx(expected.sin().item(), abs=1e-6)

"""The kernels of mixtures of experts against the module they stand for."""

from functools import partial

import pytest
import torch

from tests.support.tiny_decoders import tiny_config
from tests.support.triton_device import DEVICE, DTYPES, cases, tolerance

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.kernels.triton.gemv import InputNorm  # isort: skip
from octavo.engine.kernels.triton.moe_routing import group_picks, pick_experts  # isort: skip
from octavo.engine.layers.layernorm import RMSNorm  # isort: skip
from octavo.engine.layers.moe import MoE  # isort: skip
from octavo.engine.model_config import ModelConfig, MoEConfig  # isort: skip
from octavo.engine.models.gpu_experts import GpuExperts, take_experts  # isort: skip
from octavo.engine.models.gpu_matrices import make_gpu_matrix  # isort: skip

EPS = 1e-5

ROUTES = cases(
    [(5, 2, 1), (8, 1, 3), (5, 3, 40)],
    on_card=[
        (experts, picks, tokens)
        for experts in (8, 60, 128, 300)
        for picks in (1, 2, 4, 8)
        for tokens in (1, 2, 17, 130, 300, 4000)
    ],
)
"""Experts, picks of a token, tokens."""


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def uneven_logits(num_tokens: int, num_experts: int) -> torch.Tensor:
    """Some experts are everybody's, every third is nobody's while there are others."""
    favour = torch.linspace(2, -2, num_experts)
    favour[::3] = -20.0
    return random(num_tokens, num_experts) + favour.to(DEVICE)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("renormalizes", [False, True])
def test_experts_are_picked_as_by_the_module(
    route: tuple[int, int, int], renormalizes: bool
) -> None:
    num_experts, num_picks, num_tokens = route
    logits = uneven_logits(num_tokens, num_experts)
    weights, experts = logits.softmax(-1).topk(num_picks, dim=-1)
    if renormalizes:
        weights = weights / weights.sum(-1, keepdim=True)
    picks = pick_experts(logits, num_picks, renormalizes=renormalizes)
    assert picks.experts.tolist() == experts.tolist()
    torch.testing.assert_close(picks.shares, weights)


def test_of_equal_experts_the_first_are_picked_and_nan_picks_some() -> None:
    logits = torch.zeros(2, 7, device=DEVICE)
    logits[1, 2] = torch.nan
    picks = pick_experts(logits, 3, renormalizes=True)
    assert picks.experts.tolist() == [[0, 1, 2], [0, 1, 3]]
    torch.testing.assert_close(picks.shares[0], torch.full((3,), 1 / 3, device=DEVICE))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("block_size", [16, 128])
def test_groups_hold_every_pick_once(route: tuple[int, int, int], block_size: int) -> None:
    num_experts, num_picks, num_tokens = route
    picks = pick_experts(uneven_logits(num_tokens, num_experts), num_picks, renormalizes=True)
    groups = group_picks(picks, num_experts, block_size)
    total = num_tokens * num_picks
    experts = picks.experts.flatten().tolist()
    blocks = groups.numbers.view(-1, block_size).tolist()
    owners = groups.block_experts.tolist()
    used = [owner for owner in owners if owner >= 0]
    assert used == sorted(used)
    assert owners == used + [-1] * (len(owners) - len(used))
    held: dict[int, list[int]] = {}
    for owner, numbers in zip(used, blocks, strict=False):
        real = [number for number in numbers if number != total]
        assert real, "no block is empty"
        assert numbers == real + [total] * (block_size - len(real))
        held.setdefault(owner, []).extend(real)
    expected = {
        expert: [number for number in range(total) if experts[number] == expert]
        for expert in sorted(set(experts))
    }
    assert held == expected


def make_module(config: ModelConfig, dtype: torch.dtype) -> MoE:
    module = MoE(config, dtype=dtype, device=DEVICE)
    for seed, (name, parameter) in enumerate(module.named_parameters()):
        is_bias = name.endswith("bias")
        scale = 0.3 if is_bias else parameter.shape[-1] ** -0.5
        parameter.copy_(random(*parameter.shape, seed=seed) * scale)
    # As trained routers do, and so that rounding seldom changes who is picked.
    module.gate.weight.mul_(4.0)
    return module


def take_mixture(module: MoE, config: ModelConfig, dtype: torch.dtype) -> GpuExperts:
    stack = take_experts(module.experts, dtype, activation=config.activation)
    assert stack is not None
    return GpuExperts(module, stack, config, partial(make_gpu_matrix, dtype=dtype))


MIXTURES = {
    "mixtral": MoEConfig(8, 2, 96),
    "qwen 2": MoEConfig(9, 4, 40, renormalizes=False, shared_intermediate_size=72),
    "qwen 3": MoEConfig(16, 8, 24),
    "gpt-oss": MoEConfig(8, 4, 90, has_biases=True),
}
LARGE = {
    "mixtral": (MoEConfig(8, 2, 1792), 1024),
    "qwen 2": (MoEConfig(60, 4, 352, renormalizes=False, shared_intermediate_size=704), 512),
    "qwen 3": (MoEConfig(128, 8, 768), 2048),
    "gpt-oss": (MoEConfig(32, 4, 720, has_biases=True), 720),
}


def compare(
    mixture: MoEConfig, hidden_size: int, num_tokens: int, dtype: torch.dtype, *, biased: bool
) -> None:
    is_clamped = biased
    config = tiny_config(
        hidden_size=hidden_size,
        moe=mixture,
        activation="clamped_swiglu" if is_clamped else "silu",
    )
    module = make_module(config, dtype)
    fused = take_mixture(module, config, dtype)
    rows = random(num_tokens, hidden_size, dtype=dtype, seed=77)
    expected = module(rows)
    close = tolerance(dtype)
    assert_near(fused.multiply(rows), expected, **close)
    if num_tokens > 1:
        return
    norm = RMSNorm(hidden_size, EPS, offset=0.0, in_float32=False, dtype=dtype, device=DEVICE)
    norm.weight.copy_(1 + 0.2 * random(hidden_size, seed=78))
    hidden = rows.clone()
    expected = torch.add(hidden, module(norm(hidden)), alpha=0.5)
    fused.add_for_one(hidden, InputNorm(norm.weight, EPS), 0.5)
    assert_near(hidden, expected, **close)


def assert_near(found: torch.Tensor, expected: torch.Tensor, *, rtol: float, atol: float) -> None:
    """All but the few rows where rounding may decide between two experts that are nearly equal."""
    is_near = torch.isclose(found, expected, rtol=rtol, atol=atol).all(-1)
    allowed = 0 if found.dtype is torch.float32 else max(1, len(found) // 20)
    assert int((~is_near).sum()) <= allowed, (found - expected).abs().max()


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("num_tokens", cases([1, 3], on_card=[2, 9, 60, 300]))
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_small_mixtures(name: str, num_tokens: int, dtype: torch.dtype) -> None:
    compare(MIXTURES[name], 48, num_tokens, dtype, biased=name == "gpt-oss")


@pytest.mark.gpu
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("num_tokens", [1, 2, 20, 64, 300, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_large_mixtures(name: str, num_tokens: int, dtype: torch.dtype) -> None:
    mixture, hidden_size = LARGE[name]
    compare(mixture, hidden_size, num_tokens, dtype, biased=name == "gpt-oss")


@pytest.mark.parametrize("num_experts", cases([6], on_card=[32, 128]))
@torch.inference_mode()
def test_tokens_that_all_want_one_expert(num_experts: int) -> None:
    config = tiny_config(hidden_size=48, moe=MoEConfig(num_experts, 2, 24, has_biases=True))
    module = make_module(config, torch.float32)
    assert module.gate.bias is not None
    module.gate.bias[3], module.gate.bias[1] = 50.0, 40.0
    fused = take_mixture(module, config, torch.float32)
    rows = random(70, 48)
    torch.testing.assert_close(fused.multiply(rows), module(rows), **tolerance(torch.float32))


@torch.inference_mode()
def test_a_token_gets_the_same_whoever_is_beside_it() -> None:
    config = tiny_config(hidden_size=48, moe=MIXTURES["qwen 2"])
    module = make_module(config, torch.float32)
    fused = take_mixture(module, config, torch.float32)
    rows = random(12, 48)
    turned = fused.multiply(rows.flip(0)).flip(0)
    torch.testing.assert_close(fused.multiply(rows), turned, rtol=1e-5, atol=1e-5)

"""The kernels of packed experts against the module with the same weights, unpacked."""

from functools import partial

import pytest
import torch

from tests.support.tiny_decoders import tiny_config
from tests.support.triton_device import DEVICE, HAS_CARD, cases

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.kernels.triton import experts as experts_module  # isort: skip
from octavo.engine.kernels.triton.experts import TiledExperts  # isort: skip
from octavo.engine.kernels.triton.gemv import InputNorm  # isort: skip
from octavo.engine.layers.layernorm import RMSNorm  # isort: skip
from octavo.engine.layers.moe import MoE  # isort: skip
from octavo.engine.model_config import MoEConfig  # isort: skip
from octavo.engine.models.gpu_experts import GpuExperts  # isort: skip
from octavo.engine.models.gpu_matrices import make_gpu_matrix  # isort: skip
from tests.support.tiled_weights import MAKERS, make_tiled, take_large_portions  # isort: skip

EPS = 1e-5
FEW = ("int4 g128", "q4_k", "q6_k")
"""Products of all forms are in `test_triton_tiles`; here, what experts are mostly stored as."""
FORMS = [pytest.param(form, marks=[] if form in FEW else [pytest.mark.slow]) for form in MAKERS]
DTYPES = [torch.float16, torch.bfloat16] if HAS_CARD else [torch.float16]
"""The interpreter holds bfloat16 as raw bits."""
SMALL = MoEConfig(5, 2, 256), 256
SHARED = MoEConfig(3, 2, 128, renormalizes=False, shared_intermediate_size=16), 128
LARGE = {
    "qwen 3": (MoEConfig(128, 8, 256), 1024),
    "qwen 2": (MoEConfig(60, 4, 512, renormalizes=False, shared_intermediate_size=512), 1024),
    "mixtral": (MoEConfig(8, 2, 1792), 1024),
}
"""With fewer features than the models have: the twin in float32 is large."""


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_CARD:
        take_large_portions(monkeypatch)


def make_mixture(
    mixture: MoEConfig, hidden_size: int, form: str, downs_form: str, dtype: torch.dtype
) -> tuple[GpuExperts, MoE]:
    """Packed experts in kernels, and in float32 the module that they stand for.

    Both pick by logits in the type of the activations: among many experts some are so nearly equal
    that rounding decides.
    """
    config = tiny_config(hidden_size=hidden_size, moe=mixture)
    count, inner = mixture.num_experts, mixture.intermediate_size
    gate_ups = make_tiled(form, count * 2 * inner, hidden_size, DEVICE)
    downs = make_tiled(downs_form, count * hidden_size, inner, DEVICE, seed=1)
    if gate_ups is None or downs is None:
        pytest.skip("rows of so many features cannot lie like this")
    rounded, exact = (MoE(config, dtype=one, device=DEVICE) for one in (dtype, torch.float32))
    pairs = zip(rounded.named_parameters(), exact.parameters(), strict=True)
    for seed, ((name, parameter), twin) in enumerate(pairs):
        if name.startswith("experts."):
            continue
        torch.manual_seed(seed)
        # As trained routers do, and so that rounding seldom changes who is picked.
        scale = 4.0 if name == "gate.weight" else 1.0
        parameter.copy_(torch.randn(parameter.shape) * scale * parameter.shape[-1] ** -0.5)
        twin.copy_(parameter)
    exact.gate.forward = lambda rows: rounded.gate(rows.to(dtype)).float()  # type: ignore[assignment, method-assign]
    unpacked = gate_ups.unpack().view(count, 2, inner, hidden_size)
    exact.experts.gate_proj.copy_(unpacked[:, 0])
    exact.experts.up_proj.copy_(unpacked[:, 1])
    exact.experts.down_proj.copy_(downs.unpack().view(count, hidden_size, inner))
    stack = TiledExperts(gate_ups, downs, count)
    return GpuExperts(rounded, stack, config, partial(make_gpu_matrix, dtype=dtype)), exact


def compare(mixture: GpuExperts, module: MoE, num_tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    hidden_size = module.gate.weight.shape[1]
    rows = torch.randn(num_tokens, hidden_size).to(DEVICE, dtype)
    assert_near(mixture.multiply(rows), module(rows.float()))
    if num_tokens > 1:
        return
    norm = RMSNorm(
        hidden_size, EPS, offset=0.0, in_float32=False, dtype=torch.float32, device=DEVICE
    )
    norm.weight.copy_((1 + 0.2 * torch.randn(hidden_size)).to(dtype))
    expected = torch.add(rows.float(), module(norm(rows.float())), alpha=0.5)
    mixture.add_for_one(rows, InputNorm(norm.weight.to(dtype), EPS), 0.5)
    assert_near(rows, expected)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """All but the few rows where rounding may decide between two experts that are nearly equal."""
    errors = (found.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    limit = 1.5e-2 if found.dtype is torch.bfloat16 else 2e-3
    allowed = 0 if len(found) < 10 else max(1, len(found) // 20)
    assert int((~(errors < limit)).sum()) <= allowed, errors.max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_tokens", [1, 3])
@torch.inference_mode()
def test_forms(form: str, num_tokens: int) -> None:
    mixture, module = make_mixture(*SMALL, form, form, torch.float16)
    compare(mixture, module, num_tokens, torch.float16)


@pytest.mark.parametrize("num_tokens", [1, 9])
@torch.inference_mode()
def test_two_forms_beside_an_expert_for_all(num_tokens: int) -> None:
    mixture, module = make_mixture(*SHARED, "int4 g128", "int8 channels", torch.float16)
    compare(mixture, module, num_tokens, torch.float16)


@pytest.mark.parametrize("form", ["int4 g128", "q4_k"])
@torch.inference_mode()
def test_few_tokens_go_pick_by_pick(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_module, "_MAX_VECTOR_PICKS", 2)
    mixture, module = make_mixture(*SMALL, form, form, torch.float16)
    compare(mixture, module, 3, torch.float16)


@torch.inference_mode()
def test_many_tokens_unpack_some_experts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates and ups of two experts are a slab; and downs of all."""
    monkeypatch.setattr(experts_module, "_MAX_TILED_PICKS", 0)
    monkeypatch.setattr(experts_module, "_MAX_VECTOR_PICKS", 0)
    monkeypatch.setattr(experts_module, "_SLAB_ELEMENTS", 2 * 2 * 128 * 128)
    mixture, module = make_mixture(
        MoEConfig(3, 2, 128), 128, "int4 g128", "int8 channels", torch.float16
    )
    compare(mixture, module, 7, torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("num_tokens", [1, 2, 20, 64, 300, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "forms",
    [
        ("q4_k", "q6_k"),
        ("int4 g128", "int4 g128"),
        ("int8 channels", "int8 channels"),
        ("float8 blocks", "float8 blocks"),
        ("q5_k", "int8 g32"),
    ],
)
@torch.inference_mode()
def test_large_mixtures(
    name: str, num_tokens: int, dtype: torch.dtype, forms: tuple[str, str]
) -> None:
    mixture, module = make_mixture(*LARGE[name], *forms, dtype)
    compare(mixture, module, num_tokens, dtype)


@pytest.mark.parametrize("num_experts", cases([6], on_card=[64]))
@torch.inference_mode()
def test_tokens_that_all_want_one_expert(num_experts: int) -> None:
    mixture, module = make_mixture(
        MoEConfig(num_experts, 1, 256), 256, "q4_k", "q4_k", torch.float16
    )
    rows = module.gate.weight[3].to(torch.float16).expand(20, -1).contiguous()
    assert module.gate(rows.float()).argmax(-1).tolist() == [3] * 20
    assert_near(mixture.multiply(rows), module(rows.float()))

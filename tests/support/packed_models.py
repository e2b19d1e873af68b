"""Small models with the same random weights on every device, packed or not, and plans for them."""

import dataclasses
from typing import Any

import torch

from octavo.engine.config import EngineConfig
from octavo.engine.device import choose_device, detect_devices
from octavo.engine.dummy_weights import DUMMY_FORMATS
from octavo.engine.layers.embedding import Embedding
from octavo.engine.layers.linear import Linear
from octavo.engine.layers.moe import Experts
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.decoder import Decoder, build_model
from octavo.engine.quantization.packed import PackedWeight
from tests.support.tiny_decoders import tiny_plan
from tests.support.triton_device import HAS_CARD

ON_CPU = tiny_plan(keeps_packed=True)


def card_plan() -> MemoryPlan:
    """In float16, for the card if there is one."""
    plan = dataclasses.replace(ON_CPU, dtype="float16")
    if not HAS_CARD:
        return plan
    device = choose_device(EngineConfig(device="cuda"), detect_devices())
    return dataclasses.replace(plan, device=device)


@torch.inference_mode()
def packed_model(config: ModelConfig, weights: str, plan: MemoryPlan) -> Decoder:
    """The same weights on every device."""
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    model = build_model(config, plan)

    def make(name: str, stacked: torch.Tensor) -> torch.Tensor | PackedWeight:
        num_rows, num_columns = stacked.shape
        matrix = DUMMY_FORMATS[weights].make(name, (num_rows, num_columns), config, cpu)
        if isinstance(matrix, torch.Tensor):
            # Routers are sure of their choice, as trained ones are: rounding seldom changes it.
            matrix *= 4.0 if name.endswith("mlp.gate") else 1.0
            # As a file's plain numbers are read: in the type of the model.
            return matrix.to(plan.device.kind, model.model.norm.weight.dtype)
        moved: PackedWeight = to_device(matrix, torch.device(plan.device.kind))
        return moved

    for name, module in model.named_modules():
        if isinstance(module, Linear | Embedding):
            module.put("weight", 0, make(name, module.weight))
        elif isinstance(module, Experts):
            for part in ("gate_proj", "up_proj", "down_proj"):
                for expert, stacked in enumerate(getattr(module, part)):
                    module.put(part, expert, make(f"{name}.{part}", stacked))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.1 * torch.randn(parameter.shape))
    return model


def to_device(value: Any, device: torch.device) -> Any:
    """All tensors of a stored format."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = dataclasses.fields(value)
    return dataclasses.replace(
        value, **{one.name: to_device(getattr(value, one.name), device) for one in fields}
    )

"""A feed-forward part of many experts, in plain torch: the definition that kernels are tested with.

Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1 (Mixtral); Qwen Team 2024 (Qwen1.5-MoE:
shared expert).
"""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.layers.linear import Linear, parameter
from octavo.engine.layers.mlp import GatedMLP, apply_gate
from octavo.engine.model_config import ModelConfig


class Experts(nn.Module):
    """The matrices of all experts, stacked."""

    gate_proj_bias: nn.Parameter | None
    up_proj_bias: nn.Parameter | None
    down_proj_bias: nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        shape = (num_experts, intermediate_size, hidden_size)
        self.gate_proj = parameter(*shape, dtype=dtype, device=device)
        self.up_proj = parameter(*shape, dtype=dtype, device=device)
        self.down_proj = parameter(
            num_experts, hidden_size, intermediate_size, dtype=dtype, device=device
        )
        for name, size in (
            ("gate_proj_bias", intermediate_size),
            ("up_proj_bias", intermediate_size),
            ("down_proj_bias", hidden_size),
        ):
            stacked = parameter(num_experts, size, dtype=dtype, device=device) if bias else None
            self.register_parameter(name, stacked)

    def forward(self, expert: int, hidden: torch.Tensor, activation: str) -> torch.Tensor:
        """[num_tokens, hidden_size] through one expert."""
        gate = functional.linear(hidden, self.gate_proj[expert], _row(self.gate_proj_bias, expert))
        up = functional.linear(hidden, self.up_proj[expert], _row(self.up_proj_bias, expert))
        gated = apply_gate(gate, up, activation)
        return functional.linear(gated, self.down_proj[expert], _row(self.down_proj_bias, expert))


def _row(biases: torch.Tensor | None, expert: int) -> torch.Tensor | None:
    return None if biases is None else biases[expert]


class MoE(nn.Module):
    """Sends each token through the experts its router picks, and adds their weighted outputs.

    Models that apply softmax after they picked (gpt-oss) are those that renormalise: the two are
    the same weights.
    """

    shared_expert: GatedMLP | None
    shared_expert_gate: Linear | None

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        assert config.moe is not None
        self._moe = config.moe
        self._activation = config.activation
        self.gate = Linear(
            config.hidden_size,
            config.moe.num_experts,
            bias=config.moe.has_biases,
            dtype=dtype,
            device=device,
        )
        self.experts = Experts(
            config.moe.num_experts,
            config.hidden_size,
            config.moe.intermediate_size,
            bias=config.moe.has_biases,
            dtype=dtype,
            device=device,
        )
        self.shared_expert = self.shared_expert_gate = None
        if config.moe.shared_intermediate_size:
            self.shared_expert = GatedMLP(
                config.hidden_size,
                config.moe.shared_intermediate_size,
                activation=config.activation,
                dtype=dtype,
                device=device,
            )
            self.shared_expert_gate = Linear(config.hidden_size, 1, dtype=dtype, device=device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size], type kept."""
        probabilities = self.gate(hidden).softmax(-1, dtype=torch.float32)
        weights, picked = probabilities.topk(self._moe.num_experts_per_token, dim=-1)
        if self._moe.renormalizes:
            weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros_like(hidden)
        for expert in picked.unique().tolist():
            tokens, ranks = torch.where(picked == expert)
            routed = self.experts(expert, hidden[tokens], self._activation)
            share = weights[tokens, ranks].to(hidden.dtype).unsqueeze(1)
            output.index_add_(0, tokens, routed * share)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            output += torch.sigmoid(self.shared_expert_gate(hidden)) * self.shared_expert(hidden)
        return output

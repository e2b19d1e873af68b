"""A feed-forward part of many experts, in plain torch: the definition that kernels are tested with.

Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1 (Mixtral); Qwen Team 2024 (Qwen1.5-MoE:
shared expert).
"""

import torch
from torch import nn

from octavo.engine.layers.linear import Linear, linear, matrix_parameter, parameter
from octavo.engine.layers.mlp import GatedMLP, apply_gate
from octavo.engine.model_config import ModelConfig
from octavo.engine.quantization.packed import PackedWeight


class Experts(nn.Module):
    """The matrices of all experts, stacked; those that are kept packed are a list."""

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
        keeps_packed: bool = False,
    ) -> None:
        super().__init__()
        self.device = device
        self.packed: dict[str, list[torch.Tensor | PackedWeight]] = {}
        """By the name of their parameter, of each expert; empty: the parameters hold them."""

        def stacked(rows: int, columns: int) -> nn.Parameter:
            return matrix_parameter(
                num_experts, rows, columns, dtype=dtype, device=device, keeps_packed=keeps_packed
            )

        self.gate_proj = stacked(intermediate_size, hidden_size)
        self.up_proj = stacked(intermediate_size, hidden_size)
        self.down_proj = stacked(hidden_size, intermediate_size)
        for name, size in (
            ("gate_proj_bias", intermediate_size),
            ("up_proj_bias", intermediate_size),
            ("down_proj_bias", hidden_size),
        ):
            biases = parameter(num_experts, size, dtype=dtype, device=device) if bias else None
            self.register_parameter(name, biases)

    def put(self, name: str, index: int, matrix: torch.Tensor | PackedWeight) -> None:
        """As `KeepsPacked` says."""
        if name not in self.packed:
            self.packed[name] = list(getattr(self, name))
        self.packed[name][index] = matrix

    def forward(self, expert: int, hidden: torch.Tensor, activation: str) -> torch.Tensor:
        """[num_tokens, hidden_size] through one expert."""
        gate = self._project("gate_proj", expert, hidden)
        up = self._project("up_proj", expert, hidden)
        return self._project("down_proj", expert, apply_gate(gate, up, activation))

    def matrix(self, name: str, expert: int) -> torch.Tensor | PackedWeight:
        """[out_features, in_features]: one of the matrices of one expert."""
        matrices = self.packed.get(name)
        if matrices is not None:
            return matrices[expert]
        stacked: torch.Tensor = getattr(self, name)
        return stacked[expert]

    def _project(self, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
        biases: torch.Tensor | None = getattr(self, f"{name}_bias")
        bias = None if biases is None else biases[expert]
        return linear(inputs, self.matrix(name, expert), bias)


class MoE(nn.Module):
    """Sends each token through the experts its router picks, and adds their weighted outputs.

    Models that apply softmax after they picked (gpt-oss) are those that renormalise: the two are
    the same weights.
    """

    shared_expert: GatedMLP | None
    shared_expert_gate: Linear | None

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
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
            keeps_packed=keeps_packed,
        )
        self.experts = Experts(
            config.moe.num_experts,
            config.hidden_size,
            config.moe.intermediate_size,
            bias=config.moe.has_biases,
            dtype=dtype,
            device=device,
            keeps_packed=keeps_packed,
        )
        self.shared_expert = self.shared_expert_gate = None
        if config.moe.shared_intermediate_size:
            self.shared_expert = GatedMLP(
                config.hidden_size,
                config.moe.shared_intermediate_size,
                activation=config.activation,
                dtype=dtype,
                device=device,
                keeps_packed=keeps_packed,
            )
            self.shared_expert_gate = Linear(
                config.hidden_size, 1, dtype=dtype, device=device, keeps_packed=keeps_packed
            )

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

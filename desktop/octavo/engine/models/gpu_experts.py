"""A feed-forward part of many experts on an NVIDIA card: `MoE` out of kernels."""

import torch

from octavo.engine.kernels.triton.expert_gemm import (
    ExpertMatrices,
    combine_picks,
    grouped_shape,
    multiply_grouped,
)
from octavo.engine.kernels.triton.expert_gemv import add_picked, multiply_picked
from octavo.engine.kernels.triton.gated_activation import gated_activation
from octavo.engine.kernels.triton.gemv import InputNorm
from octavo.engine.kernels.triton.matrices import Matrix
from octavo.engine.kernels.triton.moe_routing import group_picks, pick_experts
from octavo.engine.layers.moe import MoE
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.gpu_matrices import MakeMatrix


class GpuExperts:
    """The experts of one layer, their router, and the expert that sees every token if there is one.

    Nothing in it waits for the device: who computes what is decided there.
    """

    def __init__(
        self, module: MoE, config: ModelConfig, make: MakeMatrix, *, overlap: bool = False
    ) -> None:
        """Takes over a module's weights without copying them.

        Args:
            module: loaded, with experts in the type of the activations.
            config: the model's numbers.
            make: how linear layers are multiplied by.
            overlap: whether kernels may overlap with those before them.
        """
        assert config.moe is not None
        self._moe = config.moe
        self._activation = config.activation
        self._overlap = overlap
        self._gates, self._ups, self._downs = (
            ExpertMatrices(getattr(module.experts, name), getattr(module.experts, f"{name}_bias"))
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        self._router = make(module.gate)
        self._shared: tuple[Matrix, Matrix, Matrix] | None = None
        if module.shared_expert is not None and module.shared_expert_gate is not None:
            shared = module.shared_expert
            self._shared = (
                make(shared.gate_up),
                make(shared.down_proj),
                make(module.shared_expert_gate),
            )

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Those that every token is multiplied by."""
        return self._router, *(self._shared or ())

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size], normalised, to what is added to the stream."""
        moe, overlap = self._moe, self._overlap
        picks = pick_experts(
            self._router.multiply(rows),
            moe.num_experts_per_token,
            renormalizes=moe.renormalizes,
            overlap=overlap,
        )
        num_picks = picks.experts.numel()
        gated_shape, shape = (
            grouped_shape(
                num_picks, moe.num_experts, gated=gated, dtype=rows.dtype, device=rows.device
            )
            for gated in (True, False)
        )
        groups = group_picks(picks, moe.num_experts, shape.picks, overlap=overlap)
        activated = multiply_grouped(
            rows,
            self._gates,
            groups,
            num_picks,
            up_matrices=self._ups,
            activation=self._activation,
            shape=gated_shape,
            overlap=overlap,
        )
        products = multiply_grouped(
            activated, self._downs, groups, num_picks, shape=shape, overlap=overlap
        )
        shared = shared_logits = None
        if self._shared is not None:
            gate_up, down, gate = self._shared
            activated = gated_activation(
                gate_up.multiply(rows), activation=self._activation, overlap=overlap
            )
            shared, shared_logits = down.multiply(activated), gate.multiply(rows)
        return combine_picks(
            products, picks, shared=shared, shared_logits=shared_logits, overlap=overlap
        )

    def add_for_one(self, hidden: torch.Tensor, norm: InputNorm, scale: float) -> None:
        """One token: adds to its hidden state, [1, hidden_size], normalised for the experts.

        Args:
            hidden: is changed.
            norm: what the experts see it through.
            scale: factor on what is added.
        """
        moe, overlap = self._moe, self._overlap
        shared = shared_logits = None
        if self._shared is not None:
            gate_up, down, gate = self._shared
            shared = down.multiply(gate_up.multiply_gated(hidden, norm, self._activation))
            shared_logits = gate.multiply_normed(hidden, norm)
        picks = pick_experts(
            self._router.multiply_normed(hidden, norm),
            moe.num_experts_per_token,
            renormalizes=moe.renormalizes,
            overlap=overlap,
        )
        activated = multiply_picked(
            hidden,
            self._gates,
            self._ups,
            picks,
            norm=norm,
            activation=self._activation,
            overlap=overlap,
        )
        add_picked(
            activated,
            self._downs,
            picks,
            hidden,
            residual_scale=scale,
            shared=shared,
            shared_logits=shared_logits,
            overlap=overlap,
        )

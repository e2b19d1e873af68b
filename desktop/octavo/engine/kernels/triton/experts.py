"""The matrices of a layer's experts as kernels multiply by them: dense, or packed."""

from collections.abc import Hashable
from typing import Protocol

import torch

from octavo.engine.kernels.triton.expert_gemm import (
    ExpertMatrices,
    GroupedShape,
    grouped_shape,
    multiply_grouped,
)
from octavo.engine.kernels.triton.expert_gemv import add_picked, multiply_picked
from octavo.engine.kernels.triton.gemv import InputNorm
from octavo.engine.kernels.triton.moe_routing import PickGroups, Picks, group_picks
from octavo.engine.kernels.triton.rms_norm import add_rms_norm
from octavo.engine.kernels.triton.tiled_expert_gemm import (
    multiply_grouped_tiled,
    tiled_grouped_shape,
)
from octavo.engine.kernels.triton.tiled_expert_gemv import add_picked_tiled, multiply_picked_tiled
from octavo.engine.kernels.triton.tiled_gemm import scales_are_many
from octavo.engine.kernels.triton.tiled_unpack import unpack_rows
from octavo.engine.kernels.triton.tiles import TiledWeights

_MAX_VECTOR_PICKS = 0.25
"""Of an expert, on average; so few seldom share one, and each is computed by itself. With twice as
many that is as fast where they are spread evenly, and slower where they are not."""
_MAX_TILED_PICKS, _MAX_SCALED_PICKS = 640, 200
"""Likewise; with more, matrices are unpacked: each is read and scaled once, not once a block of
picks. The second where applying scales takes about as long as the products."""
_SLAB_ELEMENTS = 2**26
"""Values that are unpacked for that at a time, or one expert's; `step_memory` counts them."""


class ExpertStack(Protocol):
    """Gates, ups and downs of all experts of a layer."""

    @property
    def kind(self) -> Hashable:
        """Equal where the same kernels compute them."""

    def multiply(self, rows: torch.Tensor, picks: Picks) -> torch.Tensor:
        """[num_tokens, hidden_size] to [num_tokens * num_picks, hidden_size]: of each pick."""

    def add_for_one(
        self,
        hidden: torch.Tensor,
        norm: InputNorm,
        picks: Picks,
        scale: float,
        *,
        shared: torch.Tensor | None = None,
        shared_logits: torch.Tensor | None = None,
    ) -> None:
        """One token: adds the outputs of its experts to its hidden state, [1, hidden_size].

        Args:
            hidden: is changed.
            norm: what the experts see it through.
            picks: of the token.
            scale: factor on what is added.
            shared: [1, hidden_size]: output of the expert that sees every token, if there is one.
            shared_logits: [1, 1]: its share, before the sigmoid.
        """


class DenseExperts:
    """Experts in the type of the activations."""

    def __init__(
        self,
        gates: ExpertMatrices,
        ups: ExpertMatrices,
        downs: ExpertMatrices,
        *,
        activation: str = "silu",
        overlap: bool = False,
    ) -> None:
        """Args:
        gates: of each expert, and so `ups` and `downs`.
        activation: as `layers.mlp.apply_gate` has them.
        overlap: whether kernels may overlap with those before them.
        """
        self._gates, self._ups, self._downs = gates, ups, downs
        self._activation = activation
        self._overlap = overlap

    @property
    def kind(self) -> Hashable:
        return self._gates.weight.shape, self._gates.bias is None

    def multiply(self, rows: torch.Tensor, picks: Picks) -> torch.Tensor:
        num_picks, num_experts = picks.experts.numel(), len(self._gates.weight)
        gated_shape, shape = _dense_shapes(rows, num_picks, num_experts)
        groups = group_picks(picks, num_experts, shape.picks, overlap=self._overlap)
        activated = multiply_grouped(
            rows,
            self._gates,
            groups,
            num_picks,
            up_matrices=self._ups,
            activation=self._activation,
            shape=gated_shape,
            overlap=self._overlap,
        )
        return multiply_grouped(
            activated, self._downs, groups, num_picks, shape=shape, overlap=self._overlap
        )

    def add_for_one(
        self,
        hidden: torch.Tensor,
        norm: InputNorm,
        picks: Picks,
        scale: float,
        *,
        shared: torch.Tensor | None = None,
        shared_logits: torch.Tensor | None = None,
    ) -> None:
        activated = multiply_picked(
            hidden,
            self._gates,
            self._ups,
            picks,
            norm=norm,
            activation=self._activation,
            overlap=self._overlap,
        )
        add_picked(
            activated,
            self._downs,
            picks,
            hidden,
            residual_scale=scale,
            shared=shared,
            shared_logits=shared_logits,
            overlap=self._overlap,
        )


class TiledExperts:
    """Packed experts in the kernels' layout, without biases; activations in bfloat16 or float16."""

    def __init__(
        self,
        gate_ups: TiledWeights,
        downs: TiledWeights,
        num_experts: int,
        *,
        activation: str = "silu",
        overlap: bool = False,
    ) -> None:
        """Args:
        gate_ups: [num_experts * 2 * intermediate_size, hidden_size]: of each expert the gates, then
            the ups.
        downs: [num_experts * hidden_size, intermediate_size].
        num_experts: of the layer.
        activation: as `layers.mlp.apply_gate` has them.
        overlap: whether kernels may overlap with those before them.
        """
        assert gate_ups.input_order is None
        assert downs.input_order is None
        self._gate_ups, self._downs = gate_ups, downs
        self._num_experts = num_experts
        self._activation = activation
        self._overlap = overlap

    @property
    def kind(self) -> Hashable:
        return self._gate_ups.kind, self._downs.kind

    def multiply(self, rows: torch.Tensor, picks: Picks) -> torch.Tensor:
        num_picks, num_experts = picks.experts.numel(), self._num_experts
        if num_picks <= _MAX_VECTOR_PICKS * num_experts:
            return self._multiply_alone(rows, picks)
        form = self._gate_ups.form
        most = _MAX_SCALED_PICKS if scales_are_many(form) else _MAX_TILED_PICKS
        if num_picks > most * num_experts:
            return self._multiply_unpacked(rows, picks)
        shape = tiled_grouped_shape(num_picks, num_experts, form, rows.device)
        groups = group_picks(picks, num_experts, shape.picks, overlap=self._overlap)
        activated = multiply_grouped_tiled(
            rows,
            self._gate_ups,
            groups,
            num_picks,
            num_experts,
            gated=True,
            activation=self._activation,
            shape=shape,
            overlap=self._overlap,
        )
        return multiply_grouped_tiled(
            activated,
            self._downs,
            groups,
            num_picks,
            num_experts,
            gated=False,
            shape=shape,
            overlap=self._overlap,
        )

    def add_for_one(
        self,
        hidden: torch.Tensor,
        norm: InputNorm,
        picks: Picks,
        scale: float,
        *,
        shared: torch.Tensor | None = None,
        shared_logits: torch.Tensor | None = None,
    ) -> None:
        normed = add_rms_norm(
            hidden,
            norm.weight,
            eps=norm.eps,
            offset=norm.offset,
            in_float32=norm.in_float32,
            overlap=self._overlap,
        )
        activated = self._activate_alone(normed, picks)
        add_picked_tiled(
            activated,
            self._downs,
            picks,
            hidden,
            residual_scale=scale,
            shared=shared,
            shared_logits=shared_logits,
            overlap=self._overlap,
        )

    def _activate_alone(self, rows: torch.Tensor, picks: Picks) -> torch.Tensor:
        """[num_tokens, hidden_size] to [num_tokens * num_picks, intermediate_size]."""
        return multiply_picked_tiled(
            rows,
            self._gate_ups,
            picks,
            self._num_experts,
            gated=True,
            activation=self._activation,
            overlap=self._overlap,
        )

    def _multiply_alone(self, rows: torch.Tensor, picks: Picks) -> torch.Tensor:
        activated = self._activate_alone(rows, picks)
        return multiply_picked_tiled(
            activated, self._downs, picks, self._num_experts, gated=False, overlap=self._overlap
        )

    def _multiply_unpacked(self, rows: torch.Tensor, picks: Picks) -> torch.Tensor:
        gated_shape, shape = _dense_shapes(rows, picks.experts.numel(), self._num_experts)
        groups = group_picks(picks, self._num_experts, shape.picks, overlap=self._overlap)
        activated = self._multiply_slabs(rows, self._gate_ups, picks, groups, gated_shape, 2)
        return self._multiply_slabs(activated, self._downs, picks, groups, shape, 1)

    def _multiply_slabs(
        self,
        rows: torch.Tensor,
        weights: TiledWeights,
        picks: Picks,
        groups: PickGroups,
        shape: GroupedShape,
        num_matrices: int,
    ) -> torch.Tensor:
        """As `multiply_grouped`, by one or two matrices of each expert, some experts at a time."""
        num_experts, num_columns = self._num_experts, weights.in_features
        rows_each = weights.out_features // num_experts
        num_features = rows_each // num_matrices
        num_picks = picks.experts.numel()
        output = rows.new_empty(num_picks, num_features)
        step = max(1, _SLAB_ELEMENTS // (rows_each * num_columns))
        for first in range(0, num_experts, step):
            last = min(first + step, num_experts)
            slab = rows.new_empty((last - first) * rows_each, num_columns)
            unpack_rows(weights, first * rows_each, last * rows_each, slab)
            matrices = slab.view(last - first, num_matrices, num_features, num_columns)
            multiply_grouped(
                rows,
                ExpertMatrices(matrices[:, 0], None),
                groups,
                num_picks,
                up_matrices=ExpertMatrices(matrices[:, 1], None) if num_matrices == 2 else None,
                activation=self._activation,
                shape=shape,
                first_expert=first,
                output=output,
                overlap=self._overlap,
            )
        return output


def _dense_shapes(
    rows: torch.Tensor, num_picks: int, num_experts: int
) -> tuple[GroupedShape, GroupedShape]:
    """Of gates and ups, and of downs."""
    gated, plain = (
        grouped_shape(num_picks, num_experts, gated=gated, dtype=rows.dtype, device=rows.device)
        for gated in (True, False)
    )
    return gated, plain

"""A feed-forward part of many experts on an NVIDIA card: `MoE` out of kernels."""

from collections.abc import Hashable

import torch

from octavo.engine.kernels.triton.expert_gemm import ExpertMatrices, combine_picks
from octavo.engine.kernels.triton.experts import DenseExperts, ExpertStack, TiledExperts
from octavo.engine.kernels.triton.gated_activation import gated_activation
from octavo.engine.kernels.triton.gemv import InputNorm
from octavo.engine.kernels.triton.matrices import Matrix
from octavo.engine.kernels.triton.moe_routing import pick_experts
from octavo.engine.layers.moe import Experts, MoE
from octavo.engine.model_config import ModelConfig
from octavo.engine.models.gpu_matrices import KERNEL_DTYPES, MakeMatrix
from octavo.engine.models.tiling import tile_stack
from octavo.engine.quantization.packed import PackedWeight


class GpuExperts:
    """The experts of one layer, their router, and the expert that sees every token if there is one.

    Nothing in it waits for the device: who computes what is decided there.
    """

    def __init__(
        self,
        module: MoE,
        experts: ExpertStack,
        config: ModelConfig,
        make: MakeMatrix,
        *,
        overlap: bool = False,
    ) -> None:
        """Takes over a module's weights without copying them.

        Args:
            module: loaded.
            experts: its experts, as `take_experts` makes them.
            config: the model's numbers.
            make: how linear layers are multiplied by.
            overlap: whether kernels may overlap with those before them.
        """
        assert config.moe is not None
        self._moe = config.moe
        self._activation = config.activation
        self._overlap = overlap
        self._experts = experts
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

    @property
    def kind(self) -> Hashable:
        """Equal where the same kernels compute them."""
        return self._experts.kind, *(matrix.kind for matrix in self.matrices)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size], normalised, to what is added to the stream."""
        moe, overlap = self._moe, self._overlap
        picks = pick_experts(
            self._router.multiply(rows),
            moe.num_experts_per_token,
            renormalizes=moe.renormalizes,
            overlap=overlap,
        )
        products = self._experts.multiply(rows, picks)
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
        self._experts.add_for_one(
            hidden, norm, picks, scale, shared=shared, shared_logits=shared_logits
        )


def take_experts(
    experts: Experts, dtype: torch.dtype, *, activation: str, overlap: bool = False
) -> ExpertStack | None:
    """Takes over the experts of a layer: dense ones as they are, packed ones rearranged.

    The module gives its packed weights up; it cannot be called afterwards.

    Returns:
        None: only the module can multiply by experts that are stored like this.
    """
    if experts.packed:
        return _take_packed(experts, dtype, activation=activation, overlap=overlap)
    matrices = (
        ExpertMatrices(getattr(experts, name), getattr(experts, f"{name}_bias"))
        for name in ("gate_proj", "up_proj", "down_proj")
    )
    return DenseExperts(*matrices, activation=activation, overlap=overlap)


def _take_packed(
    experts: Experts, dtype: torch.dtype, *, activation: str, overlap: bool
) -> TiledExperts | None:
    if dtype not in KERNEL_DTYPES or experts.down_proj_bias is not None:
        return None
    gates, ups, downs = (
        [one for one in experts.packed[name] if isinstance(one, PackedWeight)]
        for name in ("gate_proj", "up_proj", "down_proj")
    )
    num_experts = len(experts.down_proj)
    if not len(gates) == len(ups) == len(downs) == num_experts:
        return None
    gate_ups = tile_stack([part for pair in zip(gates, ups, strict=True) for part in pair])
    if gate_ups is None or (stacked_downs := tile_stack(downs)) is None:
        return None
    experts.packed.clear()
    return TiledExperts(
        gate_ups, stacked_downs, num_experts, activation=activation, overlap=overlap
    )

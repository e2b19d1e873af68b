"""Linear layers. Every matrix of a decoder but the embedding is one of these.

A matrix is either dense, in the type of the activations, or packed as its checkpoint stores it.
"""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.quantization.packed import PackedWeight
from octavo.engine.step_memory import UNPACKED_DEVICE_SLAB_ELEMENTS, UNPACKED_SLAB_ELEMENTS


def parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A weight that waits to be loaded: not initialised, not trained."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def matrix_parameter(
    *shape: int, dtype: torch.dtype, device: torch.device, keeps_packed: bool
) -> nn.Parameter:
    """As `parameter`; of a layer that keeps its matrices packed it has a shape, but no memory."""
    return parameter(*shape, dtype=dtype, device=torch.device("meta") if keeps_packed else device)


def linear(
    inputs: torch.Tensor, weight: torch.Tensor | PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y = x Wᵀ + b; a packed weight is unpacked some rows at a time, and forgotten again.

    Args:
        inputs: [num_tokens, in_features].
        weight: [out_features, in_features].
        bias: [out_features].

    Returns:
        [num_tokens, out_features], type of inputs.
    """
    if isinstance(weight, torch.Tensor):
        return functional.linear(inputs, weight, bias)
    outputs = inputs.new_empty(len(inputs), weight.shape[0])
    is_cpu = inputs.device.type == "cpu"
    slab_elements = UNPACKED_SLAB_ELEMENTS if is_cpu else UNPACKED_DEVICE_SLAB_ELEMENTS
    for start, stop in weight.slabs(slab_elements):
        rows = weight.unpack_rows(start, stop, inputs.dtype)
        part = None if bias is None else bias[start:stop]
        outputs[:, start:stop] = functional.linear(inputs, rows, part)
    return outputs


class Linear(nn.Module):
    """Multiplies by one matrix: y = x Wᵀ + b."""

    bias: nn.Parameter | None
    packed: PackedWeight | None
    """The matrix, if it is packed; then `weight` says its shape and nothing else."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
        super().__init__()
        self.device = device
        self.weight = matrix_parameter(
            out_features, in_features, dtype=dtype, device=device, keeps_packed=keeps_packed
        )
        self.bias = parameter(out_features, dtype=dtype, device=device) if bias else None
        self.packed = None

    def put(self, _name: str, _index: int, matrix: torch.Tensor | PackedWeight) -> None:
        """As `KeepsPacked` says."""
        if isinstance(matrix, PackedWeight):
            self.packed = matrix
        else:
            self.weight = nn.Parameter(matrix, requires_grad=False)

    def matrix(self, _name: str, _index: int) -> torch.Tensor | PackedWeight:
        """As `KeepsPacked` says."""
        return self.weight if self.packed is None else self.packed

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] to [num_tokens, out_features]."""
        return linear(inputs, self.weight if self.packed is None else self.packed, self.bias)


class FusedLinear:
    """Several linear layers over the same input, multiplied at once.

    The layers stay modules under their own names, as checkpoints have them, but their parameters
    are views of one matrix: loading `q_proj`, `k_proj` and `v_proj` fills it. Hence it is no
    module itself, and the device is chosen here and not by `Module.to`. Layers that keep their
    matrices packed may each be stored otherwise; they are multiplied one after the other.
    """

    def __init__(
        self,
        in_features: int,
        out_features: tuple[int, ...],
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
        sizes = list(out_features)
        self._weight = None
        self._bias = torch.empty(sum(out_features), dtype=dtype, device=device) if bias else None
        self.parts = [
            Linear(in_features, size, dtype=dtype, device=device, keeps_packed=True)
            for size in out_features
        ]
        sizes = list(out_features)
        if not keeps_packed:
            self._weight = torch.empty(sum(out_features), in_features, dtype=dtype, device=device)
            for part, weight in zip(self.parts, self._weight.split_with_sizes(sizes), strict=True):
                part.weight = nn.Parameter(weight, requires_grad=False)
        if self._bias is not None:
            for part, view in zip(self.parts, self._bias.split_with_sizes(sizes), strict=True):
                part.bias = nn.Parameter(view, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor | None:
        """All matrices, one above the other: [sum of sizes, in_features]; None: each part has its
        own."""
        return self._weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[sum of sizes]."""
        return self._bias

    def forget_weight(self) -> None:
        """Gives up the joint matrix, for whoever multiplies by a form of their own."""
        self._weight = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] to the outputs side by side: [num_tokens, sum of sizes]."""
        if self._weight is None:
            return torch.cat([part(inputs) for part in self.parts], dim=-1)
        return functional.linear(inputs, self._weight, self._bias)

"""Linear layers. Every matrix of a decoder but the embedding is one of these.

They are the seam for packed weights: whoever stores a matrix otherwise changes this file alone.
"""

import torch
from torch import nn
from torch.nn import functional


def parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A weight that waits to be loaded: not initialised, not trained."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class Linear(nn.Module):
    """Multiplies by one matrix: y = x Wᵀ + b."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.weight = parameter(out_features, in_features, dtype=dtype, device=device)
        self.bias = parameter(out_features, dtype=dtype, device=device) if bias else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] to [num_tokens, out_features]."""
        return functional.linear(inputs, self.weight, self.bias)


class FusedLinear:
    """Several linear layers over the same input, multiplied at once.

    The layers stay modules under their own names, as checkpoints have them, but their parameters
    are views of one matrix: loading `q_proj`, `k_proj` and `v_proj` fills it. Hence it is no
    module itself, and the device is chosen here and not by `Module.to`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: tuple[int, ...],
        *,
        bias: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._sizes = list(out_features)
        self._weight = torch.empty(sum(out_features), in_features, dtype=dtype, device=device)
        self._bias = torch.empty(sum(out_features), dtype=dtype, device=device) if bias else None
        self.parts = [
            Linear(in_features, size, bias=bias, dtype=dtype, device=torch.device("meta"))
            for size in out_features
        ]
        for part, weight in zip(
            self.parts, self._weight.split_with_sizes(self._sizes), strict=True
        ):
            part.weight = nn.Parameter(weight, requires_grad=False)
        if self._bias is not None:
            for part, view in zip(
                self.parts, self._bias.split_with_sizes(self._sizes), strict=True
            ):
                part.bias = nn.Parameter(view, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """All matrices, one above the other: [sum of sizes, in_features]."""
        return self._weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[sum of sizes]."""
        return self._bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """[num_tokens, in_features] to the outputs side by side: [num_tokens, sum of sizes]."""
        return functional.linear(inputs, self._weight, self._bias)

"""RMS normalisation."""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.layers.linear import parameter


class RMSNorm(nn.Module):
    """Divides by the root mean square, then scales per channel.

    The order matters below float32: normalise in float32, cast, and only then multiply by the
    weight, as the models were trained.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(
        self, hidden_size: int, eps: float, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = parameter(hidden_size, dtype=dtype, device=device)
        self._eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size], type kept."""
        normalised = functional.rms_norm(hidden.float(), self.weight.shape, eps=self._eps)
        return normalised.to(hidden.dtype) * self.weight

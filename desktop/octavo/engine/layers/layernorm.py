"""RMS normalisation."""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.layers.linear import parameter


class RMSNorm(nn.Module):
    """Divides by the root mean square, then scales per channel.

    The order matters below float32, and must be that of the training: most models normalise in
    float32, cast, and only then multiply by the weight; Gemma and OLMo 2 cast last.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float,
        *,
        offset: float = 0.0,
        in_float32: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Args:
        offset: added to the weight.
        in_float32: multiply by the weight before the cast back.
        """
        super().__init__()
        self.weight = parameter(hidden_size, dtype=dtype, device=device)
        self._eps = eps
        self._offset = offset
        self._in_float32 = in_float32

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size], type kept."""
        normalised = functional.rms_norm(hidden.float(), self.weight.shape, eps=self._eps)
        if self._in_float32:
            return (normalised * (self.weight.float() + self._offset)).to(hidden.dtype)
        return normalised.to(hidden.dtype) * self.weight

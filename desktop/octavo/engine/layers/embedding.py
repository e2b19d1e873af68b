"""The token embedding, which many models also use as their output projection."""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.layers.linear import parameter


class Embedding(nn.Module):
    """One row per token id."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        scale: float = 1.0,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.weight = parameter(vocab_size, hidden_size, dtype=dtype, device=device)
        # Rounded to the type of the weights before it multiplies, as Gemma was trained.
        self._scale = None if scale == 1.0 else torch.tensor(scale, dtype=dtype).item()

    @property
    def scale(self) -> float | None:
        """Factor on the rows; None: none."""
        return self._scale

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens], int64, to [num_tokens, hidden_size]."""
        rows = functional.embedding(token_ids, self.weight)
        return rows if self._scale is None else rows * self._scale

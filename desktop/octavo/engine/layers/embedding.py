"""The token embedding, which many models also use as their output projection."""

import torch
from torch import nn
from torch.nn import functional

from octavo.engine.layers.linear import linear, matrix_parameter
from octavo.engine.quantization.packed import PackedWeight


class Embedding(nn.Module):
    """One row per token id."""

    packed: PackedWeight | None
    """The matrix, if it is packed; then `weight` says its shape and nothing else."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        scale: float = 1.0,
        dtype: torch.dtype,
        device: torch.device,
        keeps_packed: bool = False,
    ) -> None:
        super().__init__()
        self.device = device
        self._dtype = dtype
        self.weight = matrix_parameter(
            vocab_size, hidden_size, dtype=dtype, device=device, keeps_packed=keeps_packed
        )
        self.packed = None
        # Rounded to the type of the weights before it multiplies, as Gemma was trained.
        self._scale = None if scale == 1.0 else torch.tensor(scale, dtype=dtype).item()

    @property
    def scale(self) -> float | None:
        """Factor on the rows; None: none."""
        return self._scale

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens], int64, to [num_tokens, hidden_size]."""
        if self.packed is None:
            rows = functional.embedding(token_ids, self.weight)
        else:
            rows = self.packed.select(token_ids, self._dtype)
        return rows if self._scale is None else rows * self._scale

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, vocab_size], for models that tie their output."""
        return linear(hidden, self.weight if self.packed is None else self.packed)

    def put(self, _name: str, _index: int, matrix: torch.Tensor | PackedWeight) -> None:
        """As `KeepsPacked` says."""
        if isinstance(matrix, PackedWeight):
            self.packed = matrix
        else:
            self.weight = nn.Parameter(matrix, requires_grad=False)

    def matrix(self, _name: str, _index: int) -> torch.Tensor | PackedWeight:
        """As `KeepsPacked` says."""
        return self.weight if self.packed is None else self.packed

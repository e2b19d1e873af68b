"""Memory that a decoder's programs work in: activations, and what its experts put out."""

import dataclasses
from collections.abc import Sequence

import torch

from octavo.engine.cpu_weights import Matrix
from octavo.engine.kernels.cpu import moe
from octavo.engine.kernels.cpu.program import Words, byte_buffer, float_buffer
from octavo.engine.kernels.cpu.quantize_activations import quantized_row_bytes
from octavo.engine.model_config import ModelConfig


class Inputs:
    """Activations that matrices multiply: as float32, as 8-bit integers, or both."""

    def __init__(self, num_rows: int, size: int, *, floats: torch.Tensor | None = None) -> None:
        self.size = size
        self.floats = float_buffer(num_rows, size) if floats is None else floats
        self.quantized_bytes = quantized_row_bytes(size)
        self.quantized = byte_buffer(num_rows * self.quantized_bytes)

    def floats_for(self, readers: Sequence[Matrix]) -> torch.Tensor | None:
        """The float32 if anybody reads them."""
        is_read = any(not matrix.packed.form.is_quantized for matrix in readers)
        return self.floats if is_read else None

    def quantized_for(self, readers: Sequence[Matrix]) -> torch.Tensor | None:
        """The 8-bit integers if anybody reads them."""
        is_read = any(matrix.packed.form.is_quantized for matrix in readers)
        return self.quantized if is_read else None


@dataclasses.dataclass(frozen=True, slots=True)
class FeedForward:
    """Buffers of a gated feed-forward part."""

    gates: torch.Tensor
    """[num_rows, 2 * size], float32."""
    gated: Inputs
    size: int

    @classmethod
    def of_size(cls, num_rows: int, size: int) -> "FeedForward":
        return cls(float_buffer(num_rows, 2 * size), Inputs(num_rows, size), size)


class Experts:
    """Buffers of feed-forward parts of many experts, one layer after the other."""

    def __init__(self, config: ModelConfig, max_tokens: int) -> None:
        assert config.moe is not None
        experts = config.moe
        self.num_experts, self.num_picks = experts.num_experts, experts.num_experts_per_token
        self.renormalizes = experts.renormalizes
        max_picks = max_tokens * self.num_picks
        self.routed = float_buffer(max_tokens, self.num_experts)
        self._picked = torch.zeros(max_picks, dtype=torch.int64)
        self._shares = float_buffer(max_picks)
        self._starts = torch.zeros(self.num_experts + 1, dtype=torch.int64)
        self._places = torch.zeros(max_picks, dtype=torch.int64)
        self.inputs = Inputs(max_picks, config.hidden_size)
        self.feed = FeedForward.of_size(max_picks, experts.intermediate_size)
        self.outputs = float_buffer(max_picks, config.hidden_size)
        self.shared = None
        if experts.shared_intermediate_size:
            self.shared = FeedForward.of_size(max_tokens, experts.shared_intermediate_size)
        self.shared_output = float_buffer(max_tokens, config.hidden_size)
        self.shared_logits = float_buffer(max_tokens, 1)

    def words(self) -> Words:
        """What all operations on experts read."""
        return {
            moe.NUM_EXPERTS: self.num_experts,
            moe.NUM_PICKS: self.num_picks,
            moe.PICKED: self._picked,
            moe.SHARES: self._shares,
            moe.STARTS: self._starts,
            moe.PLACES: self._places,
        }

"""Rotary position embedding with its scalings, in float32 and the half-split layout."""

import math

import torch
from torch import nn

from octavo.engine.layers.linear import parameter
from octavo.engine.model_config import RopeConfig


class RotaryEmbedding(nn.Module):
    """Turns positions into the rotations of one step, which all layers share.

    The angles are computed anew for each step: a table for long contexts would cost more memory
    than the sines cost time.

    Source: Su et al. 2021, arXiv:2104.09864.
    """

    freq_factors: nn.Parameter | None
    short_factors: nn.Parameter | None
    long_factors: nn.Parameter | None

    def __init__(self, rope: RopeConfig, *, max_model_len: int, device: torch.device) -> None:
        """Args:
        max_model_len: decides between longrope's lists, once: cached keys must not change theirs.
        """
        super().__init__()
        self._inverse_frequencies = _scaled_frequencies(rope, max_model_len).to(device)
        self.magnitude = rope.attn_factor
        """On cosines and sines."""
        self._is_long = _is_long(rope, max_model_len)

        def divisors() -> nn.Parameter:
            return parameter(rope.rotary_dim // 2, dtype=torch.float32, device=device)

        # Divisors of the frequencies that some checkpoints carry as tensors.
        self.freq_factors = divisors() if rope.scaling == "factors" else None
        has_lists = rope.scaling == "longrope" and not rope.short_divisors
        self.short_factors = divisors() if has_lists else None
        self.long_factors = divisors() if has_lists else None

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for [num_tokens] positions: each [num_tokens, 1, rotary_dim / 2]."""
        angles = (positions.float().unsqueeze(1) * self.frequencies()).unsqueeze(1)
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude

    def frequencies(self) -> torch.Tensor:
        """Radians for each position: [rotary_dim / 2], float32."""
        frequencies = self._inverse_frequencies
        longrope_factors = self.long_factors if self._is_long else self.short_factors
        for factors in (self.freq_factors, longrope_factors):
            if factors is not None:
                frequencies = frequencies / factors
        return frequencies


def rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotates the first rotary_dim channels of each head; channel i pairs with i + rotary_dim / 2.

    Args:
        heads: [num_tokens, heads, head_dim]; queries and keys may stand side by side.
        cosines: [num_tokens, 1, rotary_dim / 2], float32.
        sines: as cosines.

    Returns:
        As heads.
    """
    half = cosines.shape[-1]
    first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
    rotated = torch.empty_like(heads)
    rotated[..., :half] = first * cosines - second * sines
    rotated[..., half : 2 * half] = second * cosines + first * sines
    if 2 * half < heads.shape[-1]:
        rotated[..., 2 * half :] = heads[..., 2 * half :]
    return rotated


def _scaled_frequencies(rope: RopeConfig, max_model_len: int) -> torch.Tensor:
    """Inverse frequencies: [rotary_dim / 2], float32."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case "none" | "factors":
            return frequencies
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            return _llama3_frequencies(frequencies, rope)
        case "yarn":
            return _yarn_frequencies(frequencies, rope)
        case "longrope":
            is_long = _is_long(rope, max_model_len)
            divisors = rope.long_divisors if is_long else rope.short_divisors
            return frequencies / torch.tensor(divisors or 1.0, dtype=torch.float32)
        case _:
            raise AssertionError(f"rope scaling {rope.scaling!r} was let through")


def _is_long(rope: RopeConfig, max_model_len: int) -> bool:
    return rope.original_max_position is not None and max_model_len > rope.original_max_position


def _llama3_frequencies(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Slow rotations are stretched by the factor, fast ones kept, those between interpolated.

    Source: Llama 3.1's reference code, `apply_scaling`.
    """
    assert rope.original_max_position is not None
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def _yarn_frequencies(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """As above, with the ramp over channels instead of frequencies.

    Source: Peng et al. 2023, arXiv:2309.00071, section 3.2.
    """
    assert rope.original_max_position is not None

    def channel_with(num_turns: float, original_max_position: int) -> float:
        wavelength = original_max_position / (num_turns * 2 * math.pi)
        return rope.rotary_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low = channel_with(rope.beta_fast, rope.original_max_position)
    high = channel_with(rope.beta_slow, rope.original_max_position)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    channels = torch.arange(rope.rotary_dim // 2, dtype=torch.float32)
    ramp = ((channels - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)

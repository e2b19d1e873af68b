"""How keys and values are written to a cache of the model's type or another, and read back."""

from typing import Protocol

import torch

_LARGEST_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max
_LEAST_SCALE = 2.0**-24
"""The least number above zero that float16 knows."""


class StoredHeads(Protocol):
    """One layer's keys or values, those of the step at hand written."""

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """What lies in some slots: [num_slots, num_kv_heads, head_dim], of the model's type."""

    def read_new(self, rows: slice) -> torch.Tensor:
        """What lies in the slots of some tokens of the step."""


def store_heads(
    stored: torch.Tensor, scales: torch.Tensor | None, slots: torch.Tensor, heads: torch.Tensor
) -> StoredHeads:
    """Writes a step's keys or values.

    Args:
        stored: a layer's blocks, [num_blocks, block_size, num_kv_heads, head_dim].
        scales: [num_blocks, block_size, num_kv_heads]; None: the type needs none.
        slots: [num_tokens], int64.
        heads: [num_tokens, num_kv_heads, head_dim].
    """
    if stored.dtype == heads.dtype:
        return _SameType(stored, slots, heads)
    return _Converted(stored, scales, slots, heads)


class _SameType:
    __slots__ = ("_flat", "_heads")

    def __init__(self, stored: torch.Tensor, slots: torch.Tensor, heads: torch.Tensor) -> None:
        self._heads = heads
        self._flat = stored.view(-1, *heads.shape[1:])
        self._flat.index_copy_(0, slots, heads)

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        return self._flat.index_select(0, slots)

    def read_new(self, rows: slice) -> torch.Tensor:
        return self._heads[rows]


class _Converted:
    """A token's neighbours see it as it was stored, in the same step, too.

    Otherwise what a prompt gives would depend on how it was cut into steps.
    """

    def __init__(
        self,
        stored: torch.Tensor,
        scales: torch.Tensor | None,
        slots: torch.Tensor,
        heads: torch.Tensor,
    ) -> None:
        self._slots = slots
        self._dtype = heads.dtype
        self._stored_dtype = stored.dtype
        # torch indexes no 8-bit floats: their bytes are moved instead.
        self._is_float8 = stored.dtype is torch.float8_e4m3fn
        flat = stored.view(-1, *heads.shape[1:])
        self._flat = flat.view(torch.uint8) if self._is_float8 else flat
        self._scales = None if scales is None else scales.view(-1, heads.shape[1])
        self._flat.index_copy_(0, slots, self._convert(heads))

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        gathered = self._flat.index_select(0, slots)
        if self._is_float8:
            gathered = gathered.view(self._stored_dtype)
        heads = gathered.to(self._dtype)
        if self._scales is not None:
            heads *= self._scales.index_select(0, slots).to(self._dtype).unsqueeze(-1)
        return heads

    def read_new(self, rows: slice) -> torch.Tensor:
        return self.read(self._slots[rows])

    def _convert(self, heads: torch.Tensor) -> torch.Tensor:
        if self._scales is not None:
            heads = heads.float()
            scales = (heads.abs().amax(-1) / 127).clamp_(min=_LEAST_SCALE).half()
            self._scales.index_copy_(0, self._slots, scales)
            # Divided by the scale as it is stored, so that its own rounding costs nothing.
            heads = (heads / scales.float().unsqueeze(-1)).round_().clamp_(-127, 127)
        elif self._is_float8:
            # What is too large would become NaN.
            heads = heads.clamp(-_LARGEST_FLOAT8, _LARGEST_FLOAT8)
        converted = heads.to(self._stored_dtype)
        return converted.view(torch.uint8) if self._is_float8 else converted

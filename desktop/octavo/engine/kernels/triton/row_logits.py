"""Rows of logits as the kernels that choose tokens read them: scaled, capped, masked, in parts."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.engine.kernels.triton.decode_attention import cap_scores

PART_MULTIPLE = 1024
_MAX_PARTS = 128
MASK_BITS = 32


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens may come, for rows that share masks."""

    words: torch.Tensor
    """[num_masks, ceil(vocab_size / 32)], int32: bit i of word w is token 32 w + i."""
    rows: torch.Tensor
    """[num_rows], int32: each row's mask."""


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Logits, and what is done to them before a token is chosen."""

    logits: torch.Tensor
    """[num_rows, vocab_size], as the projection left them."""
    scale: float = 1.0
    """Factor on the logits."""
    softcap: float = 0.0
    """They are squeezed between this and its negative; 0: they are not."""
    masks: TokenMasks | None = None

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[1]

    @property
    def part_size(self) -> int:
        """Tokens that one program looks at."""
        parts = triton.cdiv(triton.cdiv(self.vocab_size, _MAX_PARTS), PART_MULTIPLE)
        return int(parts) * PART_MULTIPLE

    @property
    def num_parts(self) -> int:
        return int(triton.cdiv(self.vocab_size, self.part_size))

    @property
    def is_masked(self) -> bool:
        return self.masks is not None

    @property
    def words(self) -> torch.Tensor:
        """Of the masks; without masks, any tensor."""
        return self.logits if self.masks is None else self.masks.words

    @property
    def mask_rows(self) -> torch.Tensor:
        """Each row's mask; without masks, any tensor."""
        return self.logits if self.masks is None else self.masks.rows

    @property
    def mask_stride(self) -> int:
        return 0 if self.masks is None else self.masks.words.stride(0)


@triton.jit
def load_logits(
    place,
    words,
    token_ids,
    exists,
    scale,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Logits of a row, float32; -inf where a token may not come, inf for what is not a number."""
    values = tl.load(place + token_ids, mask=exists, other=0.0).to(tl.float32) * scale
    if SOFTCAP > 0.0:
        values = cap_scores(values, SOFTCAP)
    # NaN would lose every comparison, so it is made to win.
    values = tl.where(values == values, values, float("inf"))
    if MASKED:
        word = tl.load(words + token_ids // 32, mask=exists, other=0)
        exists = exists & (((word >> (token_ids % 32)) & 1) != 0)
    return tl.where(exists, values, -float("inf"))

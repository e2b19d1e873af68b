"""MXFP4 as gpt-oss stores it in folders; plain torch, the definition of the format."""

from dataclasses import dataclass

import torch
from torch import Tensor

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127
NAN_SCALE = 255


@dataclass(frozen=True, slots=True)
class MXFP4Rows:
    """Rows of a matrix in blocks of 32 values that share a power of two.

    Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 and 5.4.1. Of two
    values in a byte the lower bits are the first, unlike in GGUF.
    """

    blocks: Tensor
    """[rows, blocks, 16], uint8."""
    scales: Tensor
    """[rows, blocks], uint8; 255 is no number."""

    def unpack(self) -> Tensor:
        """[rows, 32 * blocks], float32."""
        signed = torch.tensor((*_VALUES, *(-value for value in _VALUES)), dtype=torch.float32)
        halves = torch.stack((self.blocks & 15, self.blocks >> 4), dim=-1)
        values = signed.to(self.blocks.device)[halves.flatten(2).int()]
        exponents = (self.scales.int() - _BIAS).unsqueeze(2)
        return torch.ldexp(values, exponents).flatten(1)

    def ggml_blocks(self) -> Tensor:
        """[rows, blocks, 17], uint8: the same as GGUF stores it, scale first.

        There a byte holds value j in its lower bits, and value j + 16 in its higher ones.
        """
        halves = torch.stack((self.blocks & 15, self.blocks >> 4), dim=-1).flatten(-2)
        packed = halves[..., :16] | halves[..., 16:] << 4
        return torch.cat([self.scales.unsqueeze(-1), packed], dim=-1)

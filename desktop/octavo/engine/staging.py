"""Small arrays of a step to the device, in one copy that nobody waits for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNED_BYTES = 16
"""Kernels read faster where arrays begin at multiples of this."""


def stage(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Copies arrays of any integer types to a device; each keeps its type and shape."""
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    offsets = []
    num_bytes = 0
    for array in arrays:
        offsets.append(num_bytes)
        num_bytes += -(-array.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
    # torch keeps the pinned memory until the copy has run, and then uses it again.
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    packed = host.numpy()
    for offset, array in zip(offsets, arrays, strict=True):
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        packed[offset : offset + array.nbytes] = flat
    staged = host.to(device, non_blocking=True)
    return [
        staged[offset : offset + array.nbytes]
        .view(torch.from_numpy(array[:0].reshape(-1)).dtype)
        .view(array.shape)
        for offset, array in zip(offsets, arrays, strict=True)
    ]

"""Whether Triton can build and run a kernel here; asked once, before anything relies on it."""

import subprocess

import torch
import triton
import triton.language as tl
from triton.errors import TritonError


@triton.jit
def _add_one(values, BLOCK: tl.constexpr):
    place = values + tl.arange(0, BLOCK)
    tl.store(place, tl.load(place) + 1)


def probe_failure(device: torch.device) -> str:
    """What Triton says when it is to build and run a kernel; empty if it did.

    Where there is no compiler, header, driver or permission, each layer says so in its own way.
    """
    values = torch.zeros(16, dtype=torch.int32, device=device)
    try:
        _add_one[(1,)](values, BLOCK=16)
    except (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        subprocess.SubprocessError,
        TritonError,
    ) as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return "" if values.tolist() == [1] * 16 else "a test kernel gave wrong numbers"

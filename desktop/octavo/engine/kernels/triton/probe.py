"""Whether Triton can build and run a kernel here; asked once, before anything relies on it."""

import torch
import triton
import triton.language as tl


@triton.jit
def _add_one(values, BLOCK: tl.constexpr):
    place = values + tl.arange(0, BLOCK)
    tl.store(place, tl.load(place) + 1)


def run_probe(device: torch.device) -> None:
    """Builds and runs a kernel.

    Raises:
        Exception: whatever Triton says where there is no compiler, header, driver or permission.
        ArithmeticError: the kernel ran and its result is wrong.
    """
    values = torch.zeros(16, dtype=torch.int32, device=device)
    _add_one[(1,)](values, BLOCK=16)
    if values.tolist() != [1] * 16:
        raise ArithmeticError("a test kernel gave wrong numbers")

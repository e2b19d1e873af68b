"""What all kernels share: how one follows another on the device.

And a rule: a kernel names in `do_not_specialize` what a step decides, as its number of tokens or
its tables. Triton would compile it anew for numbers that 16 divides, and those that it does not, in
the middle of somebody's answer.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def is_hopper_or_later(device: torch.device) -> bool:
    """Whether the card has compute capability 9.0 or more."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def overlaps_launches(device: torch.device) -> bool:
    """Whether the card can start a kernel while the one before it drains."""
    return is_hopper_or_later(device)


def launch_options(overlap: bool) -> dict[str, bool]:
    """Options of a launch that may overlap with the kernel before it."""
    return {"launch_pdl": True} if overlap else {}


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """Waits for the kernel before; what stands above the call may run while that one drains.

    Lets the kernel after this one start at once: it waits here in turn, and for the end of this
    one, so nothing is read before it is written. Above the call only weights may be read.
    """
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()

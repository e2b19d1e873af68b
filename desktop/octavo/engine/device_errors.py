"""What CUDA's errors mean: a card's memory ran out, or the card is lost to this process."""

import contextlib
import gc
import re
import traceback
from collections.abc import Iterator

import torch

from octavo.errors import DeviceLostError, DeviceMemoryError, OctavoError
from octavo.units import format_bytes

_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory")
_LOST = re.compile(r"CUDA error|cuDNN error|CUBLAS_STATUS|CUDNN_STATUS|Triton Error \[CUDA\]")
_WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Translates what torch, Triton and CUDA's libraries raise while a device computes.

    Raises:
        DeviceMemoryError: memory ran out; what the failed step held is free again.
        DeviceLostError: the device failed; nothing more can be computed on it.
    """
    try:
        yield
    except RuntimeError as error:
        translated = _translate(error)
        if translated is None:
            raise
        # Whoever keeps the error must not keep the tensors of the frames it went through.
        traceback.clear_frames(error.__traceback__)
        raise translated from error


def free_device_memory(*, with_workspaces: bool = False) -> None:
    """Gives back to the driver and the system what torch keeps for later.

    Args:
        with_workspaces: also what the matrix libraries work in. Captured steps know where that
            is, so there may be none any more.
    """
    if not _uses_cuda():
        return
    gc.collect()
    # torch has no public names for these two, and its build for the CPU has not even them.
    if with_workspaces:
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
    getattr(torch._C, "_host_emptyCache", lambda: None)()
    torch.cuda.empty_cache()


def is_lost(error: RuntimeError) -> bool:
    """Whether an error of torch says that the device has failed, and not that memory ran out."""
    return not _is_of_memory(error) and (
        isinstance(error, torch.AcceleratorError) or _LOST.search(str(error)) is not None
    )


def _is_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _MEMORY.search(str(error)) is not None


def _translate(error: RuntimeError) -> OctavoError | None:
    text = str(error)
    if _is_of_memory(error):
        return _memory_error(text)
    if is_lost(error):
        return DeviceLostError(
            f"{_device_name()} failed: {_first_line(text)}.",
            hint="Restart the engine. If the card fails again at once, close Octavo and start it"
            " anew: after some failures CUDA locks a program out of its card.",
        )
    return None


def _memory_error(text: str) -> DeviceMemoryError:
    wanted = _WANTED.search(text)
    needed_bytes = int(float(wanted[1]) * _UNITS[wanted[2]]) if wanted else None
    free_bytes = _free_bytes()
    needed = "" if needed_bytes is None else f" {format_bytes(needed_bytes)} more were needed"
    free = "" if free_bytes is None else f" {format_bytes(free_bytes)} are free"
    numbers = " and".join(filter(None, (needed, free)))
    return DeviceMemoryError(
        f"The memory of {_device_name()} ran out{':' if numbers else ''}{numbers}.",
        hint="Shorten the prompt or send fewer at once, close other programs that use the card, or"
        " load the model with a shorter context, which leaves more room.",
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
    )


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "it gave no reason"


def _device_name() -> str:
    if not _uses_cuda():
        return "this machine"
    with contextlib.suppress(RuntimeError):
        return torch.cuda.get_device_name()
    return "the GPU"


def _free_bytes() -> int | None:
    if not _uses_cuda():
        return None
    with contextlib.suppress(RuntimeError):
        return torch.cuda.mem_get_info()[0]
    return None

"""Gives freed memory back to the system, which the C library would keep for the next allocation."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Only glibc has to be asked; elsewhere this does nothing. Takes some milliseconds."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

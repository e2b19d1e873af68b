"""Kernels compiled by many threads before they are launched: one by one takes most of a minute."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

logger = logging.getLogger(__name__)

_MAX_THREADS = 8
_LOCK = threading.Lock()
"""Held while launches of one thread do not launch."""


class _Compilers(ThreadPoolExecutor):
    """Threads that compile kernels and load them onto a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(
            min(_MAX_THREADS, os.cpu_count() or 1),
            thread_name_prefix="compile-kernels",
            initializer=torch.cuda.set_device,
            initargs=(device,),
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def compile_and_load() -> Any:
            kernel = fn(*args, **kwargs)
            _ = kernel.run  # Asking for what launches it builds that, and loads the kernel.
            return kernel

        return super().submit(compile_and_load)


@contextmanager
def compiling_only(device: torch.device) -> Iterator[None]:
    """This thread's launches compile their kernels and do nothing else; ends when all are compiled.

    What kernels would have written stays as it is. A kernel that is not ready when this ends is
    compiled when it is launched, and fails there if it has to.

    Args:
        device: a CUDA device, on which the kernels are to run.
    """
    launch, owner = JITFunction.run, threading.get_ident()

    def compile_or_launch(self: Any, *args: Any, grid: Any, warmup: bool, **names: Any) -> Any:
        compiles = warmup or threading.get_ident() == owner
        return launch(self, *args, grid=grid, warmup=compiles, **names)

    with _LOCK:
        try:
            with _Compilers(device) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
                JITFunction.run = compile_or_launch
                try:
                    yield
                finally:
                    JITFunction.run = launch
        except RuntimeError as error:
            logger.warning("Kernels could not be compiled ahead: %s", error)

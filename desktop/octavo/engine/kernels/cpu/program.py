"""`Program`: a list of operations for `step_loop`, written record by record."""

import mmap
from typing import Any

import numpy as np
import torch

from octavo.engine.kernels.cpu.step_loop import EXTENT, FACTOR, GRAIN, KERNEL, OPERATION_WORDS
from octavo.engine.kernels.cpu.worker_threads import WorkerThreads, aligned_bytes

Word = int | float | torch.Tensor | None
"""What a kernel finds in a word: a number, a float32, an address, or 0 for what there is not."""
Words = dict[int, Word]
"""By their places in the operation."""


def float_buffer(*shape: int) -> torch.Tensor:
    """Float32 on a cache line; zero, and resident only where it was touched."""
    memory = aligned_bytes(4 * int(np.prod(shape)))
    return torch.from_numpy(memory).view(torch.float32).view(shape)


def byte_buffer(num_bytes: int) -> torch.Tensor:
    """As `float_buffer`, of bytes."""
    return torch.from_numpy(aligned_bytes(num_bytes))


def paged_buffer(num_bytes: int) -> torch.Tensor:
    """As `byte_buffer`, for what is used here and there: resident page by page.

    NumPy asks for huge pages, of which the first token in a KV cache would touch one or more for
    each layer: 120 MiB in one of 30 layers.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return byte_buffer(num_bytes)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class Program:
    """Operations in the order in which they run, and the memory that they point at."""

    def __init__(self) -> None:
        self._operations: list[np.ndarray[Any, Any]] = []
        self._kept: list[Any] = []
        self._table: np.ndarray[Any, Any] | None = None
        self._address = 0

    def __len__(self) -> int:
        return len(self._operations)

    def add(
        self,
        kernel: Any,
        words: Words,
        *,
        extent: int,
        factor: int = 1,
        grain: int = 1,
    ) -> None:
        """Appends an operation.

        Args:
            kernel: a `numba.cfunc` of `step_loop.KERNEL_SIGNATURE`.
            words: what the kernel reads, by the names that its module gives the places.
            extent: the word of the step that says how much there is to do.
            factor: by how much that is multiplied.
            grain: how much of it a thread takes at a time.
        """
        operation = np.zeros(OPERATION_WORDS, dtype=np.int64)
        operation[[KERNEL, EXTENT, FACTOR, GRAIN]] = kernel.address, extent, factor, grain
        for place, word in words.items():
            if isinstance(word, float):
                operation[place : place + 1].view(np.float32)[0] = word
            elif isinstance(word, torch.Tensor):
                operation[place] = word.data_ptr()
                self._kept.append(word)
            elif word is not None:
                operation[place] = word
        self._operations.append(operation)
        self._kept.append(kernel)
        self._table = None

    def keep(self, memory: Any) -> None:
        """Keeps what operations point at without a word of their own."""
        self._kept.append(memory)

    def start(self, threads: WorkerThreads, step: int, keeps: Any = None) -> int:
        """Lets threads begin with all operations; returns the number to wait for.

        Args:
            threads: that run it.
            step: the address of the step's words.
            keeps: what owns their memory.
        """
        if self._table is None:
            self._table = np.stack(self._operations)
            self._address = self._table.ctypes.data
        return threads.start(self._address, len(self._operations), step, (self, keeps))

    def run(self, threads: WorkerThreads, step: int) -> None:
        """Runs all operations."""
        threads.finish(self.start(threads, step))

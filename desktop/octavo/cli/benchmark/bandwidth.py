"""What memory allows: bytes that each token must read, and how many can be read in a second."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_names import EMBEDDING_TENSOR, OUTPUT_TENSOR
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.planning import why_not_on_this_machine

_BUFFER_BYTES = 256 << 20
_ROUNDS = 7

_Words: TypeAlias = npt.NDArray[np.int64]


def weight_bytes_per_token(header: CheckpointHeader) -> int:
    """Bytes of weights that one decoded token reads: all but an embedding that is not the head."""
    if isinstance(header, GGUFHeader) and OUTPUT_TENSOR in header.tensors:
        # Of such an embedding each token reads one row.
        return header.tensor_bytes - header.tensors[EMBEDDING_TENSOR].num_bytes
    return header.tensor_bytes


class ReadBandwidth:
    """Measures how fast some threads read memory together that no cache holds.

    Reads with the CPU kernels' vectors where this processor has them, else with numpy, which is up
    to a third slower. Made after the load of a model: the kernels must not be imported before.
    """

    def __init__(self, num_threads: int) -> None:
        self._parts = [
            np.ones(_BUFFER_BYTES // 8 // num_threads, dtype=np.int64) for _ in range(num_threads)
        ]
        self._read_part = _reader()
        self._threads = ThreadPoolExecutor(num_threads)
        self._read()

    def bytes_per_second(self) -> float:
        """The best of a few rounds."""
        num_bytes: int = sum(part.nbytes for part in self._parts)
        return float(num_bytes / min(self._read() for _ in range(_ROUNDS)))

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown()

    def _read(self) -> float:
        started_at = time.perf_counter()
        for reading in [self._threads.submit(self._read_part, part) for part in self._parts]:
            reading.result()
        return time.perf_counter() - started_at


def _reader() -> Callable[[_Words], object]:
    if why_not_on_this_machine():
        return np.bitwise_or.reduce
    from octavo.engine.kernels.cpu.read_memory import read_memory

    def read(part: _Words) -> None:
        read_memory(np.uint64(part.ctypes.data), part.nbytes)

    return read

"""What memory allows: bytes that each token must read, and how many can be read in a second."""

import threading
import time

import numpy as np

from octavo.checkpoint.gguf import GGUFHeader
from octavo.checkpoint.gguf_names import EMBEDDING_TENSOR, OUTPUT_TENSOR
from octavo.checkpoint.header import CheckpointHeader

_BUFFER_BYTES = 256 << 20
_ROUNDS = 5


def weight_bytes_per_token(header: CheckpointHeader) -> int:
    """Bytes of weights that one decoded token reads: all but an embedding that is not the head."""
    if isinstance(header, GGUFHeader) and OUTPUT_TENSOR in header.tensors:
        # Of such an embedding each token reads one row.
        return header.tensor_bytes - header.tensors[EMBEDDING_TENSOR].num_bytes
    return header.tensor_bytes


class ReadBandwidth:
    """Measures how fast some threads read memory together that no cache holds."""

    def __init__(self, num_threads: int) -> None:
        self._parts = [
            np.ones(_BUFFER_BYTES // 8 // num_threads, dtype=np.int64) for _ in range(num_threads)
        ]

    def bytes_per_second(self) -> float:
        """The best of a few rounds."""
        num_bytes: int = sum(part.nbytes for part in self._parts)
        return float(num_bytes / min(self._read() for _ in range(_ROUNDS)))

    def _read(self) -> float:
        threads = [
            threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in self._parts
        ]
        started_at = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started_at

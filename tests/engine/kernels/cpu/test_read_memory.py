"""Reading for measurements: every word counts once, so that no read is left out."""

import numpy as np
import pytest

from octavo.engine.kernels.cpu.read_memory import PIECE_BYTES, read_memory


@pytest.mark.parametrize("num_bytes", [PIECE_BYTES, 3 * PIECE_BYTES, 1 << 20])
def test_every_word_is_read(num_bytes: int) -> None:
    words = np.random.default_rng(0).integers(-9, 9, num_bytes // 4, dtype=np.int32)
    assert read_memory(np.uint64(words.ctypes.data), words.nbytes) == words.sum()

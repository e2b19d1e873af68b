"""Q8_0 and Q4_0 against the `gguf` package, which is bit for bit as llama.cpp."""

import gguf
import numpy as np
import pytest
import torch

from octavo.quantize.methods.ggml_blocks import to_q4_0, to_q8_0

ENCODERS = {"Q8_0": to_q8_0, "Q4_0": to_q4_0}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("spread", [1e-6, 0.02, 1.0, 300.0])
def test_bit_exact(kind: str, spread: float) -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal((512, 256)) * spread).astype(np.float32)
    values[0] = 0.0
    # Ties: numbers that lie on halves, and two largest of unlike sign.
    values[1] = np.resize(np.arange(-127, 128).astype(np.float32) / 2, 256)
    values[2, ::32], values[2, 1::32] = spread * 9, -spread * 9
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    encoded = ENCODERS[kind](torch.from_numpy(values).flatten())
    assert np.array_equal(encoded.numpy().ravel(), expected.ravel())

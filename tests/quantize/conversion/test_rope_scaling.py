"""Llama 3's scaling as divisors and back, exactly or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.checkpoint.gguf import GGMLType, read_gguf_header
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.layers.rotary_embedding import RotaryEmbedding
from octavo.engine.model_config import RopeConfig
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.quantize.conversion.rope_scaling import (
    config_rope_scaling,
    find_llama3_scaling,
    llama3_divisors,
    stored_factors,
)
from tests.support.gguf_files import RopeScaling, TinyLlama, write_gguf


def llama3(factor: float, original: int, high: float = 4.0, *, dim: int = 128) -> RopeConfig:
    return RopeConfig(
        dim,
        500000.0,
        "llama3",
        factor,
        original_max_position=original,
        low_freq_factor=1.0,
        high_freq_factor=high,
    )


@pytest.mark.parametrize(
    "scaling",
    [
        llama3(8.0, 8192),
        llama3(32.0, 8192, dim=64),
        llama3(4.0, 6000),
        llama3(16.0, 5001, 6.5),
        llama3(2.5, 100, 3.0, dim=96),
    ],
)
def test_scaling_is_found_again(scaling: RopeConfig) -> None:
    divisors = llama3_divisors(scaling)
    plain = RopeConfig(scaling.rotary_dim, scaling.theta, "factors")
    assert find_llama3_scaling(divisors, plain) == scaling


def test_divisors_are_those_of_llama_cpps_converter() -> None:
    theirs = RopeScaling("llama3", 8.0, 8192).freq_factors(500000.0, 128)
    assert llama3_divisors(llama3(8.0, 8192)) == pytest.approx(theirs.tolist(), rel=1e-6)


def test_divisors_give_the_frequencies_of_the_engine() -> None:
    device = torch.device("cpu")
    scaling, plain = llama3(8.0, 8192), RopeConfig(128, 500000.0, "factors")
    ours = RotaryEmbedding(scaling, max_model_len=2048, device=device)
    factors = RotaryEmbedding(plain, max_model_len=2048, device=device)
    assert factors.freq_factors is not None
    factors.freq_factors.data.copy_(torch.tensor(llama3_divisors(scaling)))
    positions = torch.arange(0, 2000, 37)
    for expected, found in zip(ours(positions), factors(positions), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "divisors",
    [
        [1.0, 1.5, 2.0, 9.0, 9.5, 8.0, 8.0, 8.0],
        [1.0] * 4 + [0.5] * 4,
        [8.0, 8.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    ],
)
def test_others_are_refused(tmp_path: Path, divisors: list[float]) -> None:
    tiny = TinyLlama()
    tensors = tiny.tensors()
    tensors["rope_freqs.weight"] = (GGMLType.F32, np.array(divisors, dtype=np.float32))
    path = write_gguf(tmp_path / "a.gguf", tiny.metadata(), tensors)
    header = read_gguf_header(path)
    with pytest.raises(UnsupportedModelError, match="8 divisors"):
        config_rope_scaling(read_model_config(header), header)
    assert stored_factors(header, "rope_freqs.weight") == tuple(divisors)


def test_one_divisor_a_little_off_is_refused() -> None:
    scaling = llama3(8.0, 8192)
    divisors = llama3_divisors(scaling)
    between = next(index for index, one in enumerate(divisors) if 1.0 < one < 8.0)
    divisors[between] *= 1.0001
    assert find_llama3_scaling(divisors, RopeConfig(128, 500000.0, "factors")) is None


def test_divisors_of_one_scale_nothing(tmp_path: Path) -> None:
    tiny = TinyLlama()
    tensors = tiny.tensors()
    tensors["rope_freqs.weight"] = (GGMLType.F32, np.ones(8, dtype=np.float32))
    header = read_gguf_header(write_gguf(tmp_path / "a.gguf", tiny.metadata(), tensors))
    assert config_rope_scaling(read_model_config(header), header) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_damaged_divisors(tmp_path: Path, bad: float) -> None:
    tiny = TinyLlama()
    tensors = tiny.tensors()
    tensors["rope_freqs.weight"] = (GGMLType.F32, np.array([1, 1, 1, bad] * 2, dtype=np.float32))
    header = read_gguf_header(write_gguf(tmp_path / "a.gguf", tiny.metadata(), tensors))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        stored_factors(header, "rope_freqs.weight")

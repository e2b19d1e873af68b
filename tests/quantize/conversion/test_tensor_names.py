"""Names and row orders undo each other, and agree with llama.cpp's own tables."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from octavo.checkpoint.folder import read_folder_header
from octavo.checkpoint.gguf import read_gguf_header
from octavo.checkpoint.gguf_names import FREQ_FACTORS, TENSOR_NAMES
from octavo.engine.checkpoint_parts import read_model_config
from octavo.engine.weights.gguf import GGUFWeights, iter_gguf_weights
from octavo.quantize.conversion.tensor_names import (
    gguf_tensor_names,
    permute_rows,
    permuted_parameters,
)
from tests.support.gguf_files import RopeScaling, TinyLlama, permute
from tests.support.model_folders import write_model_folder

TINY = [
    TinyLlama(),
    TinyLlama(tie_embeddings=False, attention_bias=True),
    TinyLlama(rope_scaling=RopeScaling("llama3")),
]


@pytest.mark.parametrize("tiny", TINY, ids=["tied", "biases", "llama3"])
def test_names_are_those_of_the_file(tmp_path: Path, tiny: TinyLlama) -> None:
    header = read_gguf_header(tiny.write(tmp_path / "a.gguf"))
    assert set(gguf_tensor_names(header).values()) == set(header.tensors)
    weights = GGUFWeights(header, read_model_config(header))
    assert set(gguf_tensor_names(header)) == set(weights.tensors)


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "tie_word_embeddings": True}])
def test_names_are_those_of_the_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    write_model_folder(tmp_path, **options)
    header = read_folder_header(tmp_path)
    assert set(gguf_tensor_names(header)) == set(header.tensors)


def test_folder_with_llama3_scaling_gets_the_divisors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    write_model_folder(tmp_path, rope_parameters=scaling)
    assert gguf_tensor_names(read_folder_header(tmp_path))[FREQ_FACTORS] == "rope_freqs.weight"


def test_names_agree_with_the_gguf_package(tmp_path: Path) -> None:
    header = read_gguf_header(TINY[1].write(tmp_path / "a.gguf"))
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for parameter, tensor in gguf_tensor_names(header).items():
        assert theirs.get_name(parameter, try_suffixes=(".weight", ".bias")) == tensor
        assert TENSOR_NAMES["llama"].tensor_name(parameter) == tensor
        assert TENSOR_NAMES["llama"].parameter_name(tensor) == parameter


@pytest.mark.parametrize("shape", [(32, 6), (32,)])
@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_permutation_is_that_of_llama_cpp_and_can_be_undone(
    shape: tuple[int, ...], rotary_dim: int
) -> None:
    weight = torch.arange(int(np.prod(shape)), dtype=torch.float32).view(shape)
    permuted = permute_rows(weight, 16, rotary_dim)
    if rotary_dim == 16:
        assert torch.equal(permuted, torch.from_numpy(permute(weight.numpy(), 2)))
    assert not torch.equal(permuted, weight)
    before, after = weight.view(2, 16, -1), permuted.view(2, 16, -1)
    turned = after[:, :rotary_dim]
    restored = turned.reshape(2, rotary_dim // 2, 2, -1).transpose(1, 2).reshape(turned.shape)
    assert torch.equal(restored, before[:, :rotary_dim])
    assert torch.equal(after[:, rotary_dim:], before[:, rotary_dim:])


def test_permuted_weights_come_back_through_a_file(tmp_path: Path) -> None:
    tiny = TinyLlama(attention_bias=True)
    header = read_gguf_header(tiny.write(tmp_path / "a.gguf"))
    config = read_model_config(header)
    permuted = permuted_parameters(header)
    assert len(permuted) == 2 * 2 * 2
    read = dict(iter_gguf_weights(header, config, torch.float32))
    stored = {name: array for name, (_, array) in tiny.tensors().items()}
    for parameter, tensor in gguf_tensor_names(header).items():
        weight = read[parameter]
        if parameter in permuted:
            weight = permute_rows(weight, config.head_dim, config.rope.rotary_dim)
        assert np.array_equal(weight.numpy(), stored[tensor]), parameter

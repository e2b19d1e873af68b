"""Names and row orders undo each other, and agree with llama.cpp's own tables."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoint.folder import read_folder_header
from octavo.checkpoint.gguf import GGUFHeader, read_gguf_header
from octavo.checkpoint.gguf_names import TENSOR_NAMES
from octavo.engine.checkpoint_parts import read_model_config
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.quantize.conversion.row_order import permute_rows, unpermute_rows
from octavo.quantize.conversion.weight_sources import weight_sources
from tests.support.gguf_files import RopeScaling, TinyLlama, permute
from tests.support.model_folders import write_model_folder

TINY = [
    TinyLlama(),
    TinyLlama(tie_embeddings=False, attention_bias=True),
    TinyLlama(rope_scaling=RopeScaling("llama3")),
]


@pytest.mark.parametrize("tiny", TINY, ids=["tied", "biases", "llama3"])
def test_folder_of_a_gguf_has_the_weights_it_was_made_from(tmp_path: Path, tiny: TinyLlama) -> None:
    header = read_gguf_header(tiny.write(tmp_path / "a.gguf"))
    shapes = {source.name: source.shape for source in weight_sources(header, "safetensors")}
    assert shapes == {name: weight.shape for name, weight in tiny.weights().items()}


@pytest.mark.parametrize("tiny", TINY, ids=["tied", "biases", "llama3"])
def test_same_kind_of_file_is_copied(tmp_path: Path, tiny: TinyLlama) -> None:
    header = read_gguf_header(tiny.write(tmp_path / "a.gguf"))
    for source in weight_sources(header, "gguf"):
        assert [part.tensor for part in source.parts] == [source.name]
        assert (source.row_order, source.offset, source.values) == ("kept", 0.0, ())


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
    sources = {one.name: one for one in weight_sources(read_folder_header(tmp_path), "gguf")}
    assert sources["rope_freqs.weight"].values[-1] == 8.0
    assert sources["rope_freqs.weight"].shape == (4,)


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "tie_word_embeddings": True}])
def test_names_agree_with_the_gguf_package(tmp_path: Path, options: dict[str, Any]) -> None:
    write_model_folder(tmp_path, **options)
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for source in weight_sources(read_folder_header(tmp_path), "gguf"):
        [part] = source.parts
        assert theirs.get_name(part.tensor, try_suffixes=(".weight", ".bias")) == source.name
        assert TENSOR_NAMES["llama"].tensor_name(part.tensor) == source.name
        assert TENSOR_NAMES["llama"].parameter_name(source.name) == part.tensor


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
    assert torch.equal(unpermute_rows(permuted, 16, rotary_dim), weight)
    before, after = weight.view(2, 16, -1), permuted.view(2, 16, -1)
    assert torch.equal(after[:, rotary_dim:], before[:, rotary_dim:])


def test_queries_and_keys_are_stored_for_neighbours(tmp_path: Path) -> None:
    tiny = TinyLlama(attention_bias=True)
    header = read_gguf_header(tiny.write(tmp_path / "a.gguf"))
    config = read_model_config(header)
    stored = {name: torch.from_numpy(array.copy()) for name, (_, array) in tiny.tensors().items()}
    num_reordered = 0
    for source in weight_sources(header, "safetensors"):
        [part] = source.parts
        weight = stored[part.tensor]
        if source.row_order == "from_gguf":
            num_reordered += 1
            weight = unpermute_rows(weight, config.head_dim, config.rope.rotary_dim)
        assert np.array_equal(weight.numpy(), tiny.weights()[source.name]), source.name
    assert num_reordered == 2 * 2 * 2


class TestRefusals:
    def test_gguf_that_lacks_a_weight_of_one_layer(self, tmp_path: Path) -> None:
        header = read_gguf_header(TinyLlama().write(tmp_path / "a.gguf"))
        kept = {k: t for k, t in header.tensors.items() if k != "blk.1.ffn_up.weight"}
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*incomplete"):
            weight_sources(dataclasses.replace(header, tensors=kept), "safetensors")

    def test_folder_that_lacks_its_last_norm(self, tmp_path: Path) -> None:
        self._without(tmp_path, "model.norm.weight")
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*incomplete"):
            weight_sources(read_folder_header(tmp_path), "gguf")

    def test_tensor_that_no_model_of_the_family_has(self, tmp_path: Path) -> None:
        header = read_gguf_header(TinyLlama().write(tmp_path / "a.gguf"))
        one = header.tensors["blk.1.ffn_up.weight"]
        more = dataclasses.replace(header, tensors={**header.tensors, "blk.1.ffn_why.weight": one})
        with pytest.raises(UnsupportedModelError, match="ffn_why"):
            weight_sources(more, "safetensors")

    def test_architecture_without_names(self, tmp_path: Path) -> None:
        header: GGUFHeader = read_gguf_header(TinyLlama().write(tmp_path / "a.gguf"))
        metadata = {**header.metadata, "general.architecture": "mamba"}
        with pytest.raises(UnsupportedModelError, match="'mamba'"):
            weight_sources(dataclasses.replace(header, metadata=metadata), "safetensors")

    def _without(self, folder: Path, name: str) -> None:
        write_model_folder(folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

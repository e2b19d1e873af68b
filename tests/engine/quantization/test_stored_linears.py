"""Every format of quantised linear layers against packers written from its definition."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octavo.checkpoint.quantization_config import read_weight_format
from octavo.checkpoint.safetensors import read_safetensors_header
from octavo.checkpoint.stored_weights import stored_weights
from octavo.engine.quantization.stored_linear import unpack_words
from octavo.engine.weights import quantized
from octavo.engine.weights.quantized import read_quantized_into
from tests.support.quantized_folders import KINDS, QuantizedKind, words_of

KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def read(
    folder: Path,
    kind: QuantizedKind,
    tensors: dict[str, torch.Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """What the engine makes of one layer's tensors."""
    path = folder / "model.safetensors"
    save_file({f"layer.{role}": tensor for role, tensor in tensors.items()}, path)
    weight_format = read_weight_format({"quantization_config": dict(kind.config)}, "tiny")
    [weight] = stored_weights(read_safetensors_header(path), weight_format).values()
    assert weight.parameter == "layer.weight"
    assert weight.format is not None
    out = torch.full(shape, torch.nan, dtype=dtype)
    read_quantized_into(weight, weight.format, out)
    return out


@KIND
@pytest.mark.parametrize("shape", [(64, 96), (96, 32)])
def test_layers_are_unpacked_to_the_last_bit(
    tmp_path: Path, kind: QuantizedKind, shape: tuple[int, int]
) -> None:
    tensors, weight = kind.packed(*shape, seed=7)
    assert torch.equal(read(tmp_path, kind, tensors, shape), weight)


@KIND
def test_parts_change_nothing(
    tmp_path: Path, kind: QuantizedKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "PART_ELEMENTS", 700)
    tensors, weight = kind.packed(160, 96)
    unpacked = read(tmp_path, kind, tensors, (160, 96), torch.bfloat16)
    assert torch.equal(unpacked, weight.bfloat16())


@pytest.mark.parametrize("name", ["ct int4 channel", "ct int4 channel zero points"])
def test_rows_and_columns_need_not_fill_words(tmp_path: Path, name: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    tensors, weight = kind.packed(13, 45)
    assert torch.equal(read(tmp_path, kind, tensors, (13, 45)), weight)


@pytest.mark.parametrize("name", ["ct int4 group", "awq", "fp8 blocks"])
def test_last_group_may_be_short(tmp_path: Path, name: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    tensors, weight = kind.packed(56, 80)
    assert torch.equal(read(tmp_path, kind, tensors, (56, 80)), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_hold_values_lowest_bits_first(bits: int) -> None:
    values = torch.randint(0, 1 << bits, (5, 64))
    words = words_of(values.numpy(), bits)
    assert torch.equal(unpack_words(words, bits, 1), values.int())
    assert torch.equal(unpack_words(words.T.contiguous(), bits, 0), values.T.int())


def test_words_by_hand() -> None:
    [word] = unpack_words(torch.tensor([[0x76543210 | -(1 << 31)]], dtype=torch.int32), 4, 1)
    assert word.tolist() == [0, 1, 2, 3, 4, 5, 6, 15]
    three = torch.tensor([[-1, 0, 0]], dtype=torch.int32)
    assert unpack_words(three, 3, 1)[0, :12].tolist() == [7] * 10 + [3, 0]

import gguf
import numpy as np
import pytest
import torch

from octavo.checkpoint.gguf import BLOCK_LAYOUT, GGMLType
from octavo.engine.model_config import SUPPORTED_TYPES
from octavo.engine.quantization import gguf as quantization
from octavo.engine.quantization.gguf import UNPACKERS, dequantize, dequantize_into
from octavo.errors import UnsupportedModelError
from tests.support.gguf_files import random_blocks

PLAIN_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
BLOCK_TYPES = sorted(SUPPORTED_TYPES.difference(PLAIN_TYPES))
REFERENCED_TYPES = [kind for kind in BLOCK_TYPES if kind is not GGMLType.Q1_0]
"""The gguf package names Q1_0, but does not unpack it."""


def reference(raw: torch.Tensor, ggml_type: GGMLType) -> torch.Tensor:
    """What the gguf package makes of the bytes, as [num_elements] float32."""
    kind = gguf.GGMLQuantizationType(int(ggml_type))
    rows = raw.numpy().reshape(1, -1)
    return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(rows, kind)[0]))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


def test_every_supported_type_has_an_unpacker() -> None:
    assert set(UNPACKERS) == SUPPORTED_TYPES


@pytest.mark.parametrize("ggml_type", REFERENCED_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("num_blocks", [1, 7, 96])
def test_blocks_are_unpacked_to_the_last_bit(ggml_type: GGMLType, num_blocks: int) -> None:
    blocks = torch.from_numpy(random_blocks(ggml_type, num_blocks, seed=num_blocks)).flatten()
    num_elements = num_blocks * BLOCK_LAYOUT[ggml_type][0]
    unpacked = dequantize(blocks, ggml_type, (num_elements,), torch.float32)
    assert same_bits(unpacked, reference(blocks, ggml_type))


def test_signs_by_hand() -> None:
    raw = torch.tensor([0, 0x3C, 0b101, *[0] * 15], dtype=torch.uint8)
    unpacked = dequantize(raw, GGMLType.Q1_0, (128,), torch.float32)
    assert unpacked[:4].tolist() == [1.0, -1.0, 1.0, -1.0]
    assert unpacked.sum() == 2 - 126


@pytest.mark.parametrize("ggml_type", [GGMLType.MXFP4, GGMLType.NVFP4], ids=lambda kind: kind.name)
def test_every_scale_of_fp4_is_unpacked_to_the_last_bit(ggml_type: GGMLType) -> None:
    blocks = torch.from_numpy(random_blocks(ggml_type, 248))
    blocks[:, 0] = torch.arange(248)
    unpacked = dequantize(
        blocks.flatten(), ggml_type, (248 * BLOCK_LAYOUT[ggml_type][0],), torch.float32
    )
    assert same_bits(unpacked, reference(blocks.flatten(), ggml_type))


@pytest.mark.parametrize("ggml_type", PLAIN_TYPES, ids=lambda kind: kind.name)
def test_plain_types_are_unpacked_to_the_last_bit(ggml_type: GGMLType) -> None:
    values = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    kind = gguf.GGMLQuantizationType(int(ggml_type))
    stored = np.ascontiguousarray(gguf.quants.quantize(values, kind))
    raw = torch.from_numpy(stored.view(np.uint8)).flatten()
    unpacked = dequantize(raw, ggml_type, (4, 32), torch.float32)
    assert same_bits(unpacked.flatten(), reference(raw, ggml_type))


@pytest.mark.parametrize("ggml_type", sorted(SUPPORTED_TYPES), ids=lambda kind: kind.name)
def test_slabs_change_nothing(ggml_type: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    num_blocks = 11
    raw = torch.from_numpy(random_blocks(ggml_type, num_blocks)).flatten()
    if ggml_type in PLAIN_TYPES:
        raw[:] = 1
    shape = (num_blocks * BLOCK_LAYOUT[ggml_type][0],)
    whole = dequantize(raw, ggml_type, shape, torch.bfloat16)
    monkeypatch.setattr(quantization, "SLAB_ELEMENTS", 3 * BLOCK_LAYOUT[ggml_type][0])
    assert torch.equal(whole, dequantize(raw, ggml_type, shape, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_result_has_the_dtype_and_shape_asked_for(dtype: torch.dtype) -> None:
    raw = torch.from_numpy(random_blocks(GGMLType.Q4_0, 12)).flatten()
    unpacked = dequantize(raw, GGMLType.Q4_0, (3, 128), dtype)
    assert unpacked.shape == (3, 128)
    assert torch.equal(unpacked, reference(raw, GGMLType.Q4_0).view(3, 128).to(dtype))


def test_result_does_not_share_the_raw_memory() -> None:
    raw = torch.zeros(16, dtype=torch.uint8)
    unpacked = dequantize(raw, GGMLType.F32, (4,), torch.float32)
    raw.fill_(63)
    assert torch.equal(unpacked, torch.zeros(4))


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
@pytest.mark.parametrize("ggml_type", [GGMLType.Q8_0, GGMLType.F16], ids=lambda kind: kind.name)
def test_infinite_and_nan_values_are_noticed(ggml_type: GGMLType, bits: int) -> None:
    block_elements, block_bytes = BLOCK_LAYOUT[ggml_type]
    raw = torch.ones(8 * block_bytes, dtype=torch.uint8)
    out = torch.empty(8 * block_elements)
    assert dequantize_into(out, raw, ggml_type)
    raw[3 * block_bytes : 3 * block_bytes + 2] = torch.tensor([bits & 255, bits >> 8])
    assert not dequantize_into(out, raw, ggml_type)


def test_values_too_large_for_float16_are_noticed() -> None:
    raw = torch.full((4,), 1e6).view(torch.uint8)
    assert dequantize_into(torch.empty(4), raw, GGMLType.F32)
    assert not dequantize_into(torch.empty(4, dtype=torch.float16), raw, GGMLType.F32)


def test_unsupported_type_names_itself_and_an_alternative() -> None:
    with pytest.raises(UnsupportedModelError, match="Q8_K") as caught:
        dequantize(torch.zeros(292, dtype=torch.uint8), GGMLType.Q8_K, (256,), torch.float32)
    assert "Q4_K_M" in caught.value.hint

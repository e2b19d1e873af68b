"""Linear layers as the matrices of a GPU: dense, in four bits, or unpacked by their module."""

import gguf
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.triton_device import DEVICE

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.checkpoint.gguf import GGMLType  # isort: skip
from octavo.engine.kernels.triton.matrices import DenseMatrix, Int4Matrix  # isort: skip
from octavo.engine.layers.linear import FusedLinear, Linear  # isort: skip
from octavo.engine.models.gpu_matrices import ModuleMatrix, make_gpu_matrix  # isort: skip
from octavo.engine.quantization.packed import PackedBlocks  # isort: skip

BF16 = torch.bfloat16
IN_FEATURES = 256


def packed(num_rows: int, kind: GGMLType, seed: int = 0) -> PackedBlocks:
    values = np.random.default_rng(seed).normal(size=(num_rows, IN_FEATURES)).astype(np.float32)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind.value))
    return PackedBlocks(torch.from_numpy(blocks).to(DEVICE), kind)


def packed_linear(num_rows: int, kind: GGMLType) -> Linear:
    linear = Linear(IN_FEATURES, num_rows, dtype=BF16, device=DEVICE, keeps_packed=True)
    linear.packed = packed(num_rows, kind)
    return linear


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q4_1])
@torch.inference_mode()
def test_four_bit_weights_are_repacked(kind: GGMLType) -> None:
    linear = packed_linear(12, kind)
    assert linear.packed is not None
    row = torch.randn(1, IN_FEATURES).to(DEVICE, BF16)
    expected = functional.linear(row.float(), linear.packed.unpack(torch.float32))
    matrix = make_gpu_matrix(linear, BF16)
    assert isinstance(matrix, Int4Matrix)
    assert linear.packed is None, "nobody else holds the stored weights"
    torch.testing.assert_close(matrix.multiply(row).float(), expected, rtol=2e-2, atol=0.1)


@torch.inference_mode()
def test_parts_of_one_product_stand_above_each_other() -> None:
    fused = FusedLinear(IN_FEATURES, (8, 4), dtype=BF16, device=DEVICE, keeps_packed=True)
    for seed, part in enumerate(fused.parts):
        part.packed = packed(part.weight.shape[0], GGMLType.Q4_0, seed)
    row = torch.randn(1, IN_FEATURES).to(DEVICE, BF16)
    expected = fused(row)
    matrix = make_gpu_matrix(fused, BF16)
    assert isinstance(matrix, Int4Matrix)
    torch.testing.assert_close(matrix.multiply(row), expected, rtol=2e-2, atol=0.1)


@torch.inference_mode()
def test_what_no_kernel_knows_is_left_to_its_module() -> None:
    linear = packed_linear(12, GGMLType.Q8_0)
    row = torch.randn(1, IN_FEATURES).to(DEVICE, BF16)
    matrix = make_gpu_matrix(linear, BF16)
    assert isinstance(matrix, ModuleMatrix)
    assert linear.packed is not None
    torch.testing.assert_close(matrix.multiply(row), linear(row))


def test_dense_weights_are_not_copied() -> None:
    linear = Linear(IN_FEATURES, 12, dtype=BF16, device=DEVICE)
    matrix = make_gpu_matrix(linear, BF16)
    assert isinstance(matrix, DenseMatrix)
    assert matrix.num_bytes == linear.weight.nbytes

"""Layers as the matrices of a GPU: dense, packed, or unpacked by their module."""

import gguf
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.triton_device import DEVICE

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.checkpoint.gguf import GGMLType  # isort: skip
from octavo.engine.kernels.triton.matrices import DenseMatrix, StackedMatrix, TiledMatrix  # isort: skip
from octavo.engine.kernels.triton.gemv import InputNorm  # isort: skip
from octavo.engine.layers.embedding import Embedding  # isort: skip
from octavo.engine.layers.linear import FusedLinear, Linear  # isort: skip
from octavo.engine.models.gpu_matrices import (  # isort: skip
    ModuleMatrix,
    TiledEmbedding,
    make_gpu_embedding,
    make_gpu_matrix,
)
from octavo.engine.quantization.packed import PackedBlocks  # isort: skip
from tests.support import packed_weights  # isort: skip
from tests.support.gguf_files import random_blocks  # isort: skip
from tests.support.quantized_folders import KINDS  # isort: skip

F16 = torch.float16
"""What Triton's interpreter holds as numbers, too."""
IN_FEATURES = 256


def packed(num_rows: int, kind: GGMLType, seed: int = 0) -> PackedBlocks:
    values = np.random.default_rng(seed).normal(size=(num_rows, IN_FEATURES)).astype(np.float32)
    if kind is GGMLType.IQ4_NL:
        blocks = random_blocks(kind, num_rows * IN_FEATURES // 32).reshape(num_rows, -1)
    else:
        blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind.value))
    return PackedBlocks(torch.from_numpy(blocks).to(DEVICE), kind)


def packed_linear(num_rows: int, kind: GGMLType) -> Linear:
    linear = Linear(IN_FEATURES, num_rows, dtype=F16, device=DEVICE, keeps_packed=True)
    linear.packed = packed(num_rows, kind)
    return linear


@pytest.mark.parametrize("kind", [GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0])
@torch.inference_mode()
def test_packed_weights_are_rearranged(kind: GGMLType) -> None:
    linear = packed_linear(12, kind)
    assert linear.packed is not None
    row = torch.randn(1, IN_FEATURES).to(DEVICE, F16)
    expected = functional.linear(row.float(), linear.packed.unpack(torch.float32))
    matrix = make_gpu_matrix(linear, F16)
    assert isinstance(matrix, TiledMatrix)
    assert linear.packed is None, "nobody else holds the stored weights"
    torch.testing.assert_close(matrix.multiply(row).float(), expected, rtol=2e-3, atol=0.05)


@pytest.mark.parametrize("num_rows", [1, 3, 300])
@torch.inference_mode()
def test_inputs_are_brought_into_the_order_of_the_groups(num_rows: int) -> None:
    kind = next(one for one in KINDS if "4 bit" in one.name and "desc_act" in one.name)
    linear = Linear(IN_FEATURES, 16, dtype=F16, device=DEVICE, keeps_packed=True)
    linear.packed = packed_weights.packed_linear(kind, 16, IN_FEATURES)
    matrix_in_order = linear.packed.unpack(torch.float32)
    rows = torch.randn(num_rows, IN_FEATURES).to(DEVICE, F16)
    matrix = make_gpu_matrix(linear, F16)
    assert isinstance(matrix, TiledMatrix)
    product = functional.linear(rows.float(), matrix_in_order)
    torch.testing.assert_close(matrix.multiply(rows).float(), product, rtol=2e-3, atol=0.05)
    if num_rows > 1:
        return
    hidden = torch.randn(1, 16).to(DEVICE, F16)
    expected = hidden.float() + product
    matrix.multiply_add(rows, hidden, 1.0)
    torch.testing.assert_close(hidden.float(), expected, rtol=2e-3, atol=0.05)
    norm = InputNorm(torch.rand(IN_FEATURES).to(DEVICE, F16), 1e-6)
    normed = functional.rms_norm(rows, (IN_FEATURES,), norm.weight, norm.eps)
    gate, up = functional.linear(normed.float(), matrix_in_order).chunk(2, dim=-1)
    gated = matrix.multiply_gated(rows, norm, "silu")
    torch.testing.assert_close(gated.float(), functional.silu(gate) * up, rtol=5e-3, atol=0.05)


def fused_linear(*kinds: GGMLType) -> FusedLinear:
    sizes = tuple(8 - 2 * index for index in range(len(kinds)))
    fused = FusedLinear(IN_FEATURES, sizes, bias=True, dtype=F16, device=DEVICE, keeps_packed=True)
    assert fused.bias is not None
    fused.bias.normal_()
    for seed, (part, kind) in enumerate(zip(fused.parts, kinds, strict=True)):
        part.packed = packed(part.weight.shape[0], kind, seed)
    return fused


@pytest.mark.parametrize("num_rows", [1, 3, 300])
@torch.inference_mode()
def test_parts_of_one_product_stand_above_each_other(num_rows: int) -> None:
    alike = fused_linear(GGMLType.Q4_0, GGMLType.Q4_0)
    unlike = fused_linear(GGMLType.Q4_0, GGMLType.Q4_0, GGMLType.Q8_0)
    rows = torch.randn(num_rows, IN_FEATURES).to(DEVICE, F16)
    for fused, kind in ((alike, TiledMatrix), (unlike, StackedMatrix)):
        expected = fused(rows)
        matrix = make_gpu_matrix(fused, F16)
        assert isinstance(matrix, kind)
        torch.testing.assert_close(matrix.multiply(rows), expected, rtol=2e-3, atol=0.05)


@torch.inference_mode()
def test_stacks_do_what_single_matrices_do() -> None:
    fused = fused_linear(GGMLType.Q8_0, GGMLType.Q5_0)
    assert fused.bias is not None
    weight = torch.cat(
        [part.packed.unpack(torch.float32) for part in fused.parts if part.packed is not None]
    )
    bias = fused.bias.float()
    matrix = make_gpu_matrix(fused, F16)
    assert isinstance(matrix, StackedMatrix)
    row = torch.randn(1, IN_FEATURES).to(DEVICE, F16)
    gain = torch.rand(IN_FEATURES).to(DEVICE, F16)
    normed = functional.rms_norm(row.float(), gain.shape, gain.float(), 1e-5)
    product = functional.linear(normed, weight, bias)
    norm = InputNorm(gain, 1e-5)
    found = matrix.multiply_normed(row, norm).float()
    torch.testing.assert_close(found, product, rtol=5e-3, atol=0.05)
    gate, up = product.chunk(2, dim=-1)
    found = matrix.multiply_gated(row, norm, "silu").float()
    torch.testing.assert_close(found, functional.silu(gate) * up, rtol=5e-3, atol=0.3)
    hidden = torch.randn(1, matrix.out_features).to(DEVICE, F16)
    expected = hidden.float() + 0.5 * functional.linear(row.float(), weight, bias)
    matrix.multiply_add(row, hidden, 0.5)
    torch.testing.assert_close(hidden.float(), expected, rtol=5e-3, atol=0.05)


@pytest.mark.parametrize("scale", [1.0, 7.0])
@torch.inference_mode()
def test_embeddings_stay_packed(scale: float) -> None:
    module = Embedding(20, IN_FEATURES, scale=scale, dtype=F16, device=DEVICE, keeps_packed=True)
    module.put("weight", 0, packed(20, GGMLType.Q8_0))
    token_ids = torch.tensor([3, 19, 3, 0], device=DEVICE)
    expected, hidden = module(token_ids), torch.randn(1, IN_FEATURES).to(DEVICE, F16)
    logits = module.project(hidden)
    embedding, head = make_gpu_embedding(module, F16)
    assert isinstance(embedding, TiledEmbedding)
    assert isinstance(head, TiledMatrix)
    assert module.packed is None
    found = torch.empty_like(expected)
    embedding.look_up(token_ids, found)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(head.multiply(hidden), logits, rtol=2e-3, atol=0.05)


@torch.inference_mode()
def test_what_no_kernel_knows_is_left_to_its_module() -> None:
    linear = packed_linear(12, GGMLType.IQ4_NL)
    row = torch.randn(1, IN_FEATURES).to(DEVICE, F16)
    matrix = make_gpu_matrix(linear, F16)
    assert isinstance(matrix, ModuleMatrix)
    assert linear.packed is not None
    torch.testing.assert_close(matrix.multiply(row), linear(row))


def test_dense_weights_are_not_copied() -> None:
    linear = Linear(IN_FEATURES, 12, dtype=F16, device=DEVICE)
    matrix = make_gpu_matrix(linear, F16)
    assert isinstance(matrix, DenseMatrix)
    assert matrix.num_bytes == linear.weight.nbytes

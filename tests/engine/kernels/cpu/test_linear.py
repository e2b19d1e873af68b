"""The product with packed tiles against its twin in plain torch, for every form."""

import pytest
import torch

from octavo.engine.kernels.cpu import linear, quantize_activations
from octavo.engine.kernels.cpu.tiles import PackedMatrix
from tests.engine.kernels.cpu.matrices import KINDS

TOKENS = (*range(1, 18), 40)
SHAPES = [(16, 32), (7, 96), (50, 544), (130, 256)]


def twin(matrix: PackedMatrix, activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a kernel must give, and how much its sums may be off by rounding; both float64."""
    if matrix.form.is_quantized:
        quantized = quantize_activations.quantize(activations)
        activations = quantize_activations.dequantize(quantized, activations.shape[1])
    inputs, weights = activations.double(), matrix.unpack().double()
    return inputs @ weights.T, inputs.abs() @ weights.abs().T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_its_twin(kind: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(6)
    packed, weights = KINDS[kind][1](*shape, generator)
    for num_tokens in TOKENS:
        activations = torch.randn(num_tokens, packed.num_columns, generator=generator)
        expected, magnitude = twin(packed, activations)
        results = linear.multiply(packed, activations)
        assert ((results - expected).abs() <= 2e-6 * magnitude + 1e-9).all(), num_tokens
        # Against the weights themselves in float32: what 8-bit activations cost.
        plain = activations @ weights.T
        assert (results - plain).norm() <= 0.015 * plain.norm() + 1e-6, num_tokens


@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K", "8 bits, rows", "float16"])
def test_a_range_of_tiles_writes_its_rows_alone(kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    packed, _ = KINDS[kind][1](70, 256, generator)
    activations = torch.randn(5, 256, generator=generator)
    whole = linear.multiply(packed, activations)
    quantized = quantize_activations.quantize(activations)
    inputs = quantized if packed.form.is_quantized else activations
    out = torch.full((5, 100), 7.0)
    kernel = linear.compile_kernel(packed.form.name)
    for first, last in ((3, 5), (1, 3)):
        kernel.ctypes(
            packed.tiles.data_ptr(),
            packed.tiles.shape[1],
            first,
            last,
            packed.padded_columns,
            packed.num_rows,
            5,
            inputs.data_ptr(),
            inputs.stride(0) * inputs.element_size(),
            out.data_ptr(),
            out.stride(0) * 4,
            packed.group_size,
        )
    assert torch.equal(out[:, 16:70], whole[:, 16:])
    assert (out[:, :16] == 7).all()
    assert (out[:, 70:] == 7).all()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_K", "Q6_K", "8 bits, rows"])
def test_extreme_codes_and_activations_do_not_saturate(kind: str) -> None:
    generator = torch.Generator().manual_seed(8)
    packed, _ = KINDS[kind][1](16, 256, generator)
    for value in (0x00, 0x7F, 0x80, 0xFF):
        packed.plane("codes")[:] = value
        for sign in (1.0, -1.0):
            activations = torch.full((5, 256), sign)
            expected, magnitude = twin(packed, activations)
            results = linear.multiply(packed, activations)
            assert ((results - expected).abs() <= 2e-6 * magnitude + 1e-9).all()

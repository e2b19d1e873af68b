"""Four-bit kernels against the unpacked matrix in plain torch."""

import pytest
import torch
from torch.nn import functional

from tests.support.triton_device import DEVICE, HAS_CARD, cases

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.kernels.triton.gemv import ADD, GATED, InputNorm  # isort: skip
from octavo.engine.kernels.triton.int4 import Int4Weights, int4_gemv, pack_int4  # isort: skip
from octavo.engine.kernels.triton.int4_gemm import int4_gemm, unpack_int4  # isort: skip

SHAPES = cases(
    [(10, 256)],
    on_card=[(6144, 4096), (4096, 14336), (28672, 4096), (100, 2048), (576, 1536), (33, 384)],
)
GROUPS = [(128, True), (128, False), (64, False), (32, False), (32, True)]
"""Size of a group, and whether it is symmetric."""
BF16 = torch.bfloat16


def make_weights(shape: tuple[int, int], group_size: int, symmetric: bool) -> Int4Weights:
    num_rows, num_columns = shape
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
    scales = torch.rand(num_rows, num_columns // group_size, generator=generator)
    scales = (scales + 0.5) * num_columns**-0.5 / 4.6
    offsets = -8 * scales
    if not symmetric:
        offsets = offsets * (0.5 + torch.rand(offsets.shape, generator=generator))
    return pack_int4(codes.to(DEVICE), scales.half().float().to(DEVICE), offsets.to(DEVICE))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# The interpreter cuts bfloat16 off where the card rounds.
ERROR = 4e-3 if HAS_CARD else 8e-3


@pytest.mark.parametrize(("group_size", "symmetric"), GROUPS)
def test_packing_keeps_what_it_is_given(group_size: int, symmetric: bool) -> None:
    shape = (7, 256)
    codes = torch.randint(0, 16, shape, dtype=torch.uint8)
    scales = torch.rand(7, 256 // group_size) + 0.5
    offsets = -8 * scales if symmetric else -scales * torch.rand_like(scales) * 15
    weights = pack_int4(codes, scales, offsets)
    assert (weights.shifts is None) == symmetric
    expected = codes * scales.repeat_interleave(group_size, 1)
    expected += offsets.repeat_interleave(group_size, 1)
    torch.testing.assert_close(weights.unpack(), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("group_size", "symmetric"), GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_row(shape: tuple[int, int], group_size: int, symmetric: bool) -> None:
    weights = make_weights((2 * shape[0], shape[1]), group_size, symmetric)
    matrix = weights.unpack()
    row = torch.randn(1, shape[1]).to(DEVICE, BF16)
    gain = torch.randn(shape[1]).to(DEVICE, BF16)
    bias = torch.randn(2 * shape[0]).to(DEVICE, BF16)
    normed = functional.rms_norm(row.float(), gain.shape, gain.float(), 1e-5)
    expected = functional.linear(row.float(), matrix, bias.float())

    plain = torch.full((1, 2 * shape[0]), torch.nan, dtype=BF16, device=DEVICE)
    int4_gemv(row, weights, plain, bias=bias)
    assert relative_error(plain, expected) < ERROR
    hidden = torch.randn(1, 2 * shape[0]).to(DEVICE, BF16)
    before = hidden.clone()
    int4_gemv(row, weights, hidden, epilogue=ADD, residual_scale=0.5)
    expected = before.float() + 0.5 * functional.linear(row.float(), matrix)
    assert relative_error(hidden, expected) < ERROR
    norm = InputNorm(gain, 1e-5)
    expected = functional.linear(normed, matrix)
    int4_gemv(row, weights, plain, norm=norm)
    assert relative_error(plain, expected) < ERROR
    gated = torch.full((1, shape[0]), torch.nan, dtype=BF16, device=DEVICE)
    int4_gemv(row, weights, gated, norm=norm, epilogue=GATED)
    gate, up = expected.chunk(2, dim=-1)
    assert relative_error(gated, functional.silu(gate) * up) < 2 * ERROR


@pytest.mark.parametrize(("group_size", "symmetric"), GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", cases([3], on_card=[2, 16, 33, 64, 100]))
def test_a_few_rows(
    num_rows: int, shape: tuple[int, int], group_size: int, symmetric: bool
) -> None:
    if not HAS_CARD:
        pytest.skip("Triton's interpreter multiplies matrices of bfloat16 as raw bits")
    weights = make_weights(shape, group_size, symmetric)
    rows = torch.randn(num_rows, shape[1]).to(DEVICE, BF16)
    bias = torch.randn(shape[0]).to(DEVICE, BF16)
    expected = functional.linear(rows.float(), weights.unpack(), bias.float())
    assert relative_error(int4_gemm(rows, weights, bias=bias), expected) < ERROR


@pytest.mark.parametrize(("group_size", "symmetric"), GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking(shape: tuple[int, int], group_size: int, symmetric: bool) -> None:
    weights = make_weights(shape, group_size, symmetric)
    output = torch.full(shape, torch.nan, device=DEVICE)
    torch.testing.assert_close(unpack_int4(weights, output), weights.unpack(), rtol=1e-5, atol=1e-6)

"""Kernels over packed matrices against the unpacked matrix in plain torch."""

import pytest
import torch
from torch.nn import functional

from tests.support.triton_device import DEVICE, HAS_CARD, cases

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.kernels.triton.gemv import ADD, GATED  # isort: skip
from octavo.engine.kernels.triton.tiled_gemm import TiledGemmShape, tiled_gemm  # isort: skip
from octavo.engine.kernels.triton.tiled_gemv import TiledGemvShape, tiled_gemv  # isort: skip
from octavo.engine.kernels.triton.tiled_unpack import select_rows, unpack_rows  # isort: skip
from octavo.engine.kernels.triton.tiles import TiledWeights  # isort: skip
from tests.support.tiled_weights import FLOAT8_INPUTS, MAKERS, make_tiled  # isort: skip

SHAPES = cases(
    [(10, 256)],
    on_card=[(6144, 4096), (4096, 14336), (100, 2048), (34, 384)],
)
FEW = ("int4 g128", "int8 channels asymmetric", "float8 blocks", "q4_k", "q5_k", "q6_k")
"""What every path of the kernels is seen with."""
FORMS = [
    pytest.param(form, marks=[] if form in FEW else [pytest.mark.slow])
    for form in MAKERS
    if form not in FLOAT8_INPUTS
]
DTYPES = [torch.float16, torch.bfloat16] if HAS_CARD else [torch.float16]
"""The interpreter holds bfloat16 as raw bits."""


def make_weights(form: str, shape: tuple[int, int]) -> TiledWeights:
    weights = make_tiled(form, *shape, DEVICE)
    if weights is None:
        pytest.skip("rows of so many features cannot lie like this")
    return weights


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def error_of(dtype: torch.dtype) -> float:
    """Of rounding a product and the sum with it."""
    return 5.6e-3 if dtype is torch.bfloat16 else 7e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_row(shape: tuple[int, int], form: str, dtype: torch.dtype) -> None:
    weights = make_weights(form, shape)
    matrix = weights.unpack()
    row = torch.randn(1, shape[1]).to(DEVICE, dtype)
    bias = torch.randn(shape[0]).to(DEVICE, dtype)
    product = functional.linear(row.float(), matrix)

    plain = torch.full((1, shape[0]), torch.nan, dtype=dtype, device=DEVICE)
    tiled_gemv(row, weights, plain, bias=bias)
    assert relative_error(plain, product + bias.float()) < error_of(dtype)
    hidden = torch.randn(1, shape[0]).to(DEVICE, dtype)
    expected = hidden.float() + 0.5 * product
    tiled_gemv(row, weights, hidden, epilogue=ADD, residual_scale=0.5)
    assert relative_error(hidden, expected) < error_of(dtype)
    gated = torch.full((1, shape[0] // 2), torch.nan, dtype=dtype, device=DEVICE)
    tiled_gemv(row, weights, gated, epilogue=GATED, bias=bias)
    gate, up = (product + bias.float()).chunk(2, dim=-1)
    assert relative_error(gated, functional.silu(gate) * up) < 3 * error_of(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "portion",
    cases(
        [TiledGemvShape(8, 64)],
        on_card=[TiledGemvShape(2, 64), TiledGemvShape(4, 32), TiledGemvShape(8, 32)],
    ),
)
def test_one_row_in_other_portions(portion: TiledGemvShape, form: str) -> None:
    """Rows and columns that no portion divides, and more portions than are unrolled."""
    shape = 9, 768 if not HAS_CARD else 19200
    weights = make_weights(form, shape)
    row = torch.randn(1, shape[1]).to(DEVICE, torch.float16)
    output = torch.full((1, shape[0]), torch.nan, dtype=torch.float16, device=DEVICE)
    tiled_gemv(row, weights, output, shape=portion)
    assert relative_error(output, functional.linear(row.float(), weights.unpack())) < 7e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", cases([3], on_card=[2, 16, 33, 100, 200]))
def test_some_rows(num_rows: int, shape: tuple[int, int], form: str, dtype: torch.dtype) -> None:
    weights = make_weights(form, shape)
    rows = torch.randn(num_rows, shape[1]).to(DEVICE, dtype)
    bias = torch.randn(shape[0]).to(DEVICE, dtype)
    # A part of wider rows, as matrices of several forms write them.
    output = torch.full((num_rows, shape[0] + 8), torch.nan, dtype=dtype, device=DEVICE)
    tiled_gemm(rows, weights, output[:, : shape[0]], bias=bias)
    expected = functional.linear(rows.float(), weights.unpack(), bias.float())
    assert relative_error(output[:, : shape[0]], expected) < error_of(dtype)
    assert output[:, shape[0] :].isnan().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("splits", cases([2], on_card=[1, 3]))
def test_some_rows_in_other_portions(splits: int, form: str) -> None:
    weights = make_weights(form, (40, 768))
    rows = torch.randn(18, 768).to(DEVICE, torch.float16)
    output = torch.full((18, 40), torch.nan, dtype=torch.float16, device=DEVICE)
    tiled_gemm(rows, weights, output, shape=TiledGemmShape(32, 4, 2, splits), inputs_each=16)
    assert relative_error(output, functional.linear(rows.float(), weights.unpack())) < 7e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking(shape: tuple[int, int], form: str) -> None:
    weights = make_weights(form, shape)
    matrix = weights.unpack()
    output = torch.full((shape[0] - 3, shape[1]), torch.nan, device=DEVICE)
    unpack_rows(weights, 2, shape[0] - 1, output)
    torch.testing.assert_close(output, matrix[2:-1], rtol=1e-6, atol=1e-7)
    indices = torch.tensor([3, 0, shape[0] - 1, 3], device=DEVICE)
    rows = torch.full((4, shape[1]), torch.nan, device=DEVICE)
    select_rows(weights, indices, rows)
    torch.testing.assert_close(rows, matrix[indices], rtol=1e-6, atol=1e-7)
    select_rows(weights, indices, rows, multiplier=7.0)
    torch.testing.assert_close(rows, matrix[indices] * 7, rtol=1e-6, atol=1e-7)

"""Products of 8-bit floats against the same rounding in plain torch."""

import pytest
import torch
from torch.nn import functional

from tests.support.triton_device import DEVICE, HAS_CARD

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.kernels.triton.float8_linear import (  # isort: skip
    float8_linear,
    has_float8_products,
    quantize_inputs,
    takes_float8,
)
from octavo.engine.kernels.triton.matrices import TiledMatrix  # isort: skip
from octavo.engine.kernels.triton.tiles import TiledWeights, tile_float8  # isort: skip

F8 = torch.float8_e4m3fn
needs_products = pytest.mark.skipif(
    not has_float8_products(DEVICE), reason="torch multiplies no 8-bit floats here"
)


def rounded(inputs: torch.Tensor) -> torch.Tensor:
    """Each row as 8-bit floats would have it, float32."""
    scales = inputs.float().abs().amax(1, keepdim=True) / 448
    return (inputs.float() / scales).to(F8).float() * scales


def make_weights(num_rows: int, num_columns: int, num_groups: int = 1) -> TiledWeights:
    values = (torch.randn(num_rows, num_columns) * 20).to(F8).to(DEVICE)
    scales = (torch.rand(num_rows, num_groups) + 0.5).to(DEVICE) * num_columns**-0.5 / 20
    weights = tile_float8(values, scales, has_float8_inputs=True)
    assert weights is not None
    return weights


def in_tiles(inputs: torch.Tensor) -> torch.Tensor:
    """Features in the order of the bytes of tiles."""
    return inputs.view(len(inputs), -1, 2, 32).transpose(2, 3).reshape(inputs.shape)


@pytest.mark.parametrize("num_columns", [64, 1024, 1088, 4096])
def test_what_8_bits_hold_is_kept_exactly(num_columns: int) -> None:
    values = (torch.randn(5, num_columns) * 100).clamp(-440, 440).to(F8).float()
    values[:, 7] = -448
    scales = torch.tensor([2.0**-14, 0.25, 1.0, 2.0, 64.0])[:, None]
    inputs = (values * scales).to(DEVICE, torch.float16)
    codes, found_scales = quantize_inputs(inputs)
    assert codes.dtype is F8
    assert torch.equal(found_scales.cpu(), scales)
    assert torch.equal(codes.float().cpu(), in_tiles(values))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="the interpreter cuts off where cards round")
def test_rows_are_rounded_with_a_scale_each() -> None:
    inputs = torch.randn(5, 4096) * torch.tensor([1e-4, 0.3, 1.0, 40.0, 1e3])[:, None]
    inputs[3, 7] = -inputs[3].abs().max() * 50
    inputs = inputs.to(DEVICE, torch.float16)
    codes, scales = quantize_inputs(inputs)
    expected = in_tiles(rounded(inputs))
    # A division more or less: at the edge between two numbers the other one is taken.
    differs = (codes.float() * scales - expected).abs() > 1e-6 * expected.abs()
    assert float(differs.float().mean()) < 1e-2
    error = (codes.float() * scales - in_tiles(inputs.float())).norm(dim=1)
    assert bool((error < 0.04 * inputs.float().norm(dim=1)).all())


def test_rows_of_zeros_stay_zeros() -> None:
    codes, scales = quantize_inputs(torch.zeros(2, 128, device=DEVICE, dtype=torch.float16))
    assert bool((codes.float() == 0).all())
    assert bool(torch.isfinite(scales).all())


def test_what_is_no_number_stays_none() -> None:
    inputs = torch.ones(2, 2048, device=DEVICE, dtype=torch.float16)
    inputs[1, 1030] = torch.nan
    assert quantize_inputs(inputs)[1].isnan().flatten().tolist() == [False, True]


def test_only_matrices_with_a_scale_a_row_and_fitting_sizes_are_taken() -> None:
    assert takes_float8(make_weights(32, 256))
    assert not takes_float8(make_weights(24, 256))
    assert not takes_float8(make_weights(32, 256, num_groups=2))
    plain = tile_float8(torch.ones(32, 64).to(F8).to(DEVICE), torch.ones(32, 1, device=DEVICE))
    assert plain is not None
    assert not takes_float8(plain)


def test_no_card_has_no_such_products() -> None:
    assert not has_float8_products(torch.device("cpu"))


@pytest.mark.gpu
@needs_products
@pytest.mark.parametrize("shape", [(4096, 4096), (64, 192), (6144, 14336)])
@pytest.mark.parametrize("num_inputs", [1, 65, 300])
@torch.inference_mode()
def test_products_are_those_of_rounded_inputs(num_inputs: int, shape: tuple[int, int]) -> None:
    weights = make_weights(*shape)
    inputs = torch.randn(num_inputs, shape[1]).to(DEVICE, torch.bfloat16)
    bias = torch.randn(shape[0]).to(DEVICE, torch.bfloat16)
    expected = functional.linear(rounded(inputs), weights.unpack())
    found = float8_linear(inputs, weights)
    error = (found.float() - expected).norm() / expected.norm()
    assert float(error) < 6e-3
    with_bias = float8_linear(inputs, weights, bias)
    error = (with_bias.float() - expected - bias.float()).norm() / expected.norm()
    assert float(error) < 6e-3


@pytest.mark.gpu
@needs_products
@torch.inference_mode()
def test_many_rows_are_rounded_and_few_are_not() -> None:
    weights = make_weights(256, 512)
    matrix = TiledMatrix(weights)
    inputs = torch.randn(100, 512).to(DEVICE, torch.bfloat16)
    exact = functional.linear(inputs.float(), weights.unpack())
    for rows, low, high in ((inputs[:64], 0.0, 6e-3), (inputs, 1e-2, 5e-2)):
        found = matrix.multiply(rows).float()
        columns = torch.empty(len(rows), 300, device=DEVICE, dtype=torch.bfloat16)
        placed = matrix.multiply_into(rows, columns[:, 20:276]).float()
        assert torch.equal(found, placed)
        error = float((found - exact[: len(rows)]).norm() / exact[: len(rows)].norm())
        assert low <= error < high


@pytest.mark.gpu
def test_new_cards_have_such_products() -> None:
    """The tests above are not skipped there."""
    assert has_float8_products(DEVICE) or torch.cuda.get_device_capability() < (9, 0)

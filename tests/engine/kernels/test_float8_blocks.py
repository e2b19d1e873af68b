"""Products of 8-bit floats with scales of groups against the same rounding in plain torch."""

import pytest
import torch
from torch.nn import functional

from tests.support.triton_device import DEVICE, HAS_CARD, cases

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.kernels.triton.float8_blocks import (  # isort: skip
    float8_groups_linear,
    quantize_groups,
    takes_float8_groups,
)
from octavo.engine.kernels.triton.tiles import TiledWeights  # isort: skip
from tests.support.tiled_weights import make_tiled  # isort: skip

F8 = torch.float8_e4m3fn
DTYPE = torch.bfloat16 if HAS_CARD else torch.float16
"""The interpreter holds bfloat16 as raw bits."""
has_units = not HAS_CARD or torch.cuda.get_device_capability() >= (8, 9)
pytestmark = pytest.mark.skipif(not has_units, reason="this card multiplies no 8-bit floats")


def exact_inputs(num_inputs: int, num_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that 8 bits hold exactly, with the scale of each group of 128 features."""
    values = (torch.randn(num_inputs, num_columns // 128, 128) * 100).clamp(-440, 440).to(F8)
    values = values.float()
    values[..., 7] = -448
    scales = 2.0 ** torch.randint(-8, 1, (num_inputs, num_columns // 128)).float()
    return (values * scales[..., None]).view(num_inputs, num_columns), scales


def in_tiles(inputs: torch.Tensor) -> torch.Tensor:
    """Features in the order of the bytes of tiles."""
    return inputs.view(len(inputs), -1, 2, 32).transpose(2, 3).reshape(inputs.shape)


def make_weights(num_rows: int, num_columns: int) -> TiledWeights:
    weights = make_tiled("float8 blocks and inputs", num_rows, num_columns, DEVICE)
    assert weights is not None
    return weights


@pytest.mark.parametrize("num_columns", [128, 1152])
def test_what_8_bits_hold_is_kept_exactly(num_columns: int) -> None:
    inputs, scales = exact_inputs(5, num_columns)
    codes, found_scales = quantize_groups(inputs.to(DEVICE, DTYPE))
    assert codes.dtype is F8
    assert torch.equal(found_scales.cpu(), scales)
    values = codes.float().cpu().view(5, -1, 128) * scales[..., None]
    assert torch.equal(values.view(5, -1), in_tiles(inputs))


def test_zeros_stay_zeros_and_what_is_no_number_stays_none() -> None:
    inputs = torch.zeros(2, 256, device=DEVICE, dtype=DTYPE)
    inputs[1, 130] = float("nan")
    codes, scales = quantize_groups(inputs)
    assert bool((codes[0].float() == 0).all())
    assert scales.isnan().tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    "shape",
    cases([(3, 40, 256), (130, 136, 128)], on_card=[(300, 6144, 4096), (1100, 4096, 14336)]),
)
@torch.inference_mode()
def test_products_are_those_of_the_same_numbers(shape: tuple[int, int, int]) -> None:
    num_inputs, num_rows, num_columns = shape
    weights = make_weights(num_rows, num_columns)
    inputs = exact_inputs(num_inputs, num_columns)[0].to(DEVICE, DTYPE)
    expected = functional.linear(inputs.float(), weights.unpack().float())
    found = float8_groups_linear(inputs, weights).float()
    assert float((found - expected).norm() / expected.norm()) < 6e-3


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CARD, reason="the interpreter cuts off where cards round")
@torch.inference_mode()
def test_products_of_any_inputs_are_close() -> None:
    weights = make_weights(512, 1024)
    inputs = torch.randn(200, 1024).to(DEVICE, DTYPE)
    expected = functional.linear(inputs.float(), weights.unpack().float())
    found = float8_groups_linear(inputs, weights).float()
    assert 1e-2 < float((found - expected).norm() / expected.norm()) < 5e-2


def test_only_8_bit_floats_in_groups_are_taken() -> None:
    assert takes_float8_groups(make_weights(32, 256))
    for form in ("float8 blocks", "float8 channels and inputs", "int4 g128"):
        weights = make_tiled(form, 32, 256, DEVICE)
        assert weights is not None
        assert not takes_float8_groups(weights)

"""Activations as 8-bit integers, against the twin in plain torch."""

import numpy as np
import pytest
import torch

from octavo.engine.kernels.cpu import quantize_activations as activations


@pytest.mark.parametrize("num_columns", [32, 64, 576, 1, 15, 16, 17, 31, 33, 63])
def test_kernel_is_the_twin_bit_for_bit(num_columns: int) -> None:
    values = torch.randn(5, num_columns, generator=torch.Generator().manual_seed(num_columns))
    values *= torch.tensor([1e-3, 1.0, 300.0, 0.0, 1e-38])[:, None]
    assert torch.equal(activations.quantize_rows(values), activations.quantize(values))


def test_ties_are_rounded_to_even() -> None:
    values = torch.zeros(1, 32)
    values[0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    codes = activations.quantize_rows(values)[0, :4].view(torch.int8)
    assert codes.tolist() == [127, 0, 2, -2]


def test_nothing_is_more_than_half_a_step_off() -> None:
    values = torch.randn(8, 320, generator=torch.Generator().manual_seed(0))
    restored = activations.dequantize(activations.quantize_rows(values), 320)
    steps = values.view(8, 10, 32).abs().amax(dim=2, keepdim=True) / 127
    errors = (restored - values).abs().view(8, 10, 32)
    assert (errors <= steps * 0.5001).all()


def test_rows_are_read_where_they_lie() -> None:
    wide = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    part = wide[:, 20:84]
    assert torch.equal(activations.quantize_rows(part), activations.quantize(part.contiguous()))


def test_memory_behind_a_row_is_not_read() -> None:
    padded = torch.full((48,), float("nan"))
    padded[:33] = 1.0
    target = torch.zeros(128, dtype=torch.uint8)
    activations.quantize_row(np.uint64(padded.data_ptr()), 33, np.uint64(target.data_ptr()))
    assert torch.equal(target, activations.quantize(torch.ones(1, 33))[0])

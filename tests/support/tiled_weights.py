"""Random packed matrices in every form that the GPU's kernels know."""

from collections.abc import Callable, Mapping

import pytest
import torch

from octavo.engine.kernels.triton import experts, tiled_expert_gemv
from octavo.engine.kernels.triton.tiled_expert_gemm import TiledGroupedShape
from octavo.engine.kernels.triton.tiled_gemv import TiledGemvShape
from octavo.engine.kernels.triton.tiles import (
    TiledWeights,
    tile_affine,
    tile_float8,
    tile_q4_k,
    tile_q6_k,
)

FLOAT8_INPUTS = "float8 channels and inputs"
"""Lies as the form without inputs does."""
Maker = Callable[[int, int, torch.device], TiledWeights | None]
_SUPER_BLOCK = 256


def _affine(bits: int, group_size: int | None, *, symmetric: bool = True) -> Maker:
    def make(num_rows: int, num_columns: int, device: torch.device) -> TiledWeights | None:
        size = num_columns if group_size is None else group_size
        if num_columns % size:
            return None
        codes = torch.randint(0, 1 << bits, (num_rows, num_columns), device=device)
        scales = torch.rand(num_rows, num_columns // size, device=device) + 0.5
        scales = (scales * 2 * num_columns**-0.5 / (1 << bits)).half().float()
        offsets = -scales * (1 << (bits - 1))
        if not symmetric:
            offsets = offsets * (0.5 + torch.rand_like(offsets))
        return tile_affine(codes.to(torch.uint8), bits, scales, offsets)

    return make


def _float8(group_size: int | None, *, has_float8_inputs: bool = False) -> Maker:
    def make(num_rows: int, num_columns: int, device: torch.device) -> TiledWeights | None:
        size = num_columns if group_size is None else group_size
        if num_columns % size:
            return None
        values = torch.randn(num_rows, num_columns, device=device) * 20
        scales = torch.rand(num_rows, num_columns // size, device=device) + 0.5
        values = values.to(torch.float8_e4m3fn)
        scales = scales * num_columns**-0.5 / 20
        return tile_float8(values, scales, has_float8_inputs=has_float8_inputs)

    return make


def _k_form(bits: int) -> Maker:
    def make(num_rows: int, num_columns: int, device: torch.device) -> TiledWeights | None:
        if num_columns % _SUPER_BLOCK:
            return None
        blocks = num_rows, num_columns // _SUPER_BLOCK
        codes = torch.randint(0, 1 << bits, (num_rows, num_columns), device=device)
        codes = codes.to(torch.uint8)
        size = num_columns**-0.5 / (1 << bits) / 64
        if bits == 6:
            factors = (torch.rand(blocks, device=device) + 0.5) * size
            integers = torch.randint(-128, 128, (*blocks, 16), device=device)
            return tile_q6_k(codes, factors.half(), integers.to(torch.int8))
        factors = (torch.rand(*blocks, 2, device=device) + 0.5) * 4 * size
        factors[..., 1] *= 1 << (bits - 1)
        scales, minimums = torch.randint(0, 64, (2, *blocks, 8), device=device).to(torch.uint8)
        return tile_q4_k(codes, bits, factors.half(), scales, minimums)

    return make


MAKERS: Mapping[str, Maker] = {
    "int4 g128": _affine(4, 128),
    "int4 g128 asymmetric": _affine(4, 128, symmetric=False),
    "int4 g64": _affine(4, 64),
    "int4 g32 asymmetric": _affine(4, 32, symmetric=False),
    "int4 channels": _affine(4, None),
    "int5 g32": _affine(5, 32),
    "int8 g32": _affine(8, 32),
    "int8 g128 asymmetric": _affine(8, 128, symmetric=False),
    "int8 channels": _affine(8, None),
    "int8 channels asymmetric": _affine(8, None, symmetric=False),
    "float8 channels": _float8(None),
    "float8 blocks": _float8(128),
    FLOAT8_INPUTS: _float8(None, has_float8_inputs=True),
    "q4_k": _k_form(4),
    "q5_k": _k_form(5),
    "q6_k": _k_form(6),
}
"""By names; each returns None where rows of that many features cannot lie so."""


def make_tiled(
    name: str, num_rows: int, num_columns: int, device: torch.device, *, seed: int = 0
) -> TiledWeights | None:
    """A random matrix whose products are about as large as their inputs."""
    torch.manual_seed(seed)
    return MAKERS[name](num_rows, num_columns, device)


def take_large_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """For packed experts in Triton's interpreter: its time goes by the number of programs."""
    vector, grouped = TiledGemvShape(256, 32), TiledGroupedShape(16, 256, 4, 1)
    monkeypatch.setattr(tiled_expert_gemv, "picked_gemv_shape", lambda *_args, **_names: vector)
    monkeypatch.setattr(experts, "tiled_grouped_shape", lambda *_args: grouped)

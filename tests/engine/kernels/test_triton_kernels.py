"""Each Triton kernel against its twin in plain torch."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.support.triton_device import DEVICE, DTYPES, cases, tolerance

# Kernels are defined when they are imported, so what comes first decides where they run.
from octavo.engine.attention.base import LayerCache  # isort: skip
from octavo.engine.attention.kv_types import store_heads  # isort: skip
from octavo.engine.kernels.triton.decode_inputs import (  # isort: skip
    DecodeInputs,
    RotationRule,
    begin_step,
)
from octavo.engine.kernels.triton.gated_activation import gated_activation  # isort: skip
from octavo.engine.kernels.triton.gemv import ADD, GATED, InputNorm, gemv  # isort: skip
from octavo.engine.kernels.triton.heads import HeadNorms, HeadRotation, write_heads  # isort: skip
from octavo.engine.kernels.triton.rms_norm import add_rms_norm  # isort: skip
from octavo.engine.layers.layernorm import RMSNorm  # isort: skip
from octavo.engine.layers.mlp import apply_gate  # isort: skip
from octavo.engine.layers.rotary_embedding import rotate  # isort: skip

EPS = 1e-5


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def norm_twin(weight: torch.Tensor, *, in_float32: bool, offset: float) -> RMSNorm:
    norm = RMSNorm(
        len(weight), EPS, offset=offset, in_float32=in_float32, dtype=weight.dtype, device=DEVICE
    )
    norm.weight.copy_(weight)
    return norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", cases([(2, 48)], on_card=[(1, 4096), (7, 896), (300, 2048), (5, 16384)])
)
@pytest.mark.parametrize("in_float32", [False, True])
@torch.inference_mode()
def test_addition_and_norm(shape: tuple[int, int], dtype: torch.dtype, in_float32: bool) -> None:
    hidden, delta = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    weight, delta_weight = (random(shape[1], dtype=dtype, seed=seed) for seed in (2, 3))
    offset = 1.0 if in_float32 else 0.0
    first = norm_twin(delta_weight, in_float32=in_float32, offset=offset)
    last = norm_twin(weight, in_float32=in_float32, offset=offset)
    options: dict[str, Any] = {"eps": EPS, "in_float32": in_float32, "offset": offset}
    torch.testing.assert_close(
        add_rms_norm(hidden, weight, **options), last(hidden), **tolerance(dtype)
    )
    expected = torch.add(hidden, first(delta), alpha=0.5)
    normed = add_rms_norm(
        hidden, weight, delta=delta, delta_weight=delta_weight, residual_scale=0.5, **options
    )
    torch.testing.assert_close(hidden, expected, **tolerance(dtype))
    torch.testing.assert_close(normed, last(expected), **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", cases([(2, 24)], on_card=[(1, 14336), (130, 8192), (3, 1000)]))
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_activation(shape: tuple[int, int], dtype: torch.dtype, activation: str) -> None:
    gate_up = random(shape[0], 2 * shape[1], dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    expected = apply_gate(gate, up, activation)
    found = gated_activation(gate_up, activation=activation)
    torch.testing.assert_close(found, expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    cases(
        [(10, 300)],
        on_card=[(6144, 4096), (4096, 14336), (576, 576), (2048, 8192), (1001, 896), (5000, 100)],
    ),
)
@pytest.mark.parametrize("has_bias", [False, True])
@torch.inference_mode()
def test_vector_products(shape: tuple[int, int], dtype: torch.dtype, has_bias: bool) -> None:
    out_features, in_features = shape
    vector = random(1, in_features, dtype=dtype)
    matrix = random(2 * out_features, in_features, dtype=dtype, seed=1) * in_features**-0.5
    bias = random(2 * out_features, dtype=dtype, seed=2) if has_bias else None
    weight = random(in_features, dtype=dtype, seed=3)
    norm = InputNorm(weight, EPS)
    normed = norm_twin(weight, in_float32=False, offset=0.0)(vector)

    plain = torch.full((1, 2 * out_features), torch.nan, dtype=dtype, device=DEVICE)
    gemv(vector, matrix, plain, bias=bias)
    torch.testing.assert_close(plain, functional.linear(vector, matrix, bias), **tolerance(dtype))
    hidden = random(1, 2 * out_features, dtype=dtype, seed=4)
    expected = torch.add(hidden, functional.linear(normed, matrix, bias), alpha=0.5)
    gemv(vector, matrix, hidden, bias=bias, norm=norm, epilogue=ADD, residual_scale=0.5)
    torch.testing.assert_close(hidden, expected, **tolerance(dtype))
    gated = torch.full((1, out_features), torch.nan, dtype=dtype, device=DEVICE)
    gemv(vector, matrix, gated, bias=bias, norm=norm, epilogue=GATED)
    gate, up = functional.linear(normed, matrix, bias).chunk(2, dim=-1)
    torch.testing.assert_close(gated, apply_gate(gate, up, "silu"), **tolerance(dtype))


HEADS = cases(
    [(5, 3, 1, 16, 12)],
    on_card=[(1, 32, 8, 128, 128), (70, 9, 3, 64, 64), (200, 8, 4, 256, 256), (9, 5, 5, 80, 32)],
)
"""Tokens, query heads, key heads, channels of a head, turned channels."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", HEADS)
@pytest.mark.parametrize("stored", [None, torch.int8, torch.float8_e4m3fn])
@torch.inference_mode()
def test_heads_are_turned_and_written(
    sizes: tuple[int, ...], dtype: torch.dtype, stored: torch.dtype | None
) -> None:
    num_tokens, num_heads, num_kv_heads, head_dim, rotary_dim = sizes
    projected = random(num_tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    weights = [random(head_dim, dtype=dtype, seed=seed) for seed in (1, 2)]
    angles = random(num_tokens, rotary_dim // 2, seed=3) * 5
    query, key, value = projected.split_with_sizes([num_heads, num_kv_heads, num_kv_heads], 1)
    rotation = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    turned = [
        rotate(norm_twin(weight, in_float32=False, offset=0.0)(heads), *rotation)
        for weight, heads in zip(weights, (query, key), strict=True)
    ]
    caches = []
    for _ in range(2):
        blocks = torch.zeros(80, 4, num_kv_heads, head_dim, dtype=stored or dtype, device=DEVICE)
        scales = None
        if stored is torch.int8:
            scales = torch.zeros(80, 4, num_kv_heads, dtype=torch.float16, device=DEVICE)
        other = None if scales is None else scales.clone()
        caches.append(LayerCache(blocks, blocks.clone(), scales, other))
    slots = torch.randperm(316)[:num_tokens].to(DEVICE) + 4
    kept = slots.clone()
    slots[0] = -1
    expected, found = caches
    seen = kept[1:]
    for blocks, scales, heads in (
        (expected.keys, expected.key_scales, turned[1]),
        (expected.values, expected.value_scales, value),
    ):
        if num_tokens > 1:
            store_heads(blocks, scales, seen, heads[1:].contiguous())
    write_heads(
        projected,
        found,
        slots,
        num_heads=num_heads,
        rotation=HeadRotation(angles.cos(), angles.sin()),
        norms=HeadNorms(weights[0], weights[1], EPS),
    )
    torch.testing.assert_close(projected[:, :num_heads], turned[0], **tolerance(dtype))
    kept_keys = projected[:, num_heads : num_heads + num_kv_heads]
    torch.testing.assert_close(kept_keys, turned[1], **tolerance(dtype))
    for one, other in ((found.keys, expected.keys), (found.values, expected.values)):
        if stored is torch.int8:
            # A scale that differs in its last bit may round a number the other way.
            assert (one.int() - other.int()).abs().max() <= 1
        elif stored is not None:
            # Rounded one step up or down, but for a few that Triton's interpreter gets wrong.
            far = (one.float() - other.float()).abs() > 0.02 + 0.13 * other.float().abs()
            assert far.float().mean() < 1e-3
        else:
            torch.testing.assert_close(one, other, **tolerance(dtype))
    if found.key_scales is not None and expected.key_scales is not None:
        torch.testing.assert_close(found.key_scales, expected.key_scales, rtol=2e-2, atol=1e-6)


def test_a_step_begins_from_its_packed_array() -> None:
    num_rows, block_size = 4, 4
    embedding = random(50, 24)
    packed = torch.tensor(
        [[2, 0, 5, 0], [7, -3, 9, 0], [6, 3, 8, -1], [11, 12, 13, 0], [21, 22, 23, 0]],
        dtype=torch.int32,
        device=DEVICE,
    )
    sampled = torch.tensor([30, 31, 32, 33], dtype=torch.int32, device=DEVICE)
    tables = torch.zeros(2, 6, 5, dtype=torch.int32, device=DEVICE)
    frequencies = torch.tensor([1.0, 0.3, 0.01], device=DEVICE)
    inputs = DecodeInputs(
        packed=packed,
        sampled=sampled,
        table_rows=torch.zeros(num_rows, dtype=torch.int32, device=DEVICE),
        context_lens=torch.zeros(num_rows, dtype=torch.int32, device=DEVICE),
        slots=torch.zeros(2, num_rows, dtype=torch.int64, device=DEVICE),
        rotations=(HeadRotation(random(num_rows, 3), random(num_rows, 3)),),
        hidden=random(num_rows, 24),
        token_ids=torch.zeros(num_rows, dtype=torch.int64, device=DEVICE),
    )
    begin_step(
        inputs,
        embedding,
        tables,
        [RotationRule(frequencies, 1.5)],
        block_size=block_size,
        embedding_scale=2.0,
    )
    assert inputs.token_ids.tolist()[:3] == [7, 32, 9]
    assert inputs.table_rows.tolist() == [2, 0, 5, 0]
    assert inputs.context_lens.tolist() == [7, 4, 9, 0]
    assert inputs.slots.tolist() == [[46, 51, 52, -1], [86, 91, 92, -1]]
    torch.testing.assert_close(inputs.hidden[:3], embedding[[7, 32, 9]] * 2)
    expected = torch.zeros_like(tables)
    expected[0, 2, 1], expected[0, 0, 0], expected[0, 5, 2] = 11, 12, 13
    expected[1, 2, 1], expected[1, 0, 0], expected[1, 5, 2] = 21, 22, 23
    assert tables.equal(expected)
    angles = torch.tensor([6.0, 3.0, 8.0], device=DEVICE).unsqueeze(1) * frequencies
    torch.testing.assert_close(inputs.rotations[0].cosines[:3], angles.cos() * 1.5)
    torch.testing.assert_close(inputs.rotations[0].sines[:3], angles.sin() * 1.5)

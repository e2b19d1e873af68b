"""Products of pairs of 16 bits against numpy, and compiled for processors that are not at hand."""

from typing import Any

import numpy as np
import pytest
import torch
from llvmlite import ir
from numba import njit

from octavo.engine.kernels.cpu import simd, simd_emit, simd_tier
from octavo.engine.kernels.cpu.attention_pairs import COLUMNS, ROWS, score_pairs, weigh_pairs
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import F32, I32
from tests.engine.kernels.cpu.test_simd import address, assembly

needs_bfloat_dots = pytest.mark.skipif(
    not simd_tier.has_bfloat_dots(), reason="this CPU multiplies no pairs of bfloat16"
)


def test_pairs_compile_for_processors_that_have_them() -> None:
    def body(b: ir.IRBuilder, addresses: list[Any]) -> None:
        floats, pairs = simd_emit.vector(F32, 16), simd_emit.vector(I32, 16)
        x, y = (simd_emit.load(b, place, floats) for place in addresses)
        words = simd_emit.to_word_pairs(b, x, y)
        dots = simd_emit.dot_words(b, simd_emit.load(b, addresses[0], pairs), words, words)
        bfloats = simd_emit.to_bfloat_pairs(b, x, y)
        total = simd_emit.dot_bfloat(b, simd_emit.to_float(b, dots), bfloats, bfloats)
        simd_emit.store(b, addresses[0], total)

    text = assembly(Tier.AVX512VNNI, body, 2, {"avx512bf16"})
    for instruction in ("vpdpwssd", "vdpbf16ps", "vcvtne2ps2bf16", "vcvtps2dq"):
        assert instruction in text


def test_a_lower_tier_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    required = simd_tier.REQUIRED_FEATURES
    for tier in (Tier.AVX512VNNI, Tier.AVX2):
        for more in ((), ("avx512bf16",)):
            features = ",".join(f"+{name}" for name in (*required[tier], *more))
            monkeypatch.setenv(simd_tier.CPU_FEATURES, features)
            expected = tier is Tier.AVX512VNNI and bool(more)
            assert simd_tier.has_bfloat_dots() == expected


@needs_bfloat_dots
def test_scores_are_exact_products_of_integers() -> None:
    @njit(nogil=True)
    def score(queries, query_steps, keys, key_steps, num_pairs, scores, stride):
        args = (keys, key_steps, num_pairs, scores, stride)
        score_pairs(queries, 4 * num_pairs, query_steps, *args)

    random = np.random.default_rng(1)
    num_pairs = 32
    queries = random.integers(-4000, 4000, (ROWS, 2 * num_pairs), dtype=np.int16)
    keys = random.integers(-4000, 4000, (COLUMNS, num_pairs, 16, 2), dtype=np.int16)
    query_steps = random.random(ROWS, np.float32)
    key_steps = random.random((COLUMNS, 16), np.float32)
    scores = np.zeros((ROWS, COLUMNS, 16), np.float32)
    score(
        *(address(queries), address(query_steps), address(keys), address(key_steps)),
        *(num_pairs, address(scores), scores.strides[0]),
    )
    products = np.einsum(
        "rpi,cpki->rck", queries.reshape(ROWS, num_pairs, 2).astype(np.int64), keys.astype(np.int64)
    )
    expected = products * query_steps[:, None, None] * key_steps
    np.testing.assert_allclose(scores, expected, rtol=3e-7)


@needs_bfloat_dots
@pytest.mark.parametrize("num_pairs", [1, 9])
def test_weights_are_summed_over_pairs_of_tokens(num_pairs: int) -> None:
    @njit(nogil=True)
    def weigh(weights, stride, values, num_pairs, pair_bytes, outputs, output_stride):
        weigh_pairs(2, weights, stride, values, num_pairs, pair_bytes, outputs, output_stride)

    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(ROWS, 2 * num_pairs, generator=generator).bfloat16()
    values = torch.randn(2 * num_pairs, 32, generator=generator).bfloat16()
    pairs = values.view(num_pairs, 2, 32).transpose(1, 2).contiguous()
    outputs = torch.ones(ROWS, 32)
    row_bytes = 4 * num_pairs
    weigh(
        *(np.uint64(weights.data_ptr()), row_bytes, np.uint64(pairs.data_ptr()), num_pairs, 128),
        *(np.uint64(outputs.data_ptr()), 128),
    )
    torch.testing.assert_close(outputs, 1 + weights.float() @ values.float(), rtol=1e-6, atol=1e-6)


@needs_bfloat_dots
def test_rounding_is_to_the_nearest() -> None:
    @njit(nogil=True)
    def convert(x, y, out):
        first, second = simd.load_f32(x), simd.load_f32(y)
        simd.store_word_pairs(out, first, second)
        simd.store_bfloat_pairs(simd.at(out, 64), first, second)
        simd.store_words(simd.at(out, 128), first)
        simd.store_bfloats(simd.at(out, 160), first)

    random = np.random.default_rng(3)
    x, y = (random.standard_normal((2, 16)) * 9000).astype(np.float32)
    x[:4] = (0.5, 1.5, -2.5, -32000)
    out = np.zeros(96, np.int16)
    convert(address(x), address(y), address(out))
    both = np.stack([x, y], axis=1)
    bits = torch.from_numpy(both).bfloat16().view(torch.int16).numpy()
    assert (out[:32].reshape(16, 2) == np.rint(both)).all()
    assert (out[32:64].reshape(16, 2) == bits).all()
    assert (out[64:80] == np.rint(x)).all()
    assert (out[80:] == bits[:, 0]).all()


@needs_bfloat_dots
def test_powers_of_two_are_finer_than_bfloat16() -> None:
    @njit(nogil=True)
    def power(x, out, count):
        for i in range(0, count, 16):
            simd.store_f32(simd.at(out, 4 * i), simd.exp2_coarse(simd.load_f32(simd.at(x, 4 * i))))

    x = np.linspace(-140, 0, 1 << 14, dtype=np.float32)
    out = np.empty_like(x)
    power(address(x), address(out), len(x))
    expected = np.exp2(np.maximum(x, np.float32(-126)).astype(np.float64))
    np.testing.assert_allclose(out, expected, rtol=2e-4)
    assert out[-1] == 1
    x[:16] = -3e38
    power(address(x), address(out), 16)
    assert (out[:16] <= 2e-38).all()

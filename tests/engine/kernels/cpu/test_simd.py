"""SIMD vectors against numpy on this processor, and compiled for the others."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import cfunc, float32, int64, njit, types

from octavo.engine.kernels.cpu import simd, simd_emit, simd_tier
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import F32, I32, I64
from octavo.errors import InvalidSettingsError

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
TRIPLES = {Tier.AVX512VNNI: X86, Tier.AVXVNNI: X86, Tier.AVX2: X86, Tier.NEON: ARM}

needs_vectors = pytest.mark.skipif(
    simd_tier.tier_of(simd_tier.host_features()) is Tier.NONE, reason="this CPU has no tier"
)


def address(array: np.ndarray) -> np.uint64:
    return np.uint64(array.ctypes.data)


def assembly(
    tier: Tier,
    emit_body: Callable[[ir.IRBuilder, list[Any]], None],
    count: int,
    more: Iterable[str] = (),
) -> str:
    """What a function of `count` addresses becomes on a processor of a tier with more features."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = TRIPLES[tier]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * count), "body")
    builder = ir.IRBuilder(function.append_basic_block())
    emit_body(builder, list(function.args))
    builder.ret_void()
    names = simd_tier.REQUIRED_FEATURES[tier].union(more)
    features = ",".join(f"+{name}" for name in sorted(names))
    target = llvm.Target.from_triple(TRIPLES[tier])
    machine = target.create_target_machine(features=features, opt=3)
    text: str = machine.emit_assembly(llvm.parse_assembly(str(module)))
    return text


@pytest.mark.parametrize(
    ("tier", "instruction"),
    [
        (Tier.AVX512VNNI, "vpdpbusd"),
        (Tier.AVXVNNI, "{vex}\tvpdpbusd"),
        (Tier.AVX2, "vpmaddubsw"),
        (Tier.NEON, "sdot"),
    ],
)
def test_dot_product_of_bytes_compiles_for_every_tier(tier: Tier, instruction: str) -> None:
    def body(b: ir.IRBuilder, addresses: list[Any]) -> None:
        kind = simd_emit.vector(I32, 16)
        total, codes, signed = (simd_emit.load(b, place, kind) for place in addresses)
        simd_emit.store(b, addresses[0], simd_emit.dot(b, tier, total, codes, signed))

    text = assembly(tier, body, 3)
    assert instruction in text
    assert ("zmm" in text) == (tier is Tier.AVX512VNNI)


@pytest.mark.parametrize("tier", TRIPLES)
def test_floating_point_compiles_for_every_tier(tier: Tier) -> None:
    def body(b: ir.IRBuilder, addresses: list[Any]) -> None:
        x = simd_emit.load_half(b, addresses[0], 16)
        y = simd_emit.exp(b, simd_emit.load_bfloat(b, addresses[1], 16))
        mask = simd_emit.first_lanes(b, addresses[1], 16)
        simd_emit.masked_store(b, addresses[0], simd_emit.fma(b, x, y, x), mask)
        simd_emit.store(b, addresses[1], simd_emit.reduce(b, "fmax", y))
        simd_emit.pause(b, tier)

    text = assembly(tier, body, 2)
    assert ("fmla" if tier is Tier.NEON else "vfmadd") in text
    assert ("fcvtl" if tier is Tier.NEON else "vcvtph2ps") in text


def test_best_tier_follows_from_the_features() -> None:
    required = simd_tier.REQUIRED_FEATURES
    for tier in Tier:
        assert simd_tier.tier_of(required[tier]) is tier
    everything = required[Tier.AVX512VNNI] | required[Tier.AVXVNNI]
    assert simd_tier.tier_of(everything) is Tier.AVX512VNNI
    assert simd_tier.tier_of(required[Tier.AVX2] - {"fma"}) is Tier.NONE


def test_an_unknown_or_missing_tier_is_refused() -> None:
    with pytest.raises(InvalidSettingsError, match="it must be auto, avx512vnni"):
        simd_tier.select_tier("sse")
    other = Tier.AVX2 if simd_tier.compiled_tier() is Tier.NEON else Tier.NEON
    with pytest.raises(InvalidSettingsError, match="This processor lacks"):
        simd_tier.select_tier(other)


def test_a_forced_tier_takes_the_better_instructions_away(monkeypatch: pytest.MonkeyPatch) -> None:
    required = simd_tier.REQUIRED_FEATURES
    features = required[Tier.AVX512VNNI] | required[Tier.AVXVNNI] | {"sse2"}
    monkeypatch.setattr(simd_tier, "host_features", lambda: features)
    monkeypatch.setattr(sys, "modules", {})
    for name in (simd_tier.CPU_NAME, simd_tier.CPU_FEATURES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for tier in (Tier.AVXVNNI, Tier.AVX2):
        assert simd_tier.select_tier(tier) is tier
        assert simd_tier.compiled_tier() is tier
        assert "-avx512vnni" in os.environ[simd_tier.CPU_FEATURES].split(",")
    # A child process inherits the lower tier, and may be asked for the best.
    assert simd_tier.select_tier() is Tier.AVX512VNNI
    assert simd_tier.compiled_tier() is Tier.AVX512VNNI
    monkeypatch.setattr(sys, "modules", {"numba": None})
    with pytest.raises(InvalidSettingsError, match="is in use already"):
        simd_tier.select_tier(Tier.AVX2)


def test_no_numba_is_loaded_to_choose_a_tier() -> None:
    code = (
        "from octavo.engine.kernels.cpu import simd_tier; import sys\n"
        "simd_tier.select_tier(); simd_tier.cache_key(); print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stdout.strip() == b"False"


@njit(nogil=True)
def _arithmetic(x, y, out):
    a, b = simd.load_f32(x), simd.load_f32(y)
    row = 0
    for value in (
        simd.add(a, b),
        simd.sub(a, b),
        simd.mul(a, b),
        simd.div(a, b),
        simd.maximum(a, b),
        simd.minimum(a, b),
        simd.absolute(a),
        simd.square_root(simd.absolute(a)),
        simd.fma(a, b, simd.splat_f32(float32(2))),
        simd.keep_first(a, 5, float32(9)),
        simd.to_f32(simd.to_i32(a)),
        simd.to_f32(simd.lane_numbers()),
        simd.load_first_f32(y, 3, float32(-1)),
        simd.exp(a),
    ):
        simd.store_f32(simd.at(out, 64 * row), value)
        row += 1  # noqa: SIM113 (Numba unrolls a loop over a tuple, but not `enumerate`)
    return simd.sum_f32(a), simd.max_f32(a), simd.sum_i32(simd.to_i32(a))


@needs_vectors
def test_arithmetic_is_numpys() -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal(16) * 10).astype(np.float32)
    x[:3] = (0.5, 1.5, -2.5)
    y = random.standard_normal(16).astype(np.float32)
    out = np.zeros((14, 16), np.float32)
    sums = _arithmetic(address(x), address(y), address(out))
    lanes = np.arange(16)
    expected = [
        x + y,
        x - y,
        x * y,
        x / y,
        np.maximum(x, y),
        np.minimum(x, y),
        np.abs(x),
        np.sqrt(np.abs(x)),
        x * y + 2,
        np.where(lanes < 5, x, 9),
        np.rint(x),
        lanes,
        np.where(lanes < 3, y, -1),
        np.exp(x.astype(np.float64)),
    ]
    np.testing.assert_allclose(out, np.array(expected), rtol=3e-7, atol=1e-6)
    assert sums == pytest.approx((x.sum(), x.max(), np.rint(x).sum()), rel=1e-5)


@njit(nogil=True)
def _exp_of_all(x, out, count):
    for i in range(0, count, 16):
        simd.store_f32(simd.at(out, 4 * i), simd.exp(simd.load_f32(simd.at(x, 4 * i))))


@needs_vectors
def test_exp_over_its_range() -> None:
    x = np.linspace(-100, 88, 1 << 14, dtype=np.float32)
    out = np.empty_like(x)
    _exp_of_all(address(x), address(out), len(x))
    expected = np.exp(np.maximum(x, np.float32(-87.3)).astype(np.float64))
    np.testing.assert_allclose(out, expected, rtol=2.5e-7)
    x[:16] = -np.inf
    _exp_of_all(address(x), address(out), 16)
    assert (out[:16] <= 2e-38).all()


@njit(nogil=True)
def _stores(x, half, bfloat, integer, first):
    value = simd.load_f32(x)
    simd.store_f16(half, value)
    simd.store_bf16(bfloat, value)
    simd.store_i8(integer, simd.to_i32(value))
    simd.store_first_f32(first, value, 7)


@njit(nogil=True)
def _loads(half, bfloat, integer, out):
    simd.store_f32(out, simd.load_f16(half))
    simd.store_f32(simd.at(out, 64), simd.load_bf16(bfloat))
    simd.store_f32(simd.at(out, 128), simd.to_f32(simd.load_i8(integer)))
    simd.store_f32(simd.at(out, 192), simd.to_f32(simd.load_u8(integer)))
    simd.write_f32(simd.at(out, 256), simd.read_f16(simd.at(half, 2)))


@needs_vectors
def test_memory_of_every_type() -> None:
    import torch

    x = (torch.randn(16, generator=torch.Generator().manual_seed(1)) * 40).contiguous()
    half, bfloat = torch.zeros(16, dtype=torch.float16), torch.zeros(16, dtype=torch.bfloat16)
    integer, first = torch.zeros(16, dtype=torch.int8), torch.zeros(16)
    pointers = [np.uint64(tensor.data_ptr()) for tensor in (x, half, bfloat, integer, first)]
    _stores(*pointers)
    assert torch.equal(half, x.half())
    assert torch.equal(bfloat, x.bfloat16())
    assert torch.equal(integer, x.round().to(torch.int8))
    assert torch.equal(first[:7], x[:7])
    assert not first[7:].any()
    out = torch.zeros(65)
    _loads(*pointers[1:4], np.uint64(out.data_ptr()))
    rows = [half.float(), bfloat.float(), integer.float(), integer.view(torch.uint8).float()]
    assert torch.equal(out[:64].view(4, 16), torch.stack(rows))
    assert out[64] == half[1]


@njit(nogil=True)
def _dot(total, codes, signed):
    value = simd.dot_bytes(simd.load_i32(total), simd.load_i32(codes), simd.load_i32(signed))
    simd.store_i32(total, value)


@needs_vectors
def test_dot_product_is_exact_at_the_ends_of_its_range() -> None:
    random = np.random.default_rng(2)
    codes = random.integers(0, 256, 64).astype(np.uint8)
    signed = random.integers(-128, 128, 64).astype(np.int8)
    codes[:16] = 255
    signed[:16] = [127] * 8 + [-128] * 8
    total = random.integers(-(1 << 20), 1 << 20, 16).astype(np.int32)
    expected = total + (codes.astype(np.int32) * signed).reshape(16, 4).sum(1)
    _dot(address(total), address(codes), address(signed))
    np.testing.assert_array_equal(total, expected)


@cfunc(types.void(int64, int64))
def _write(place, number):
    simd.write_i64(types.uint64(place), number)


@njit(nogil=True)
def _call(function, place, number):
    simd.call_kernel(function, (place, number))
    simd.atomic_add(place, 3)
    simd.pause()
    simd.atomic_store(place, simd.atomic_load(place) + 1)
    simd.prefetch(place)


@needs_vectors
def test_kernels_are_called_by_address() -> None:
    place = np.zeros(1, np.int64)
    _call(np.uint64(_write.address), address(place), 42)
    assert place[0] == 46


def test_simd_module_uses_the_tier_of_the_process() -> None:
    assert simd.TIER is simd_tier.compiled_tier()
    assert simd.F32.llvm_type == ir.VectorType(F32, 16)

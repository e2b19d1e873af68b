"""The product with packed tiles as it is emitted for processors that are not at hand.

Every form is assembled for every tier. Where this processor lacks a tier's instruction for dot
products, plain multiplications stand in for it, so that all around it is run and compared, too.
"""

import ctypes
import os
import subprocess
import sys
from functools import partial
from typing import Any

import llvmlite.binding as llvm
import pytest
import torch
from llvmlite import ir

from octavo.engine.kernels.cpu import linear_emit, quantize_activations, simd_emit, simd_tier
from octavo.engine.kernels.cpu.linear_planes import TileArguments
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import I64
from octavo.engine.kernels.cpu.tiles import PackedMatrix
from octavo.engine.kernels.cpu.tiles_forms import FORMS, TileForm
from tests.engine.kernels.cpu.matrices import KINDS
from tests.engine.kernels.cpu.test_linear import twin
from tests.engine.kernels.cpu.test_simd import TRIPLES, assembly

DOT_INSTRUCTIONS = {
    Tier.AVX512VNNI: "vpdpbusd",
    Tier.AVXVNNI: "vpdpbusd",
    Tier.AVX2: "vpmaddubsw",
    Tier.NEON: "sdot",
}
KINDS_OF_FORMS = {form: kind for kind, (form, _) in KINDS.items()}


def emit_tile(b: ir.IRBuilder, tier: Tier, form: TileForm, width: int, values: list[Any]) -> None:
    linear_emit.multiply_tile(b, tier, form, width, TileArguments(*values))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tier", [Tier.AVX512VNNI, Tier.AVXVNNI, Tier.NEON])
def test_every_form_is_assembled_for_every_tier(tier: Tier, form: str) -> None:
    def body(b: ir.IRBuilder, values: list[Any]) -> None:
        emit_tile(b, tier, FORMS[form], linear_emit.unrolled_tokens(tier, FORMS[form])[0], values)

    text = assembly(tier, body, 8)
    assert (DOT_INSTRUCTIONS[tier] in text) == FORMS[form].is_quantized
    if FORMS[form].is_quantized and tier is Tier.AVX512VNNI:
        # Accumulators and codes stay in registers: no vector is spilled while it is added to.
        lines = text.splitlines()
        dots = [i for i, line in enumerate(lines) if "vpdpbusd" in line]
        inner = lines[dots[0] : dots[-1]]
        assert not [line for line in inner if "vmov" in line and "(%rsp)" in line.split(",")[-1]]


def _portable_dot(
    b: ir.IRBuilder, total: Any, first: Any, second: Any, *, is_unsigned: bool
) -> Any:
    for place in range(4):
        left = simd_emit.constant(total.type, 24 - 8 * place)
        right = simd_emit.constant(total.type, 24)
        shift = b.lshr if is_unsigned else b.ashr
        product = b.mul(shift(b.shl(first, left), right), b.ashr(b.shl(second, left), right))
        total = b.add(total, product)
    return total


def _portable_line(b: ir.IRBuilder, tier: Tier, values: list[Any]) -> list[Any]:
    return list(values)


class _Runner:
    """A tile's product compiled for this machine, with stand-ins for a tier's instructions."""

    def __init__(self, tier: Tier, form: TileForm, width: int) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = ir.Module()
        kind = ir.FunctionType(ir.VoidType(), [I64] * 8)
        function = ir.Function(module, kind, "multiply")
        b = ir.IRBuilder(function.append_basic_block())
        emit_tile(b, tier, form, width, list(function.args))
        b.ret_void()
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1
        )
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
        self._engine.finalize_object()
        address = self._engine.get_function_address("multiply")
        self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(address)

    def __call__(self, matrix: PackedMatrix, activations: torch.Tensor) -> torch.Tensor:
        inputs = activations
        if matrix.form.is_quantized:
            inputs = quantize_activations.quantize(activations)
        out = torch.zeros(len(activations), matrix.num_rows)
        for tile in range(len(matrix.tiles)):
            self._call(
                matrix.tiles[tile].data_ptr(),
                matrix.padded_columns,
                inputs.data_ptr(),
                inputs.stride(0) * inputs.element_size(),
                out.data_ptr() + 64 * tile,
                out.stride(0) * 4,
                matrix.num_rows - 16 * tile,
                matrix.group_size,
            )
        return out


@pytest.mark.skipif(
    simd_tier.tier_of(simd_tier.host_features()) is Tier.NONE, reason="this CPU has no tier"
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tier", [Tier.AVX512VNNI, Tier.AVXVNNI, Tier.NEON])
def test_what_surrounds_the_instruction_is_right(
    tier: Tier, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simd_emit, "dot_vnni", partial(_portable_dot, is_unsigned=True))
    monkeypatch.setattr(simd_emit, "dot_neon", partial(_portable_dot, is_unsigned=False))
    monkeypatch.setattr(simd_emit, "keep_order", _portable_line)
    generator = torch.Generator().manual_seed(9)
    packed, _ = KINDS[KINDS_OF_FORMS[form]][1](40, 256, generator)
    assert packed.form.name == form
    activations = torch.randn(2, packed.num_columns, generator=generator)
    expected, magnitude = twin(packed, activations)
    results = _Runner(tier, packed.form, len(activations))(packed, activations)
    assert ((results - expected).abs() <= 2e-6 * magnitude + 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("tier", [Tier.AVXVNNI, Tier.AVX2])
def test_a_lower_tier_of_this_processor_passes_the_same_tests(tier: Tier) -> None:
    """Runs the kernels' tests in a process that is forced to a lower tier."""
    if not simd_tier.REQUIRED_FEATURES[tier] <= simd_tier.host_features():
        pytest.skip(f"this processor has no {tier}")
    code = (
        "import sys, pytest\n"
        "from octavo.engine.kernels.cpu import simd_tier\n"
        f"simd_tier.select_tier({tier.value!r})\n"
        f"assert simd_tier.compiled_tier() == {tier.value!r}\n"
        "sys.exit(pytest.main(['-q', 'tests/engine/kernels/cpu/test_linear.py',"
        " 'tests/engine/kernels/cpu/test_simd.py']))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=600, check=False)
    assert done.returncode == 0


def test_no_tier_is_left_out() -> None:
    assert set(TRIPLES) == set(DOT_INSTRUCTIONS) == set(Tier) - {Tier.NONE}

"""The types of SIMD vectors: values that Numba code can hold, pass and return."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

LANES = 16
"""In every vector. Where registers are shorter, LLVM takes two or four for one vector."""

I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
F16 = ir.HalfType()
F32 = ir.FloatType()


class BFloatType(ir.Type):
    """bfloat16, which llvmlite has no type for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloatType)

    def __hash__(self) -> int:
        return hash(BFloatType)


_ELEMENTS = {"f32": F32, "i32": I32}


class Vector(types.Type):
    """Sixteen numbers of one type in SIMD registers."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(name=f"Vector({element} x {LANES})")

    @property
    def llvm_type(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENTS[self.element], LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm_type)

"""What threads need beside `simd`'s atomic words: exchange if unchanged, and stepping aside."""

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_INT64 = ir.IntType(64)
_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
"""What the operating system calls letting somebody else run first; every process has it loaded."""


@intrinsic
def compare_exchange(_context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Writes an aligned 64-bit integer if it is what is expected, and says whether it did."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, expected, value = arguments
        pointer = builder.inttoptr(address, _INT64.as_pointer())
        pair = builder.cmpxchg(pointer, expected, value, "seq_cst", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.uint64, types.int64, types.int64), generate


@intrinsic
def yield_thread(_context: Any) -> Any:
    """Lets another thread that waits for this core run first."""

    def generate(target: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        function = builder.module.globals.get(_YIELD)
        if function is None:
            kind = ir.FunctionType(ir.IntType(32), [])
            function = ir.Function(builder.module, kind, _YIELD)
        builder.call(function, [])
        return target.get_dummy_value()

    return types.void(), generate

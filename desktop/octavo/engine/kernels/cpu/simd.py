"""SIMD vectors for Numba code: each function is one instruction, or a few, on sixteen lanes.

Use them inside `numba.njit(nogil=True)`. `F32` and `I32` are the vectors of float32 and int32. An
address is a `uint64`, and memory need not be aligned. Numba makes a float of uint64 + int64, so
walk through memory with `at`.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.simd_tier import compiled_tier
from octavo.engine.kernels.cpu.simd_types import F16 as _F16
from octavo.engine.kernels.cpu.simd_types import F32 as _F32
from octavo.engine.kernels.cpu.simd_types import I8 as _I8
from octavo.engine.kernels.cpu.simd_types import I16 as _I16
from octavo.engine.kernels.cpu.simd_types import I32 as _I32
from octavo.engine.kernels.cpu.simd_types import I64 as _I64
from octavo.engine.kernels.cpu.simd_types import LANES, Vector

TIER = compiled_tier()
"""What all vectors of this process are compiled for."""
F32 = Vector("f32")
I32 = Vector("i32")

_ADDRESS = types.uint64
_f32 = emit.vector(_F32, LANES)
_i32 = emit.vector(_I32, LANES)


def _emitting(function: Callable[..., Any]) -> Any:
    """A code generator for Numba, of a function that takes the builder and the arguments."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        value = function(builder, *arguments)
        return context.get_dummy_value() if value is None else value

    return generate


# Scalars and addresses.


@intrinsic
def at(_context, address, num_bytes):
    """The address a number of bytes further on."""
    return _ADDRESS(_ADDRESS, types.int64), _emitting(lambda b, x, n: b.add(x, n))


@intrinsic
def read_f32(_context, address):
    return types.float32(_ADDRESS), _emitting(lambda b, address: emit.load(b, address, _F32))


@intrinsic
def write_f32(_context, address, value):
    return types.void(_ADDRESS, types.float32), _emitting(emit.store)


@intrinsic
def read_i32(_context, address):
    return types.int32(_ADDRESS), _emitting(lambda b, address: emit.load(b, address, _I32))


@intrinsic
def write_i32(_context, address, value):
    return types.void(_ADDRESS, types.int32), _emitting(emit.store)


@intrinsic
def read_i64(_context, address):
    return types.int64(_ADDRESS), _emitting(lambda b, address: emit.load(b, address, _I64))


@intrinsic
def write_i64(_context, address, value):
    return types.void(_ADDRESS, types.int64), _emitting(emit.store)


@intrinsic
def read_u64(_context, address):
    return _ADDRESS(_ADDRESS), _emitting(lambda b, address: emit.load(b, address, _I64))


@intrinsic
def read_u8(_context, address):
    """A byte, as a positive int64."""

    def read(b, address):
        return b.zext(emit.load(b, address, _I8), _I64)

    return types.int64(_ADDRESS), _emitting(read)


@intrinsic
def read_bf16(_context, address):
    """A bfloat16, as float32."""

    def read(b, address):
        bits = b.zext(emit.load(b, address, _I16), _I32)
        return b.bitcast(b.shl(bits, ir.Constant(_I32, 16)), _F32)

    return types.float32(_ADDRESS), _emitting(read)


@intrinsic
def read_f16(_context, address):
    """A float16, as float32."""

    def read(b, address):
        return b.fpext(emit.load(b, address, _F16), _F32)

    return types.float32(_ADDRESS), _emitting(read)


@intrinsic
def write_f16(_context, address, value):
    """A float32, rounded to float16."""

    def write(b, address, value):
        emit.store(b, address, b.fptrunc(value, _F16))

    return types.void(_ADDRESS, types.float32), _emitting(write)


# Vectors and memory.


@intrinsic
def load_f32(_context, address):
    return F32(_ADDRESS), _emitting(lambda b, address: emit.load(b, address, _f32))


@intrinsic
def load_f16(_context, address):
    """Sixteen float16, as float32."""
    return F32(_ADDRESS), _emitting(lambda b, address: emit.load_half(b, address, LANES))


@intrinsic
def load_bf16(_context, address):
    """Sixteen bfloat16, as float32."""
    return F32(_ADDRESS), _emitting(lambda b, address: emit.load_bfloat(b, address, LANES))


@intrinsic
def load_i32(_context, address):
    return I32(_ADDRESS), _emitting(lambda b, address: emit.load(b, address, _i32))


@intrinsic
def load_i8(_context, address):
    """Sixteen int8, as int32."""

    def load(b, address):
        return b.sext(emit.load(b, address, emit.vector(_I8, LANES)), _i32)

    return I32(_ADDRESS), _emitting(load)


@intrinsic
def load_u8(_context, address):
    """Sixteen uint8, as int32."""

    def load(b, address):
        return b.zext(emit.load(b, address, emit.vector(_I8, LANES)), _i32)

    return I32(_ADDRESS), _emitting(load)


@intrinsic
def load_first_f32(_context, address, num_lanes, fill):
    """The first lanes from memory, 0 to 16 of them; `fill` in the others."""

    def load(b, address, num_lanes, fill):
        mask = emit.first_lanes(b, num_lanes, LANES)
        return emit.masked_load(b, address, emit.splat(b, fill, LANES), mask)

    return F32(_ADDRESS, types.int64, types.float32), _emitting(load)


@intrinsic
def store_f32(_context, address, value):
    return types.void(_ADDRESS, F32), _emitting(emit.store)


@intrinsic
def store_f16(_context, address, value):
    """Rounded to the nearest float16."""
    return types.void(_ADDRESS, F32), _emitting(emit.store_half)


@intrinsic
def store_bf16(_context, address, value):
    """Rounded to the nearest bfloat16."""
    return types.void(_ADDRESS, F32), _emitting(emit.store_bfloat)


@intrinsic
def store_i32(_context, address, value):
    return types.void(_ADDRESS, I32), _emitting(emit.store)


@intrinsic
def store_i8(_context, address, value):
    """The lowest byte of each int32."""

    def store(b, address, value):
        emit.store(b, address, b.trunc(value, emit.vector(_I8, LANES)))

    return types.void(_ADDRESS, I32), _emitting(store)


@intrinsic
def store_first_f32(_context, address, value, num_lanes):
    """The first lanes only, 0 to 16 of them; memory behind them is not touched."""

    def store(b, address, value, num_lanes):
        emit.masked_store(b, address, value, emit.first_lanes(b, num_lanes, LANES))

    return types.void(_ADDRESS, F32, types.int64), _emitting(store)


@intrinsic
def prefetch(_context, address):
    """Asks for the cache line at an address that will be read soon."""
    return types.void(_ADDRESS), _emitting(emit.prefetch)


# The same number in every lane.


@intrinsic
def splat_f32(_context, value):
    return F32(types.float32), _emitting(lambda b, value: emit.splat(b, value, LANES))


@intrinsic
def splat_i32(_context, value):
    return I32(types.int32), _emitting(lambda b, value: emit.splat(b, value, LANES))


@intrinsic
def broadcast_f32(_context, address):
    """A float32 in memory, in every lane."""

    def broadcast(b, address):
        return emit.splat(b, emit.load(b, address, _F32), LANES)

    return F32(_ADDRESS), _emitting(broadcast)


@intrinsic
def broadcast_i32(_context, address):
    """An int32 in memory (or four bytes), in every lane."""

    def broadcast(b, address):
        return emit.splat(b, emit.load(b, address, _I32), LANES)

    return I32(_ADDRESS), _emitting(broadcast)


@intrinsic
def zero_f32(_context):
    return F32(), _emitting(lambda _b: emit.constant(_f32, 0.0))


@intrinsic
def zero_i32(_context):
    return I32(), _emitting(lambda _b: emit.constant(_i32, 0))


@intrinsic
def lane_numbers(_context):
    """0 to 15."""
    return I32(), _emitting(lambda _b: ir.Constant(_i32, list(range(LANES))))


# Arithmetic on float32.


@intrinsic
def fma(_context, x, y, z):
    """x * y + z, rounded once."""
    return F32(F32, F32, F32), _emitting(emit.fma)


@intrinsic
def add(_context, x, y):
    return F32(F32, F32), _emitting(lambda b, x, y: b.fadd(x, y))


@intrinsic
def sub(_context, x, y):
    return F32(F32, F32), _emitting(lambda b, x, y: b.fsub(x, y))


@intrinsic
def mul(_context, x, y):
    return F32(F32, F32), _emitting(lambda b, x, y: b.fmul(x, y))


@intrinsic
def div(_context, x, y):
    return F32(F32, F32), _emitting(lambda b, x, y: b.fdiv(x, y))


@intrinsic
def maximum(_context, x, y):
    """Lane by lane; y where either is NaN."""
    return F32(F32, F32), _emitting(emit.maximum)


@intrinsic
def minimum(_context, x, y):
    """Lane by lane; not for NaN."""
    return F32(F32, F32), _emitting(emit.minimum)


@intrinsic
def absolute(_context, x):
    return F32(F32), _emitting(emit.absolute)


@intrinsic
def square_root(_context, x):
    return F32(F32), _emitting(emit.square_root)


@intrinsic
def exp(_context, x):
    """e to the power of each lane; what is below -87.3 gives 1e-38."""
    return F32(F32), _emitting(emit.exp)


@intrinsic
def exp2_coarse(_context, x):
    """2 to the power of each lane, at most 0, as exact as bfloat16; see `has_bfloat_dots`."""
    return F32(F32), _emitting(emit.exp2_coarse)


@intrinsic
def store_words(_context, address, x):
    """Sixteen numbers as the nearest int16; see `has_bfloat_dots`."""
    return types.void(_ADDRESS, F32), _emitting(
        lambda b, address, x: emit.store(b, address, emit.to_words(b, x))
    )


@intrinsic
def store_word_pairs(_context, address, first, second):
    """Sixteen pairs of the nearest int16, one of each vector; see `has_bfloat_dots`."""
    return types.void(_ADDRESS, F32, F32), _emitting(
        lambda b, address, x, y: emit.store(b, address, emit.to_word_pairs(b, x, y))
    )


@intrinsic
def store_bfloats(_context, address, x):
    """Sixteen numbers as bfloat16, rounded to nearest even; see `has_bfloat_dots`."""
    return types.void(_ADDRESS, F32), _emitting(
        lambda b, address, x: emit.store(b, address, emit.to_bfloat(b, x))
    )


@intrinsic
def store_bfloat_pairs(_context, address, first, second):
    """Sixteen pairs of bfloat16, one of each vector; see `has_bfloat_dots`."""
    return types.void(_ADDRESS, F32, F32), _emitting(
        lambda b, address, x, y: emit.store(b, address, emit.to_bfloat_pairs(b, x, y))
    )


@intrinsic
def keep_first(_context, x, num_lanes, fill):
    """The first lanes of a vector, 0 to 16 of them, and `fill` in the others."""

    def keep(b, x, num_lanes, fill):
        mask = emit.first_lanes(b, num_lanes, LANES)
        return b.select(mask, x, emit.splat(b, fill, LANES))

    return F32(F32, types.int64, types.float32), _emitting(keep)


@intrinsic
def sum_f32(_context, x):
    """All lanes added, in any order."""
    return types.float32(F32), _emitting(lambda b, x: emit.reduce(b, "fadd", x))


@intrinsic
def max_f32(_context, x):
    """The largest lane; not for NaN."""
    return types.float32(F32), _emitting(lambda b, x: emit.reduce(b, "fmax", x))


@intrinsic
def to_i32(_context, x):
    """The nearest integers, ties to even."""
    return I32(F32), _emitting(emit.round_to_int)


# Arithmetic on int32.


@intrinsic
def to_f32(_context, x):
    return F32(I32), _emitting(emit.to_float)


@intrinsic
def add_i32(_context, x, y):
    return I32(I32, I32), _emitting(lambda b, x, y: b.add(x, y))


@intrinsic
def and_i32(_context, x, y):
    return I32(I32, I32), _emitting(lambda b, x, y: b.and_(x, y))


@intrinsic
def shift_right_i32(_context, x, num_bits):
    """Each lane as an unsigned number, shifted by 0 to 31 bits."""

    def shift(b, x, num_bits):
        return b.lshr(x, emit.splat(b, num_bits, LANES))

    return I32(I32, types.int32), _emitting(shift)


@intrinsic
def sum_i32(_context, x):
    """All lanes added."""
    return types.int32(I32), _emitting(lambda b, x: emit.reduce(b, "add", x))


@intrinsic
def dot_bytes(_context, total, codes, signed):
    """total + the four bytes of each lane of `codes` (unsigned) times those of `signed`; exact."""

    def dot(b, *vectors):
        return emit.dot(b, TIER, *vectors)

    return I32(I32, I32, I32), _emitting(dot)


# Threads.


@intrinsic
def atomic_add(_context, address, value):
    """Adds to an aligned 64-bit integer and gives its former value; orders all memory."""

    def add_(b, address, value):
        return b.atomic_rmw("add", b.inttoptr(address, _I64.as_pointer()), value, "seq_cst")

    return types.int64(_ADDRESS, types.int64), _emitting(add_)


@intrinsic
def atomic_load(_context, address):
    """An aligned 64-bit integer; what others wrote before they stored it is seen, too."""

    def load(b, address):
        return b.load_atomic(b.inttoptr(address, _I64.as_pointer()), "acquire", 8)

    return types.int64(_ADDRESS), _emitting(load)


@intrinsic
def atomic_store(_context, address, value):
    """Writes an aligned 64-bit integer after all that was written before."""

    def store(b, address, value):
        b.store_atomic(value, b.inttoptr(address, _I64.as_pointer()), "release", 8)

    return types.void(_ADDRESS, types.int64), _emitting(store)


@intrinsic
def pause(_context):
    """Tells the processor that a loop waits for memory to change."""
    return types.void(), _emitting(lambda b: emit.pause(b, TIER))


@intrinsic
def call_kernel(_context, function, arguments):
    """Calls a compiled kernel by its address.

    Which kernels exist need not be known when the caller is compiled.

    Args:
        function: uint64, the `address` of a `numba.cfunc` that takes int64s and returns nothing.
        arguments: a tuple of int64 or uint64, as many as the kernel takes.
    """
    if not isinstance(arguments, types.BaseTuple):
        return None

    def call(b, function, arguments):
        values = cgutils.unpack_tuple(b, arguments, len(b_arguments))
        kind = ir.FunctionType(ir.VoidType(), [_I64] * len(values))
        b.call(b.inttoptr(function, kind.as_pointer()), values)

    b_arguments = tuple(arguments)
    if any(item not in (types.int64, types.uint64) for item in b_arguments):
        return None
    return types.void(_ADDRESS, arguments), _emitting(call)

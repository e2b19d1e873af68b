"""Linear layers on packed tiles: y = x Wᵀ for a range of tiles and any number of tokens.

A kernel is compiled for each form of tiles that a model has, and called by its address: from the
step program through `simd.call_kernel`, from Python through `multiply`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from llvmlite import ir
from numba import cfunc, int64, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from octavo.engine.kernels.cpu import linear_emit, simd
from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.linear_planes import TileArguments
from octavo.engine.kernels.cpu.quantize_activations import quantize_rows
from octavo.engine.kernels.cpu.simd_types import I64
from octavo.engine.kernels.cpu.tiles import PackedMatrix
from octavo.engine.kernels.cpu.tiles_forms import FORMS, TILE_ROWS

_SIGNATURE = types.void(*[int64] * 12)
_CACHED_INPUT_BYTES = 320 << 10
"""Of activations that are multiplied by every tile before the next ones: they stay in L2."""


@intrinsic(prefer_literal=True)
def _multiply_tile(_context, form, tokens, places):
    """Multiplies one tile by all tokens.

    Args:
        form: name of a form, known when compiled.
        tokens: their number.
        places: what `TileArguments` has, in that order.
    """
    if not isinstance(form, types.StringLiteral):
        return None
    tile_form = FORMS[form.literal_value]
    signature = types.void(form, types.int64, types.UniTuple(types.int64, 8))

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        _, num_tokens, packed = arguments
        fixed = TileArguments(*cgutils.unpack_tuple(b, packed, 8))
        _emit_all_tokens(b, tile_form, num_tokens, fixed)
        return context.get_dummy_value()

    return signature, generate


def _emit_all_tokens(b: ir.IRBuilder, form: Any, num_tokens: Any, places: TileArguments) -> None:
    """Takes as many tokens at once as registers hold, then the rest in ever smaller parts."""
    widths = linear_emit.unrolled_tokens(simd.TIER, form)
    done = ir.Constant(I64, 0)
    for width in widths:
        rest = b.sub(num_tokens, done)
        size = ir.Constant(I64, width)
        # All of the widest fit in a loop; of each other there is at most one.
        count = b.udiv(rest, size)

        def some_tokens(
            index: Any,
            _values: list[Any],
            width: int = width,
            size: Any = size,
            done: Any = done,
        ) -> list[Any]:
            first = b.add(done, b.mul(index, size))
            linear_emit.multiply_tile(b, simd.TIER, form, width, _moved(b, places, first))
            return []

        emit.loop(b, count, [], some_tokens)
        done = b.add(done, b.mul(count, size))


def _moved(b: ir.IRBuilder, places: TileArguments, token: Any) -> TileArguments:
    return TileArguments(
        places.tile,
        places.num_columns,
        b.add(places.inputs, b.mul(token, places.input_stride)),
        places.input_stride,
        b.add(places.out, b.mul(token, places.out_stride)),
        places.out_stride,
        places.num_rows,
        places.group_size,
    )


def _kernel_of(form: str) -> Callable[..., None]:
    """The kernel of a form, not compiled; what it closes over is part of Numba's cache key."""

    def multiply_rows(
        tiles: int,
        tile_bytes: int,
        first_tile: int,
        last_tile: int,
        num_columns: int,
        num_rows: int,
        num_tokens: int,
        inputs: int,
        input_stride: int,
        out: int,
        out_stride: int,
        group_size: int,
    ) -> None:
        block = 8
        while 2 * block * input_stride <= _CACHED_INPUT_BYTES:
            block *= 2
        for start in range(0, num_tokens, block):
            count = min(block, num_tokens - start)
            for tile in range(first_tile, last_tile):
                row = tile * TILE_ROWS
                _multiply_tile(
                    form,
                    count,
                    (
                        tiles + tile * tile_bytes,
                        num_columns,
                        inputs + start * input_stride,
                        input_stride,
                        out + start * out_stride + row * 4,
                        out_stride,
                        num_rows - row,
                        group_size,
                    ),
                )

    return multiply_rows


@cache
def compile_kernel(form: str) -> Any:
    """The kernel of a form, compiled or read from Numba's cache: a `numba.cfunc`.

    Its `address` is for `simd.call_kernel`, with these int64 arguments:

        tiles          address of the first tile of the matrix
        tile_bytes     from one tile to the next
        first_tile     of those to multiply by, as threads share them
        last_tile      the one behind the last
        num_columns    of the packed matrix: a multiple of the form's `column_unit`
        num_rows       of the whole matrix; results of rows behind it are not written
        num_tokens
        inputs         address of the first token: quantised for forms that say so, else float32
        input_stride   bytes from one token to the next
        out            address of the first token's first row, float32
        out_stride     bytes from one token to the next
        group_size     columns of a scale group; used by forms that leave it open
    """
    return cfunc(_SIGNATURE, nopython=True, cache=True)(_kernel_of(form))


def multiply(matrix: PackedMatrix, activations: Tensor) -> Tensor:
    """Multiplies on this thread alone.

    Args:
        matrix: [num_rows, num_columns] in tiles.
        activations: [num_tokens, num_columns], float32, contiguous.

    Returns:
        [num_tokens, num_rows], float32.
    """
    num_tokens = len(activations)
    inputs = activations
    if matrix.form.is_quantized:
        inputs = quantize_rows(activations)
    out = torch.empty(num_tokens, matrix.num_rows)
    compile_kernel(matrix.form.name).ctypes(
        matrix.tiles.data_ptr(),
        matrix.tiles.shape[1],
        0,
        len(matrix.tiles),
        matrix.padded_columns,
        matrix.num_rows,
        num_tokens,
        inputs.data_ptr(),
        inputs.stride(0) * inputs.element_size(),
        out.data_ptr(),
        out.stride(0) * out.element_size(),
        matrix.group_size,
    )
    return out

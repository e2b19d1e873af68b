"""The matrices of a decoder as kernels multiply by them: dense, or packed."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol

import torch
from torch.nn import functional

from octavo.engine.kernels.triton.float8_linear import (
    float8_linear,
    has_float8_products,
    takes_float8,
)
from octavo.engine.kernels.triton.gated_activation import gated_activation
from octavo.engine.kernels.triton.gemv import ADD, GATED, InputNorm, gemv
from octavo.engine.kernels.triton.rms_norm import add_rms_norm
from octavo.engine.kernels.triton.tiled_gemm import scales_are_many, tiled_gemm
from octavo.engine.kernels.triton.tiled_gemv import tiled_gemv
from octavo.engine.kernels.triton.tiled_unpack import unpack_rows
from octavo.engine.kernels.triton.tiles import TiledWeights


class Matrix(Protocol):
    """A linear layer's weights on a device. Rows come as [num_rows, in_features]."""

    @property
    def out_features(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def kind(self) -> Hashable:
        """Equal where the same kernels multiply by them."""

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """[num_rows, out_features]."""

    def multiply_normed(self, row: torch.Tensor, norm: InputNorm) -> torch.Tensor:
        """One row, normalised first."""

    def multiply_add(self, row: torch.Tensor, hidden: torch.Tensor, scale: float) -> None:
        """One row; the product times the scale is added to [1, out_features] in place."""

    def multiply_gated(self, row: torch.Tensor, norm: InputNorm, activation: str) -> torch.Tensor:
        """One row, normalised first; gates above ups: activation(gate) * up."""


class DenseMatrix:
    """Weights in the type of the activations."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, overlap: bool = False
    ) -> None:
        """Args:
        weight: [out_features, in_features], contiguous.
        bias: [out_features].
        overlap: whether kernels may overlap with those before them.
        """
        self._weight = weight
        self._bias = bias
        self._overlap = overlap

    @property
    def out_features(self) -> int:
        return len(self._weight)

    @property
    def num_bytes(self) -> int:
        return self._weight.nbytes

    @property
    def kind(self) -> Hashable:
        return self._weight.shape, self._bias is None

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > 1:
            return functional.linear(rows, self._weight, self._bias)
        output = rows.new_empty(1, len(self._weight))
        gemv(rows, self._weight, output, bias=self._bias, overlap=self._overlap)
        return output

    def multiply_normed(self, row: torch.Tensor, norm: InputNorm) -> torch.Tensor:
        output = row.new_empty(1, len(self._weight))
        gemv(row, self._weight, output, bias=self._bias, norm=norm, overlap=self._overlap)
        return output

    def multiply_add(self, row: torch.Tensor, hidden: torch.Tensor, scale: float) -> None:
        gemv(
            row,
            self._weight,
            hidden,
            bias=self._bias,
            epilogue=ADD,
            residual_scale=scale,
            overlap=self._overlap,
        )

    def multiply_gated(self, row: torch.Tensor, norm: InputNorm, activation: str) -> torch.Tensor:
        output = row.new_empty(1, len(self._weight) // 2)
        gemv(
            row,
            self._weight,
            output,
            bias=self._bias,
            norm=norm,
            epilogue=GATED,
            activation=activation,
            overlap=self._overlap,
        )
        return output


_MAX_GEMM_INPUTS, _MAX_GEMM_INPUTS_OF_MANY_SCALES = 256, 128
"""With more rows the matrix is unpacked for torch's product: it is read once, not once a tile."""
_MAX_UNROUNDED_INPUTS = 64
"""With more rows inputs are rounded to 8-bit floats where they are meant to be. Fewer do not wait
for arithmetic, and stay as they are."""
_SLAB_ELEMENTS = 2**26
"""Values that are unpacked for that at a time; a captured step keeps room for them."""
_SLAB_ROWS = 256
"""Slabs are whole multiples of this, as the tiles of torch's product are."""


class TiledMatrix:
    """Packed weights in the kernels' layout; activations in bfloat16 or float16."""

    def __init__(
        self, weights: TiledWeights, bias: torch.Tensor | None = None, *, overlap: bool = False
    ) -> None:
        """Args:
        weights: the matrix.
        bias: [out_features].
        overlap: whether kernels may overlap with those before them.
        """
        self.weights = weights
        self._bias = bias
        self._max_gemm_inputs = _MAX_GEMM_INPUTS
        if scales_are_many(weights.form):
            self._max_gemm_inputs = _MAX_GEMM_INPUTS_OF_MANY_SCALES
        device = weights.words.device
        self._multiplies_float8 = takes_float8(weights) and has_float8_products(device)
        self._overlap = overlap

    @property
    def out_features(self) -> int:
        return self.weights.out_features

    @property
    def in_features(self) -> int:
        return self.weights.in_features

    @property
    def num_bytes(self) -> int:
        return self.weights.num_bytes

    @property
    def kind(self) -> Hashable:
        return self.weights.kind, self._bias is None

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        if self._rounds(rows):
            return float8_linear(rows, self.weights, self._bias)
        return self.multiply_into(rows, rows.new_empty(len(rows), self.out_features))

    def multiply_into(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """As `multiply`, into [num_rows, out_features], whose rows may lie apart."""
        weights, rows = self.weights, self._ordered(rows)
        if len(rows) == 1:
            tiled_gemv(rows, weights, output, bias=self._bias, overlap=self._overlap)
        elif self._rounds(rows):
            output.copy_(float8_linear(rows, weights, self._bias))
        elif len(rows) <= self._max_gemm_inputs:
            tiled_gemm(rows, weights, output, bias=self._bias)
        else:
            step = max(1, _SLAB_ELEMENTS // weights.in_features // _SLAB_ROWS) * _SLAB_ROWS
            for start in range(0, weights.out_features, step):
                stop = min(start + step, weights.out_features)
                dense = rows.new_empty(stop - start, weights.in_features)
                unpack_rows(weights, start, stop, dense)
                columns = output[:, start:stop]
                if self._bias is None:
                    torch.mm(rows, dense.T, out=columns)
                else:
                    torch.addmm(self._bias[start:stop], rows, dense.T, out=columns)
        return output

    def multiply_normed(self, row: torch.Tensor, norm: InputNorm) -> torch.Tensor:
        return self.multiply(_normed(row, norm, overlap=self._overlap))

    def multiply_add(self, row: torch.Tensor, hidden: torch.Tensor, scale: float) -> None:
        tiled_gemv(
            self._ordered(row),
            self.weights,
            hidden,
            bias=self._bias,
            epilogue=ADD,
            residual_scale=scale,
            overlap=self._overlap,
        )

    def multiply_gated(self, row: torch.Tensor, norm: InputNorm, activation: str) -> torch.Tensor:
        output = row.new_empty(1, self.out_features // 2)
        tiled_gemv(
            self._ordered(_normed(row, norm, overlap=self._overlap)),
            self.weights,
            output,
            bias=self._bias,
            epilogue=GATED,
            activation=activation,
            overlap=self._overlap,
        )
        return output

    def _rounds(self, rows: torch.Tensor) -> bool:
        # Torch's product has no other type.
        is_wide = len(rows) > _MAX_UNROUNDED_INPUTS and rows.dtype is torch.bfloat16
        return is_wide and self._multiplies_float8

    def _ordered(self, rows: torch.Tensor) -> torch.Tensor:
        order = self.weights.input_order
        return rows if order is None else rows.index_select(1, order)


class StackedMatrix:
    """Matrices above each other that lie in different forms, as one."""

    def __init__(self, parts: Sequence[TiledMatrix], *, overlap: bool = False) -> None:
        """Args:
        parts: from the top.
        overlap: whether kernels may overlap with those before them.
        """
        self._parts = tuple(parts)
        self._overlap = overlap

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self._parts)

    @property
    def in_features(self) -> int:
        return self._parts[0].in_features

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self._parts)

    @property
    def kind(self) -> Hashable:
        return tuple(part.kind for part in self._parts)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        output = rows.new_empty(len(rows), self.out_features)
        for part, columns in self._columns(output):
            part.multiply_into(rows, columns)
        return output

    def multiply_normed(self, row: torch.Tensor, norm: InputNorm) -> torch.Tensor:
        return self.multiply(_normed(row, norm, overlap=self._overlap))

    def multiply_add(self, row: torch.Tensor, hidden: torch.Tensor, scale: float) -> None:
        for part, columns in self._columns(hidden):
            part.multiply_add(row, columns, scale)

    def multiply_gated(self, row: torch.Tensor, norm: InputNorm, activation: str) -> torch.Tensor:
        gate_up = self.multiply_normed(row, norm)
        return gated_activation(gate_up, activation=activation, overlap=self._overlap)

    def _columns(self, output: torch.Tensor) -> Iterator[tuple[TiledMatrix, torch.Tensor]]:
        first = 0
        for part in self._parts:
            yield part, output[:, first : first + part.out_features]
            first += part.out_features


def _normed(row: torch.Tensor, norm: InputNorm, *, overlap: bool) -> torch.Tensor:
    return add_rms_norm(
        row,
        norm.weight,
        eps=norm.eps,
        offset=norm.offset,
        in_float32=norm.in_float32,
        overlap=overlap,
    )

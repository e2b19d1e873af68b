"""The matrices of a decoder as kernels multiply by them: dense, or packed in four bits."""

from typing import Protocol

import torch
from torch.nn import functional

from octavo.engine.kernels.triton.gemv import ADD, GATED, InputNorm, gemv
from octavo.engine.kernels.triton.int4 import Int4Weights, int4_gemv
from octavo.engine.kernels.triton.int4_gemm import int4_gemm, unpack_int4


class Matrix(Protocol):
    """A linear layer's weights on a device. Rows come as [num_rows, in_features]."""

    @property
    def out_features(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...

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


_MAX_GEMM_INPUTS = 256
"""With more rows the matrix is unpacked for torch's product: it is read once, not once a tile."""


class Int4Matrix:
    """Weights in four bits; activations in bfloat16."""

    def __init__(
        self, weights: Int4Weights, bias: torch.Tensor | None = None, *, overlap: bool = False
    ) -> None:
        """Args:
        weights: in the kernels' layout.
        bias: [out_features].
        overlap: whether kernels may overlap with those before them.
        """
        self._weights = weights
        self._bias = bias
        self._overlap = overlap

    @property
    def out_features(self) -> int:
        return self._weights.out_features

    @property
    def num_bytes(self) -> int:
        return self._weights.num_bytes

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        weights = self._weights
        if len(rows) == 1:
            output = rows.new_empty(1, weights.out_features)
            int4_gemv(rows, weights, output, bias=self._bias, overlap=self._overlap)
            return output
        if len(rows) <= _MAX_GEMM_INPUTS:
            return int4_gemm(rows, weights, bias=self._bias)
        dense = rows.new_empty(weights.out_features, weights.in_features)
        return functional.linear(rows, unpack_int4(weights, dense), self._bias)

    def multiply_normed(self, row: torch.Tensor, norm: InputNorm) -> torch.Tensor:
        output = row.new_empty(1, self._weights.out_features)
        int4_gemv(row, self._weights, output, bias=self._bias, norm=norm, overlap=self._overlap)
        return output

    def multiply_add(self, row: torch.Tensor, hidden: torch.Tensor, scale: float) -> None:
        int4_gemv(
            row,
            self._weights,
            hidden,
            bias=self._bias,
            epilogue=ADD,
            residual_scale=scale,
            overlap=self._overlap,
        )

    def multiply_gated(self, row: torch.Tensor, norm: InputNorm, activation: str) -> torch.Tensor:
        output = row.new_empty(1, self._weights.out_features // 2)
        int4_gemv(
            row,
            self._weights,
            output,
            bias=self._bias,
            norm=norm,
            epilogue=GATED,
            activation=activation,
            overlap=self._overlap,
        )
        return output

"""Emits sums of products of bytes in 32-bit integers, as each tier can add them."""

from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.simd_emit import Builder, Value
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import I16, I32

Parts = list[Value]
"""A number for each of sixteen rows, in as many vectors as the tier's registers need."""


class Dot:
    """Sums of products of bytes in 32-bit integers, one register for each part.

    AVX2 has only 16-bit sums of pairs, which saturate. Codes of few bits leave room to add some of
    them before they are widened: with 4 bits, 8 times 2 * 15 * 127 are below 2 ** 15.
    """

    def __init__(self, b: Builder, tier: Tier, bits: int, start: Parts | None, num_parts: int):
        self._b, self._tier = b, tier
        self._kind = emit.vector(I32, emit.register_lanes(tier))
        self._totals: list[Value | None] = [None] * num_parts if start is None else list(start)
        self._words: Parts = []
        self._num_words = 0
        self.factors: Parts = [emit.constant(emit.vector(I16, 16), 1)] * num_parts
        """AVX2: what sums of pairs are multiplied by when they are widened."""
        self._max_words = {4: 8, 5: 4, 6: 2}.get(bits, 1)

    def add(self, codes: Parts, activation: Value) -> None:
        b = self._b
        if self._tier is Tier.AVX2:
            pairs = [emit.pairs_of_bytes(b, code, activation) for code in codes]
            self._add_words(pairs)
            return
        dot = emit.dot_neon if self._tier is Tier.NEON else emit.dot_vnni
        zero = emit.constant(self._kind, 0)
        self._totals = [
            dot(b, zero if total is None else total, code, activation)
            for total, code in zip(self._totals, codes, strict=True)
        ]

    def add_signed(self, codes: Parts, magnitudes: Parts, activation: Value) -> None:
        """AVX2, for codes that are signed bytes: the sign moves over to the activation."""
        b = self._b
        pairs = [
            emit.pairs_of_bytes(b, magnitude, emit.with_sign_of(b, activation, code))
            for code, magnitude in zip(codes, magnitudes, strict=True)
        ]
        self._add_words(pairs)

    def _add_words(self, pairs: Parts) -> None:
        if self._words:
            pairs = [self._b.add(x, y) for x, y in zip(self._words, pairs, strict=True)]
        self._words = pairs
        self._num_words += 1
        if self._num_words == self._max_words:
            self._widen()

    def _widen(self) -> None:
        b = self._b
        wide = [
            emit.pairs_of_words(b, words, factor)
            for words, factor in zip(self._words, self.factors, strict=True)
        ]
        self._totals = [
            value if total is None else b.add(total, value)
            for total, value in zip(self._totals, wide, strict=True)
        ]
        self._words, self._num_words = [], 0

    @property
    def pending(self) -> Parts:
        """What is being added to."""
        return self._words or [total for total in self._totals if total is not None]

    @pending.setter
    def pending(self, values: Parts) -> None:
        if self._words:
            self._words = values
        elif values:
            self._totals = list(values)

    def move(self, by: Parts) -> None:
        """Adds integers to the sums."""
        self._totals = [
            value if total is None else self._b.add(total, value)
            for total, value in zip(self._totals, by, strict=True)
        ]

    def floats(self) -> Parts:
        """The sums as float32; exact but for those of Q6_K on AVX2, which may pass 2 ** 24."""
        if self._words:
            self._widen()
        return [emit.to_float(self._b, total) for total in self._totals]

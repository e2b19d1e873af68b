"""Emits the product of one tile of sixteen rows with a few tokens, for any form and tier.

The tokens are unrolled: each has its own accumulators in registers, and a vector of weights is
unpacked once for all of them. Registers are shorter than sixteen lanes on most tiers, so everything
that has a number for each row is a list of `parts`, one for each register.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llvmlite import ir

from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.simd_emit import Builder, Value
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import F32, I8, I16, I32, I64
from octavo.engine.kernels.cpu.tiles_forms import (
    ALIGNMENT,
    GROUP,
    GROUP_BYTES,
    MINUS_FIRST,
    MINUS_LAST,
    MINUS_TOTAL,
    SCALE,
    SUM,
    SUPER_GROUP,
    TILE_ROWS,
    Codes,
    Scales,
    TileForm,
)

Parts = list[Value]

PREFETCH_BYTES = 4096
"""How far ahead of its use memory is asked for."""
_STEPS = GROUP // 4
"""Vectors of four columns in a group."""
_CODE_BITS = {
    Codes.FOUR_BIT: 4,
    Codes.FIVE_BIT: 5,
    Codes.FIVE_BIT_K: 5,
    Codes.SIX_BIT: 6,
    Codes.SIGNED_BYTE: 8,
}


def unrolled_tokens(tier: Tier, form: TileForm) -> tuple[int, ...]:
    """How many tokens a tile is multiplied by at once: the most that registers hold, then less."""
    if tier is Tier.AVX512VNNI:
        return (8, 4, 2, 1)
    return (2, 1) if form.scales is Scales.K_HALVES and tier is not Tier.NEON else (4, 2, 1)


@dataclass(frozen=True, slots=True)
class TileArguments:
    """Where things are: 64-bit integers in LLVM's registers."""

    tile: Value
    """Address of the tile."""
    num_columns: Value
    """A multiple of the form's column unit."""
    inputs: Value
    """Address of the first token's activations."""
    input_stride: Value
    out: Value
    """Address of the first token's results for this tile."""
    out_stride: Value
    num_rows: Value
    """Rows of the matrix from this tile on; more than sixteen count as sixteen."""
    group_size: Value
    """Columns of a scale group, where the form leaves it open."""


def multiply_tile(
    b: Builder, tier: Tier, form: TileForm, num_tokens: int, arguments: TileArguments
) -> None:
    """Writes the products of the tile's rows with `num_tokens` rows of activations."""
    kernel = _TileKernel(b, tier, form, num_tokens, arguments)
    if not form.is_quantized:
        sums = kernel.float_sums()
    elif form.scales is Scales.FLOAT_AND_OFFSET:
        sums = kernel.wide_sums()
    elif form.scales in (Scales.K_AND_OFFSET, Scales.K_HALVES):
        sums = kernel.super_group_sums()
    else:
        sums = kernel.group_sums()
    kernel.store(sums)


class _Dot:
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
        b, ones = self._b, emit.constant(emit.vector(I16, 16), 1)
        wide = [emit.pairs_of_words(b, words, ones) for words in self._words]
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

    def floats(self) -> Parts:
        """The sums as float32; every one is exact, being below 2 ** 24."""
        if self._words:
            self._widen()
        return [emit.to_float(self._b, total) for total in self._totals]


class _TileKernel:
    def __init__(
        self,
        b: Builder,
        tier: Tier,
        form: TileForm,
        num_tokens: int,
        arguments: TileArguments,
    ) -> None:
        self._b, self._tier, self._form = b, tier, form
        self._arguments = arguments
        self._lanes = emit.register_lanes(tier)
        self._num_parts = TILE_ROWS // self._lanes
        self._tokens = range(num_tokens)
        self._inputs = self._strided(arguments.inputs, arguments.input_stride)
        self._planes = self._plane_addresses()

    # What a form's planes hold.

    def _plane_addresses(self) -> dict[str, Value]:
        b, place, places = self._b, self._arguments.tile, {}
        num_columns = self._arguments.num_columns
        for plane in self._form.planes:
            places[plane.name] = place
            size = self._arguments.group_size
            if plane.num_columns:
                size = ir.Constant(I64, plane.num_columns)
            groups = b.udiv(num_columns, size)
            place = b.add(place, b.mul(groups, ir.Constant(I64, plane.num_bytes)))
        return places

    def _at(self, plane: str, index: Value, num_bytes: int) -> Value:
        return self._b.add(self._planes[plane], self._b.mul(index, ir.Constant(I64, num_bytes)))

    def _strided(self, start: Value, stride: Value) -> list[Value]:
        b = self._b
        return [
            b.add(start, b.mul(stride, ir.Constant(I64, token))) if token else start
            for token in self._tokens
        ]

    def _load(self, address: Value, element: ir.Type) -> Parts:
        """Sixteen numbers of 32 bits."""
        kind = emit.vector(element, self._lanes)
        return [
            emit.load(self._b, emit.offset(self._b, address, 4 * self._lanes * part), kind)
            for part in range(self._num_parts)
        ]

    def _load_halves(self, address: Value) -> Parts:
        return [
            emit.load_half(
                self._b, emit.offset(self._b, address, 2 * self._lanes * part), self._lanes
            )
            for part in range(self._num_parts)
        ]

    def _load_bytes(self, address: Value) -> Parts:
        kind = emit.vector(I8, self._lanes)
        return [
            emit.load(self._b, emit.offset(self._b, address, self._lanes * part), kind)
            for part in range(self._num_parts)
        ]

    def _broadcast(self, address: Value, num_bytes: int, element: ir.Type) -> Value:
        place = emit.offset(self._b, address, num_bytes)
        return emit.splat(self._b, emit.load(self._b, place, element), self._lanes)

    def _integers(self, number: int) -> Value:
        return emit.constant(emit.vector(I32, self._lanes), number)

    def _zeros(self) -> Parts:
        return [emit.constant(emit.vector(F32, self._lanes), 0.0)] * self._num_parts

    # The codes of a group, four columns at a time.

    def _steps(self, group: Value) -> Iterator[tuple[int, Parts]]:
        """Pairs of a step, which is the first column / 4, and the codes of its four columns."""
        form = self._form
        if form.codes is Codes.SIGNED_BYTE:
            address = self._at("codes", group, 16 * GROUP)
            self._prefetch(address, 16 * GROUP)
            for step in range(_STEPS):
                yield step, self._load(emit.offset(self._b, address, 64 * step), I32)
            return
        address = self._at("codes", group, 8 * GROUP)
        self._prefetch(address, 8 * GROUP)
        high_bits = self._high_bits(group)
        mask, four = self._integers(0x0F0F0F0F), self._integers(4)
        for pair in range(_STEPS // 2):
            both = self._load(emit.offset(self._b, address, 64 * pair), I32)
            for step in (pair, pair + _STEPS // 2):
                shifted = both if step == pair else [self._b.lshr(x, four) for x in both]
                codes = [self._b.and_(x, mask) for x in shifted]
                if high_bits is not None:
                    codes = [self._b.or_(x, y) for x, y in zip(codes, high_bits(step), strict=True)]
                yield step, codes

    def _prefetch(self, address: Value, num_bytes: int) -> None:
        """Asks for the codes some groups further on; processors stop at the end of each page."""
        for line in range(0, num_bytes, ALIGNMENT):
            emit.prefetch(self._b, emit.offset(self._b, address, PREFETCH_BYTES + line))

    def _high_bits(self, group: Value) -> Callable[[int], Parts] | None:
        """For the codes of more than four bits: a function from the step to their upper bits."""
        b, codes = self._b, self._form.codes
        if codes is Codes.FIVE_BIT:
            plane = self._load(self._at("high", group, 64), I32)
            return lambda step: [self._moved(x, step, 4, 0x10101010) for x in plane]
        if codes is Codes.SIX_BIT:
            address = self._at("high", group, 128)
            halves = [self._load(emit.offset(b, address, 64 * half), I32) for half in (0, 1)]
            return lambda step: [
                self._moved(x, 2 * (step % 4), 4, 0x30303030) for x in halves[step // 4]
            ]
        if codes is Codes.FIVE_BIT_K:
            super_group = b.lshr(group, ir.Constant(I64, 3))
            address = self._at("high", super_group, 512)
            shift = b.trunc(b.and_(group, ir.Constant(I64, 7)), I32)
            shifts = emit.splat(b, shift, self._lanes)
            ones, four = self._integers(0x01010101), self._integers(4)

            def fifth_bits(step: int) -> Parts:
                plane = self._load(emit.offset(b, address, 64 * step), I32)
                return [b.shl(b.and_(b.lshr(x, shifts), ones), four) for x in plane]

            return fifth_bits
        return None

    def _moved(self, x: Value, source: int, target: int, mask: int) -> Value:
        """The bits from `source` on in each byte, moved to `target`; others masked away."""
        b = self._b
        if source > target:
            x = b.lshr(x, self._integers(source - target))
        elif source < target:
            x = b.shl(x, self._integers(target - source))
        return b.and_(x, self._integers(mask))

    # Integer products.

    def _dots(self, group: Value, num_halves: int) -> list[list[Parts]]:
        """For each token, the products of a group, or of its two halves, as float32."""
        b, form = self._b, self._form
        lines = [
            b.add(start, b.mul(group, ir.Constant(I64, GROUP_BYTES))) for start in self._inputs
        ]
        dots = [
            [self._new_dot(line, half, num_halves) for half in range(num_halves)] for line in lines
        ]
        is_signed = form.codes is Codes.SIGNED_BYTE
        flip = self._integers(-0x7F7F7F80)  # 0x80808080
        for step, codes in self._steps(group):
            magnitudes = [self._magnitude(x) for x in codes] if is_signed else []
            if is_signed and self._tier in (Tier.AVX512VNNI, Tier.AVXVNNI):
                codes = [b.xor(x, flip) for x in codes]
            for line, of_token in zip(lines, dots, strict=True):
                activation = self._broadcast(line, 4 * step, I32)
                dot = of_token[step * num_halves // _STEPS]
                if is_signed and self._tier is Tier.AVX2:
                    dot.add_signed(codes, magnitudes, activation)
                else:
                    dot.add(codes, activation)
            if len(lines) > 1:
                self._keep_order([dot for of_token in dots for dot in of_token])
        return [[dot.floats() for dot in of_token] for of_token in dots]

    def _keep_order(self, dots: list[_Dot]) -> None:
        pending = [value for dot in dots for value in dot.pending]
        kept = iter(emit.keep_order(self._b, self._tier, pending))
        for dot in dots:
            dot.pending = [next(kept) for _ in dot.pending]

    def _magnitude(self, x: Value) -> Value:
        """Of signed bytes, as unsigned ones; used on AVX2 alone."""
        if self._tier is not Tier.AVX2:
            return x
        bytes_ = emit.vector(I8, 4 * self._lanes)
        arguments = [self._b.bitcast(x, bytes_), ir.Constant(ir.IntType(1), 0)]
        return self._b.bitcast(emit.call(self._b, "llvm.abs.v32i8", bytes_, arguments), x.type)

    def _new_dot(self, line: Value, half: int, num_halves: int) -> _Dot:
        """Begins with -centre times the sum of the activations, so that codes count from there."""
        bits = _CODE_BITS[self._form.codes]
        centre = self._form.centre
        if bits == 8 and self._tier in (Tier.AVX512VNNI, Tier.AVXVNNI):
            # The instruction wants unsigned codes: 128 is added to them.
            centre = 128
        start = None
        if centre:
            place = MINUS_TOTAL if num_halves == 1 else (MINUS_FIRST, MINUS_LAST)[half]
            minus_sum = self._broadcast(line, place, I32)
            shift = self._integers(centre.bit_length() - 1)
            start = [self._b.shl(minus_sum, shift)] * self._num_parts
        return _Dot(self._b, self._tier, bits, start, self._num_parts)

    # Sums over all columns, for each token and part.

    def group_sums(self) -> list[Parts]:
        """For forms with float16 scales of each group."""
        has_offsets = self._form.scales is Scales.HALF_AND_OFFSET

        def add_group(group: Value, sums: list[Value]) -> list[Value]:
            scales = self._load_halves(self._at("scales", group, 32))
            offsets = self._load_halves(self._at("offsets", group, 32)) if has_offsets else None
            return self._add_scaled(group, scales, offsets, sums)

        b = self._b
        num_groups = b.lshr(self._arguments.num_columns, ir.Constant(I64, 5))
        return self._by_token(emit.loop(b, num_groups, self._all_zeros(), add_group))

    def _add_scaled(
        self, group: Value, scales: Parts, offsets: Parts | None, sums: list[Value]
    ) -> list[Value]:
        b = self._b
        results = []
        by_token = self._by_token(sums)
        for token, (products,) in enumerate(self._dots(group, 1)):
            line = b.add(self._inputs[token], b.mul(group, ir.Constant(I64, GROUP_BYTES)))
            factor = self._broadcast(line, SCALE, F32)
            values = [
                emit.fma(b, product, b.fmul(scale, factor), old)
                for product, scale, old in zip(products, scales, by_token[token], strict=True)
            ]
            if offsets is not None:
                total = self._broadcast(line, SUM, F32)
                values = [
                    emit.fma(b, offset, total, value)
                    for offset, value in zip(offsets, values, strict=True)
                ]
            results += values
        return results

    def wide_sums(self) -> list[Parts]:
        """For forms whose scales are for any multiple of 32 columns."""
        b = self._b
        groups_each = b.lshr(self._arguments.group_size, ir.Constant(I64, 5))
        zero = ir.Constant(F32, 0.0)

        def add_scale_group(index: Value, sums: list[Value]) -> list[Value]:
            first = b.mul(index, groups_each)

            def add_group(number: Value, inner: list[Value]) -> list[Value]:
                group = b.add(first, number)
                values = self._by_token(inner[len(self._tokens) :])
                new_totals, new_values = [], []
                for token, (products,) in enumerate(self._dots(group, 1)):
                    line = b.add(self._inputs[token], b.mul(group, ir.Constant(I64, GROUP_BYTES)))
                    total = emit.load(b, emit.offset(b, line, SUM), F32)
                    new_totals.append(b.fadd(inner[token], total))
                    factor = self._broadcast(line, SCALE, F32)
                    new_values += [
                        emit.fma(b, product, factor, old)
                        for product, old in zip(products, values[token], strict=True)
                    ]
                return new_totals + new_values

            start = [zero] * len(self._tokens) + self._all_zeros()
            inner = emit.loop(b, groups_each, start, add_group)
            scales = self._load(self._at("scales", index, 64), F32)
            offsets = self._load(self._at("offsets", index, 64), F32)
            results = []
            values = self._by_token(inner[len(self._tokens) :])
            for token, old in enumerate(self._by_token(sums)):
                total = emit.splat(b, inner[token], self._lanes)
                for part in range(self._num_parts):
                    value = emit.fma(b, scales[part], values[token][part], old[part])
                    results.append(emit.fma(b, offsets[part], total, value))
            return results

        num_scales = b.udiv(self._arguments.num_columns, self._arguments.group_size)
        return self._by_token(emit.loop(b, num_scales, self._all_zeros(), add_scale_group))

    def super_group_sums(self) -> list[Parts]:
        """For the K formats, whose scales are integers with a factor for 256 columns."""
        b = self._b
        has_halves = self._form.scales is Scales.K_HALVES

        def add_super_group(index: Value, sums: list[Value]) -> list[Value]:
            factors = self._at("factors", index, 32 if has_halves else 64)
            scale_factors = self._load_halves(factors)
            first = b.mul(index, ir.Constant(I64, SUPER_GROUP // GROUP))

            if has_halves:

                def add_group(number: Value, values: list[Value]) -> list[Value]:
                    return self._add_halves(b.add(first, number), scale_factors, values)

            else:
                place = emit.offset(b, factors, 32)
                offset_factors = [b.fneg(x) for x in self._load_halves(place)]

                def add_group(number: Value, values: list[Value]) -> list[Value]:
                    numbers = self._k_scales(index, number)
                    scales, offsets = (
                        [b.fmul(x, y) for x, y in zip(integers, floats, strict=True)]
                        for integers, floats in zip(
                            numbers, (scale_factors, offset_factors), strict=True
                        )
                    )
                    return self._add_scaled(b.add(first, number), scales, offsets, values)

            return emit.loop(b, ir.Constant(I64, SUPER_GROUP // GROUP), sums, add_group)

        num_super_groups = b.lshr(self._arguments.num_columns, ir.Constant(I64, 8))
        return self._by_token(emit.loop(b, num_super_groups, self._all_zeros(), add_super_group))

    def _k_scales(self, super_group: Value, number: Value) -> tuple[Parts, Parts]:
        """Scales and minimums of a group of Q4_K or Q5_K, as float32.

        Eight times 16 bytes: the scale in six bits, the lower two bits of the minimum on top; four
        times 16 bytes: the upper four bits of two groups' minimums.
        """
        b = self._b
        base = self._at("scales", super_group, 192)
        wide = emit.vector(I32, self._lanes)
        packed = self._load_bytes(b.add(base, b.mul(number, ir.Constant(I64, 16))))
        pair = b.lshr(number, ir.Constant(I64, 1))
        upper = self._load_bytes(
            b.add(emit.offset(b, base, 128), b.mul(pair, ir.Constant(I64, 16)))
        )
        is_odd = b.trunc(b.and_(number, ir.Constant(I64, 1)), I32)
        shifts = emit.splat(b, b.shl(is_odd, ir.Constant(I32, 2)), self._lanes)
        scales, minimums = [], []
        for low, high in zip(packed, upper, strict=True):
            bits = b.zext(low, wide)
            scales.append(emit.to_float(b, b.and_(bits, self._integers(63))))
            top = b.and_(b.lshr(b.zext(high, wide), shifts), self._integers(15))
            minimum = b.or_(b.lshr(bits, self._integers(6)), b.shl(top, self._integers(2)))
            minimums.append(emit.to_float(b, minimum))
        return scales, minimums

    def _add_halves(self, group: Value, factors: Parts, sums: list[Value]) -> list[Value]:
        """Adds a group of Q6_K: two scales, and one factor for 256 columns."""
        b = self._b
        address = self._at("scales", group, 32)
        wide = emit.vector(I32, self._lanes)
        scales = []
        for half in (0, 1):
            integers = self._load_bytes(emit.offset(b, address, 16 * half))
            scales.append(
                [
                    b.fmul(emit.to_float(b, b.sext(x, wide)), factor)
                    for x, factor in zip(integers, factors, strict=True)
                ]
            )
        results = []
        by_token = self._by_token(sums)
        for token, (first, last) in enumerate(self._dots(group, 2)):
            line = b.add(self._inputs[token], b.mul(group, ir.Constant(I64, GROUP_BYTES)))
            activation_scale = self._broadcast(line, SCALE, F32)
            for part in range(self._num_parts):
                value = b.fmul(first[part], scales[0][part])
                value = emit.fma(b, last[part], scales[1][part], value)
                results.append(emit.fma(b, value, activation_scale, by_token[token][part]))
        return results

    def float_sums(self) -> list[Parts]:
        """For weights in floating point; two columns at a time."""
        b = self._b
        bytes_each = self._form.planes[0].num_bytes
        # With few tokens, sums in one chain would wait for each other.
        num_chains = 2 if len(self._tokens) <= 2 else 1
        per_chain = len(self._tokens) * self._num_parts

        def add_column(index: Value, number: int, sums: list[Value]) -> list[Value]:
            place = b.add(b.shl(index, ir.Constant(I64, 1)), ir.Constant(I64, number))
            weights = self._load_column(self._at("codes", place, bytes_each))
            results = []
            for token, old in enumerate(self._by_token(sums)):
                address = b.add(self._inputs[token], b.shl(place, ir.Constant(I64, 2)))
                activation = self._broadcast(address, 0, F32)
                results += [
                    emit.fma(b, weight, activation, value)
                    for weight, value in zip(weights, old, strict=True)
                ]
            return results

        def add_pair(index: Value, sums: list[Value]) -> list[Value]:
            chains = [sums[:per_chain], sums[per_chain:]]
            chains[0] = add_column(index, 0, chains[0])
            chains[num_chains - 1] = add_column(index, 1, chains[num_chains - 1])
            return chains[0] + chains[1]

        num_pairs = b.lshr(self._arguments.num_columns, ir.Constant(I64, 1))
        sums = emit.loop(b, num_pairs, self._all_zeros() * num_chains, add_pair)
        if num_chains == 2:
            pairs = zip(sums[:per_chain], sums[per_chain:], strict=True)
            sums = [b.fadd(x, y) for x, y in pairs]
        return self._by_token(sums)

    def _load_column(self, address: Value) -> Parts:
        if self._form.codes is Codes.FLOAT32:
            return self._load(address, F32)
        if self._form.codes is Codes.FLOAT16:
            return self._load_halves(address)
        return [
            emit.load_bfloat(
                self._b, emit.offset(self._b, address, 2 * self._lanes * part), self._lanes
            )
            for part in range(self._num_parts)
        ]

    def _all_zeros(self) -> list[Value]:
        return self._zeros() * len(self._tokens)

    def _by_token(self, values: list[Value]) -> list[Parts]:
        return [
            values[self._num_parts * token : self._num_parts * (token + 1)]
            for token in self._tokens
        ]

    # Results.

    def store(self, sums: list[Parts]) -> None:
        """Writes sixteen rows, or those that the matrix has."""
        b = self._b
        targets = self._strided(self._arguments.out, self._arguments.out_stride)
        num_rows = self._arguments.num_rows
        is_whole = b.icmp_signed(">=", num_rows, ir.Constant(I64, TILE_ROWS))
        with b.if_else(is_whole, likely=True) as (whole, partial):
            with whole:
                for target, parts in zip(targets, sums, strict=True):
                    for part, value in enumerate(parts):
                        emit.store(b, emit.offset(b, target, 4 * self._lanes * part), value)
            with partial:
                for target, parts in zip(targets, sums, strict=True):
                    for part, value in enumerate(parts):
                        rest = b.sub(num_rows, ir.Constant(I64, self._lanes * part))
                        mask = emit.first_lanes(b, rest, self._lanes)
                        place = emit.offset(b, target, 4 * self._lanes * part)
                        emit.masked_store(b, place, value, mask)

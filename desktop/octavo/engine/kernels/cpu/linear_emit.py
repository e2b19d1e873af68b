"""Emits the product of one tile of sixteen rows with a few tokens, for any form and tier.

The tokens are unrolled: each has its own accumulators in registers, and a vector of weights is
unpacked once for all of them. Registers are shorter than sixteen lanes on most tiers, so everything
that has a number for each row is a list of `parts`, one for each register.
"""

from collections.abc import Sequence

from llvmlite import ir

from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.linear_dots import Dot, Parts
from octavo.engine.kernels.cpu.linear_planes import STEPS, Group, PlaneReader, TileArguments
from octavo.engine.kernels.cpu.simd_emit import Builder, Value
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import F32, I8, I16, I32, I64
from octavo.engine.kernels.cpu.tiles_forms import (
    GROUP,
    GROUP_BYTES,
    MINUS_FIRST,
    MINUS_HALVES,
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
    # Each half of a group of Q6_K has its own sums, but on AVX2, which adds them as integers.
    has_many_sums = form.scales is Scales.K_HALVES and tier is Tier.AVXVNNI
    return (2, 1) if has_many_sums else (4, 2, 1)


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


class _TileKernel(PlaneReader):
    """Sums over columns, with the numbers that `PlaneReader` finds."""

    def _zeros(self) -> Parts:
        return [emit.constant(emit.vector(F32, self.lanes), 0.0)] * self.num_parts

    # Integer products.

    def _dots(self, group: Group, num_halves: int) -> list[list[Parts]]:
        """For each token, the products of a group, or of its two halves, as float32."""
        form, lines = self.form, self._lines(group)
        dots = [
            [self._new_dot(line, half, num_halves) for half in range(num_halves)] for line in lines
        ]
        is_signed = form.codes is Codes.SIGNED_BYTE
        flip = self.integers(-0x7F7F7F80)  # 0x80808080
        for step, codes in self.steps(group):
            magnitudes = [self._magnitude(x) for x in codes] if is_signed else []
            if is_signed and self.tier in (Tier.AVX512VNNI, Tier.AVXVNNI):
                codes = [self.b.xor(x, flip) for x in codes]
            for line, of_token in zip(lines, dots, strict=True):
                activation = self.broadcast(line, 4 * step, I32)
                dot = of_token[step * num_halves // STEPS]
                if is_signed and self.tier is Tier.AVX2:
                    dot.add_signed(codes, magnitudes, activation)
                else:
                    dot.add(codes, activation)
            if len(lines) > 1:
                self._keep_order([dot for of_token in dots for dot in of_token])
        return [[dot.floats() for dot in of_token] for of_token in dots]

    def _lines(self, group: Group) -> list[Value]:
        """Where the activations of a group are, of each token."""
        b = self.b
        place = b.mul(group.number, ir.Constant(I64, GROUP_BYTES))
        return [b.add(start, place) for start in self.inputs]

    def _scaled_dots(self, group: Group, factors: Sequence[Parts]) -> list[Parts]:
        """AVX2, Q6_K: for each token, the products of a group times its two scales, as float32.

        Two steps at a time, as many as sums of 16 bits hold, one token after the other.

        Args:
            factors: the scale of each half, as pairs of i16.
        """
        b, lines = self.b, self._lines(group)
        bits = _CODE_BITS[self.form.codes]
        dots = [Dot(b, self.tier, bits, None, self.num_parts) for _ in lines]
        steps = self.steps(group)
        for (step, codes), (next_step, next_codes) in zip(steps, steps, strict=True):
            for line, dot in zip(lines, dots, strict=True):
                dot.factors = factors[step // (STEPS // 2)]
                dot.add(codes, self.broadcast(line, 4 * step, I32))
                dot.add(next_codes, self.broadcast(line, 4 * next_step, I32))
                if len(lines) > 1:
                    self._keep_order([dot])
        for line, dot in zip(lines, dots, strict=True):
            dot.move(self._scaled_centre(line, factors))
        return [dot.floats() for dot in dots]

    def _keep_order(self, dots: list[Dot]) -> None:
        pending = [value for dot in dots for value in dot.pending]
        kept = iter(emit.keep_order(self.b, self.tier, pending))
        for dot in dots:
            dot.pending = [next(kept) for _ in dot.pending]

    def _magnitude(self, x: Value) -> Value:
        """Of signed bytes, as unsigned ones; used on AVX2 alone."""
        if self.tier is not Tier.AVX2:
            return x
        bytes_ = emit.vector(I8, 4 * self.lanes)
        arguments = [self.b.bitcast(x, bytes_), ir.Constant(ir.IntType(1), 0)]
        return self.b.bitcast(emit.call(self.b, "llvm.abs.v32i8", bytes_, arguments), x.type)

    def _new_dot(self, line: Value, half: int, num_halves: int) -> Dot:
        """Begins with -centre times the sum of the activations, so that codes count from there."""
        bits = _CODE_BITS[self.form.codes]
        centre = self.form.centre
        if bits == 8 and self.tier in (Tier.AVX512VNNI, Tier.AVXVNNI):
            # The instruction wants unsigned codes: 128 is added to them.
            centre = 128
        start = None
        if centre:
            place = MINUS_TOTAL if num_halves == 1 else (MINUS_FIRST, MINUS_LAST)[half]
            minus_sum = self.broadcast(line, place, I32)
            shift = self.integers(centre.bit_length() - 1)
            start = [self.b.shl(minus_sum, shift)] * self.num_parts
        return Dot(self.b, self.tier, bits, start, self.num_parts)

    def _scaled_centre(self, line: Value, factors: Sequence[Parts]) -> Parts:
        """-centre times the sum of the activations of both halves, each times its scale."""
        b = self.b
        halves = b.bitcast(self.broadcast(line, MINUS_HALVES, I32), emit.vector(I16, 16))
        shift = self.integers(self.form.centre.bit_length() - 1)
        first = ir.Constant(emit.vector(I32, 16), [i if i % 2 == 0 else 16 + i for i in range(16)])
        return [
            b.shl(emit.pairs_of_words(b, b.shuffle_vector(x, y, first), halves), shift)
            for x, y in zip(*factors, strict=True)
        ]

    # Sums over all columns, for each token and part.

    def group_sums(self) -> list[Parts]:
        """For forms with float16 scales of each group."""
        has_offsets = self.form.scales is Scales.HALF_AND_OFFSET

        def add_group(number: Value, sums: list[Value]) -> list[Value]:
            scales = self._halves_of("scales", number)
            offsets = self._halves_of("offsets", number) if has_offsets else None
            return self._add_scaled(Group(number, number), scales, offsets, sums)

        b = self.b
        num_groups = b.lshr(self.arguments.num_columns, ir.Constant(I64, 5))
        return self._by_token(emit.loop(b, num_groups, self._all_zeros(), add_group))

    def _halves_of(self, plane: str, record: Value) -> Parts:
        address = self.at(plane, record)
        self.ask_ahead(address, 2 * TILE_ROWS)
        return self.load_halves(address)

    def _floats_of(self, plane: str, record: Value) -> Parts:
        address = self.at(plane, record)
        self.ask_ahead(address, 4 * TILE_ROWS)
        return self.load(address, F32)

    def _add_scaled(
        self, group: Group, scales: Parts, offsets: Parts | None, sums: list[Value]
    ) -> list[Value]:
        b = self.b
        results = []
        by_token = self._by_token(sums)
        lines = self._lines(group)
        for token, (products,) in enumerate(self._dots(group, 1)):
            line = lines[token]
            factor = self.broadcast(line, SCALE, F32)
            values = [
                emit.fma(b, product, b.fmul(scale, factor), old)
                for product, scale, old in zip(products, scales, by_token[token], strict=True)
            ]
            if offsets is not None:
                total = self.broadcast(line, SUM, F32)
                values = [
                    emit.fma(b, offset, total, value)
                    for offset, value in zip(offsets, values, strict=True)
                ]
            results += values
        return results

    def wide_sums(self) -> list[Parts]:
        """For forms whose scales are for any multiple of 32 columns."""
        b = self.b
        groups_each = b.lshr(self.arguments.group_size, ir.Constant(I64, 5))
        zero = ir.Constant(F32, 0.0)

        def add_scale_group(index: Value, sums: list[Value]) -> list[Value]:
            first = b.mul(index, groups_each)

            def add_group(number: Value, inner: list[Value]) -> list[Value]:
                group = Group(b.add(first, number), index, number)
                values, lines = self._by_token(inner[len(self.tokens) :]), self._lines(group)
                new_totals, new_values = [], []
                for token, (products,) in enumerate(self._dots(group, 1)):
                    line = lines[token]
                    total = emit.load(b, emit.offset(b, line, SUM), F32)
                    new_totals.append(b.fadd(inner[token], total))
                    factor = self.broadcast(line, SCALE, F32)
                    new_values += [
                        emit.fma(b, product, factor, old)
                        for product, old in zip(products, values[token], strict=True)
                    ]
                return new_totals + new_values

            start = [zero] * len(self.tokens) + self._all_zeros()
            inner = emit.loop(b, groups_each, start, add_group)
            scales = self._floats_of("scales", index)
            offsets = self._floats_of("offsets", index)
            results = []
            values = self._by_token(inner[len(self.tokens) :])
            for token, old in enumerate(self._by_token(sums)):
                total = emit.splat(b, inner[token], self.lanes)
                for part in range(self.num_parts):
                    value = emit.fma(b, scales[part], values[token][part], old[part])
                    results.append(emit.fma(b, offsets[part], total, value))
            return results

        num_scales = b.udiv(self.arguments.num_columns, self.arguments.group_size)
        return self._by_token(emit.loop(b, num_scales, self._all_zeros(), add_scale_group))

    def super_group_sums(self) -> list[Parts]:
        """For the K formats, whose scales are integers with a factor for 256 columns."""
        b = self.b
        has_halves = self.form.scales is Scales.K_HALVES

        def add_super_group(index: Value, sums: list[Value]) -> list[Value]:
            scale_factors = self._halves_of("factors", index)
            first = b.mul(index, ir.Constant(I64, SUPER_GROUP // GROUP))

            if has_halves and self.tier is Tier.AVX2:
                return self._super_group_of_halves(index, scale_factors, sums)
            if has_halves:

                def add_group(number: Value, values: list[Value]) -> list[Value]:
                    group = Group(b.add(first, number), index, number)
                    return self._add_halves(group, scale_factors, values)

            else:
                place = emit.offset(b, self.at("factors", index), 2 * TILE_ROWS)
                offset_factors = [b.fneg(x) for x in self.load_halves(place)]

                def add_group(number: Value, values: list[Value]) -> list[Value]:
                    numbers = self.k_scales(index, number)
                    scales, offsets = (
                        [b.fmul(x, y) for x, y in zip(integers, floats, strict=True)]
                        for integers, floats in zip(
                            numbers, (scale_factors, offset_factors), strict=True
                        )
                    )
                    group = Group(b.add(first, number), index, number)
                    return self._add_scaled(group, scales, offsets, values)

            return emit.loop(b, ir.Constant(I64, SUPER_GROUP // GROUP), sums, add_group)

        num_super_groups = b.lshr(self.arguments.num_columns, ir.Constant(I64, 8))
        return self._by_token(emit.loop(b, num_super_groups, self._all_zeros(), add_super_group))

    def _super_group_of_halves(
        self, record: Value, factors: Parts, sums: list[Value]
    ) -> list[Value]:
        """AVX2: adds 256 columns of Q6_K, with integers up to the factor for all."""
        b = self.b
        wide = emit.vector(I32, self.lanes)
        first = b.mul(record, ir.Constant(I64, SUPER_GROUP // GROUP))

        def add_group(number: Value, values: list[Value]) -> list[Value]:
            group = Group(b.add(first, number), record, number)
            address = self._scales_of_halves(group)
            scales = []
            for half in (0, 1):
                words = []
                for x in self.load_bytes(emit.offset(b, address, 16 * half)):
                    integers = b.sext(x, wide)
                    low = b.and_(integers, self.integers(0xFFFF))
                    both = b.or_(low, b.shl(integers, self.integers(16)))
                    words.append(b.bitcast(both, emit.vector(I16, 16)))
                scales.append(words)
            results = []
            by_token, lines = self._by_token(values), self._lines(group)
            for token, products in enumerate(self._scaled_dots(group, scales)):
                scale = self.broadcast(lines[token], SCALE, F32)
                results += [
                    emit.fma(b, product, scale, old)
                    for product, old in zip(products, by_token[token], strict=True)
                ]
            return results

        count = ir.Constant(I64, SUPER_GROUP // GROUP)
        values = emit.loop(b, count, self._all_zeros(), add_group)
        all_factors = factors * len(self.tokens)
        return [
            emit.fma(b, value, factor, old)
            for value, factor, old in zip(values, all_factors, sums, strict=True)
        ]

    def _scales_of_halves(self, group: Group) -> Value:
        """Where the two scales of a group of Q6_K are."""
        address = self.at("scales", group.record, group.index)
        self.ask_ahead(address, 2 * TILE_ROWS)
        return address

    def _add_halves(self, group: Group, factors: Parts, sums: list[Value]) -> list[Value]:
        """Adds a group of Q6_K: two scales, and one factor for 256 columns."""
        b = self.b
        address = self._scales_of_halves(group)
        wide = emit.vector(I32, self.lanes)
        scales = []
        for half in (0, 1):
            integers = self.load_bytes(emit.offset(b, address, 16 * half))
            scales.append(
                [
                    b.fmul(emit.to_float(b, b.sext(x, wide)), factor)
                    for x, factor in zip(integers, factors, strict=True)
                ]
            )
        results = []
        by_token, lines = self._by_token(sums), self._lines(group)
        for token, (first, last) in enumerate(self._dots(group, 2)):
            activation_scale = self.broadcast(lines[token], SCALE, F32)
            for part in range(self.num_parts):
                value = b.fmul(first[part], scales[0][part])
                value = emit.fma(b, last[part], scales[1][part], value)
                results.append(emit.fma(b, value, activation_scale, by_token[token][part]))
        return results

    def float_sums(self) -> list[Parts]:
        """For weights in floating point; two columns at a time."""
        b = self.b
        # With few tokens, sums in one chain would wait for each other.
        num_chains = 2 if len(self.tokens) <= 2 else 1
        per_chain = len(self.tokens) * self.num_parts

        def add_column(index: Value, number: int, sums: list[Value]) -> list[Value]:
            place = b.add(b.shl(index, ir.Constant(I64, 1)), ir.Constant(I64, number))
            weights = self.load_column(self.at("codes", place))
            results = []
            for token, old in enumerate(self._by_token(sums)):
                address = b.add(self.inputs[token], b.shl(place, ir.Constant(I64, 2)))
                activation = self.broadcast(address, 0, F32)
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

        num_pairs = b.lshr(self.arguments.num_columns, ir.Constant(I64, 1))
        sums = emit.loop(b, num_pairs, self._all_zeros() * num_chains, add_pair)
        if num_chains == 2:
            pairs = zip(sums[:per_chain], sums[per_chain:], strict=True)
            sums = [b.fadd(x, y) for x, y in pairs]
        return self._by_token(sums)

    def _all_zeros(self) -> list[Value]:
        return self._zeros() * len(self.tokens)

    def _by_token(self, values: list[Value]) -> list[Parts]:
        return [
            values[self.num_parts * token : self.num_parts * (token + 1)] for token in self.tokens
        ]

    # Results.

    def store(self, sums: list[Parts]) -> None:
        """Writes sixteen rows, or those that the matrix has."""
        b = self.b
        targets = self.strided(self.arguments.out, self.arguments.out_stride)
        num_rows = self.arguments.num_rows
        is_whole = b.icmp_signed(">=", num_rows, ir.Constant(I64, TILE_ROWS))
        with b.if_else(is_whole, likely=True) as (whole, partial):
            with whole:
                for target, parts in zip(targets, sums, strict=True):
                    for part, value in enumerate(parts):
                        emit.store(b, emit.offset(b, target, 4 * self.lanes * part), value)
            with partial:
                for target, parts in zip(targets, sums, strict=True):
                    for part, value in enumerate(parts):
                        rest = b.sub(num_rows, ir.Constant(I64, self.lanes * part))
                        mask = emit.first_lanes(b, rest, self.lanes)
                        place = emit.offset(b, target, 4 * self.lanes * part)
                        emit.masked_store(b, place, value, mask)

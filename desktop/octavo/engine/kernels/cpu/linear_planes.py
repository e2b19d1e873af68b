"""Emits what finds and unpacks the numbers in the planes of a tile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llvmlite import ir

from octavo.engine.kernels.cpu import simd_emit as emit
from octavo.engine.kernels.cpu.linear_dots import Parts
from octavo.engine.kernels.cpu.simd_emit import Builder, Value
from octavo.engine.kernels.cpu.simd_tier import Tier
from octavo.engine.kernels.cpu.simd_types import F32, I8, I32, I64
from octavo.engine.kernels.cpu.tiles_forms import (
    ALIGNMENT,
    GROUP,
    TILE_ROWS,
    Codes,
    Scales,
    TileForm,
)

PREFETCH_BYTES = 4096
"""How far ahead of its use memory is asked for."""
STEPS = GROUP // 4
"""Vectors of four columns in a group."""


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


class PlaneReader:
    """Reads one tile for a number of tokens."""

    def __init__(
        self,
        b: Builder,
        tier: Tier,
        form: TileForm,
        num_tokens: int,
        arguments: TileArguments,
    ) -> None:
        self.b, self.tier, self.form = b, tier, form
        self.arguments = arguments
        self.lanes = emit.register_lanes(tier)
        self.num_parts = TILE_ROWS // self.lanes
        self.tokens = range(num_tokens)
        self.inputs = self.strided(arguments.inputs, arguments.input_stride)
        self._planes = self._plane_addresses()
        self._codes_to_next_tile = self._distance_of_codes()

    def _plane_addresses(self) -> dict[str, Value]:
        b, place, places = self.b, self.arguments.tile, {}
        num_columns = self.arguments.num_columns
        for plane in self.form.planes:
            places[plane.name] = place
            size = self.arguments.group_size
            if plane.num_columns:
                size = ir.Constant(I64, plane.num_columns)
            groups = b.udiv(num_columns, size)
            place = b.add(place, b.mul(groups, ir.Constant(I64, plane.num_bytes)))
        size = emit.offset(b, b.sub(place, self.arguments.tile), ALIGNMENT - 1)
        self._tile_bytes = b.and_(size, ir.Constant(I64, -ALIGNMENT))
        return places

    def _distance_of_codes(self) -> Value:
        """Bytes from the end of a tile's codes to the beginning of the next tile's."""
        b = self.b
        others = [plane for plane in self.form.planes if plane.name != "codes"]
        if not others:
            return ir.Constant(I64, 0)
        return b.sub(self._tile_bytes, b.sub(self._planes[others[0].name], self._planes["codes"]))

    def at(self, plane: str, index: Value, num_bytes: int) -> Value:
        return self.b.add(self._planes[plane], self.b.mul(index, ir.Constant(I64, num_bytes)))

    def strided(self, start: Value, stride: Value) -> list[Value]:
        b = self.b
        return [
            b.add(start, b.mul(stride, ir.Constant(I64, token))) if token else start
            for token in self.tokens
        ]

    def load(self, address: Value, element: ir.Type) -> Parts:
        """Sixteen numbers of 32 bits."""
        kind = emit.vector(element, self.lanes)
        return [
            emit.load(self.b, emit.offset(self.b, address, 4 * self.lanes * part), kind)
            for part in range(self.num_parts)
        ]

    def load_halves(self, address: Value) -> Parts:
        return [
            emit.load_half(self.b, emit.offset(self.b, address, 2 * self.lanes * part), self.lanes)
            for part in range(self.num_parts)
        ]

    def load_bytes(self, address: Value) -> Parts:
        kind = emit.vector(I8, self.lanes)
        return [
            emit.load(self.b, emit.offset(self.b, address, self.lanes * part), kind)
            for part in range(self.num_parts)
        ]

    def load_column(self, address: Value) -> Parts:
        if self.form.codes is Codes.FLOAT32:
            return self.load(address, F32)
        if self.form.codes is Codes.FLOAT16:
            return self.load_halves(address)
        return [
            emit.load_bfloat(
                self.b, emit.offset(self.b, address, 2 * self.lanes * part), self.lanes
            )
            for part in range(self.num_parts)
        ]

    def broadcast(self, address: Value, num_bytes: int, element: ir.Type) -> Value:
        place = emit.offset(self.b, address, num_bytes)
        return emit.splat(self.b, emit.load(self.b, place, element), self.lanes)

    def integers(self, number: int) -> Value:
        return emit.constant(emit.vector(I32, self.lanes), number)

    def steps(self, group: Value) -> Iterator[tuple[int, Parts]]:
        """Pairs of a step, which is the first column / 4, and the codes of its four columns."""
        form = self.form
        if form.codes is Codes.SIGNED_BYTE:
            address = self.at("codes", group, 16 * GROUP)
            self._prefetch_codes(group, 16 * GROUP)
            for step in range(STEPS):
                yield step, self.load(emit.offset(self.b, address, 64 * step), I32)
            return
        address = self.at("codes", group, 8 * GROUP)
        self._prefetch_codes(group, 8 * GROUP)
        high_bits = self._high_bits(group)
        mask, four = self.integers(0x0F0F0F0F), self.integers(4)
        # One vector has two steps; halves with scales of their own want all steps of one first.
        order = [step for pair in range(4) for step in (pair, pair + 4)]
        for step in range(STEPS) if form.scales is Scales.K_HALVES else order:
            codes = self.load(emit.offset(self.b, address, 64 * (step % 4)), I32)
            if step >= 4:
                codes = [self.b.lshr(x, four) for x in codes]
            codes = [self.b.and_(x, mask) for x in codes]
            if high_bits is not None:
                codes = [self.b.or_(x, y) for x, y in zip(codes, high_bits(step), strict=True)]
            yield step, codes

    def _prefetch_codes(self, group: Value, num_bytes: int) -> None:
        """Asks for the codes some groups further on, also those of the next tile.

        Processors look ahead, too, but stop at the end of each page.
        """
        b = self.b
        further = b.add(group, ir.Constant(I64, PREFETCH_BYTES // num_bytes))
        num_groups = b.lshr(self.arguments.num_columns, ir.Constant(I64, 5))
        nothing = ir.Constant(I64, 0)
        is_behind = b.icmp_signed(">=", further, num_groups)
        skipped = b.select(is_behind, self._codes_to_next_tile, nothing)
        address = b.add(self.at("codes", further, num_bytes), skipped)
        for line in range(0, num_bytes, ALIGNMENT):
            emit.prefetch(b, emit.offset(b, address, line))

    def prefetch_next(self, address: Value) -> None:
        """Asks for what lies at the same place of the next tile: every plane is a stream anew."""
        emit.prefetch(self.b, self.b.add(address, self._tile_bytes))

    def _high_bits(self, group: Value) -> Callable[[int], Parts] | None:
        """For the codes of more than four bits: a function from the step to their upper bits."""
        b, codes = self.b, self.form.codes
        if codes is Codes.FIVE_BIT:
            address = self.at("high", group, 64)
            self.prefetch_next(address)
            plane = self.load(address, I32)
            return lambda step: [self._moved(x, step, 4, 0x10101010) for x in plane]
        if codes is Codes.SIX_BIT:
            address = self.at("high", group, 128)
            for half in (0, 1):
                self.prefetch_next(emit.offset(b, address, 64 * half))
            halves = [self.load(emit.offset(b, address, 64 * half), I32) for half in (0, 1)]
            return lambda step: [
                self._moved(x, 2 * (step % 4), 4, 0x30303030) for x in halves[step // 4]
            ]
        if codes is Codes.FIVE_BIT_K:
            super_group = b.lshr(group, ir.Constant(I64, 3))
            address = self.at("high", super_group, 512)
            in_group = b.shl(b.and_(group, ir.Constant(I64, 7)), ir.Constant(I64, 6))
            self.prefetch_next(b.add(address, in_group))
            shift = b.trunc(b.and_(group, ir.Constant(I64, 7)), I32)
            shifts = emit.splat(b, shift, self.lanes)
            ones, four = self.integers(0x01010101), self.integers(4)

            def fifth_bits(step: int) -> Parts:
                plane = self.load(emit.offset(b, address, 64 * step), I32)
                return [b.shl(b.and_(b.lshr(x, shifts), ones), four) for x in plane]

            return fifth_bits
        return None

    def _moved(self, x: Value, source: int, target: int, mask: int) -> Value:
        """The bits from `source` on in each byte, moved to `target`; others masked away."""
        b = self.b
        if source > target:
            x = b.lshr(x, self.integers(source - target))
        elif source < target:
            x = b.shl(x, self.integers(target - source))
        return b.and_(x, self.integers(mask))

    def k_scales(self, super_group: Value, number: Value) -> tuple[Parts, Parts]:
        """Scales and minimums of a group of Q4_K or Q5_K, as float32.

        Eight times 16 bytes: the scale in six bits, the lower two bits of the minimum on top; four
        times 16 bytes: the upper four bits of two groups' minimums.
        """
        b = self.b
        base = self.at("scales", super_group, 192)
        self.prefetch_next(b.add(base, b.mul(number, ir.Constant(I64, 24))))
        wide = emit.vector(I32, self.lanes)
        packed = self.load_bytes(b.add(base, b.mul(number, ir.Constant(I64, 16))))
        pair = b.lshr(number, ir.Constant(I64, 1))
        upper = self.load_bytes(b.add(emit.offset(b, base, 128), b.mul(pair, ir.Constant(I64, 16))))
        is_odd = b.trunc(b.and_(number, ir.Constant(I64, 1)), I32)
        shifts = emit.splat(b, b.shl(is_odd, ir.Constant(I32, 2)), self.lanes)
        scales, minimums = [], []
        for low, high in zip(packed, upper, strict=True):
            bits = b.zext(low, wide)
            scales.append(emit.to_float(b, b.and_(bits, self.integers(63))))
            top = b.and_(b.lshr(b.zext(high, wide), shifts), self.integers(15))
            minimum = b.or_(b.lshr(bits, self.integers(6)), b.shl(top, self.integers(2)))
            minimums.append(emit.to_float(b, minimum))
        return scales, minimums

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
    SCALE_GROUP,
    TILE_ROWS,
    Codes,
    Scales,
    TileForm,
)

BYTES_AHEAD, BYTES_AHEAD_OF_FASTEST = 5120, 2048
"""How far ahead of its use memory is asked for, in the order in which it is read; and by one token
on AVX-512, where a core reads as fast as memory gives anyway."""
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


@dataclass(frozen=True, slots=True)
class Group:
    """Which 32 columns: 64-bit integers in LLVM's registers."""

    number: Value
    """Of all in the row."""
    record: Value
    index: Value | None = None
    """In its record, where that has several."""


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
        # How long a record is depends on the size of scale groups, what lies where in it does not.
        self._places = form.places(GROUP)
        self._sizes = {plane.name: plane.num_bytes for plane in form.planes}
        self._record_bytes = self._bytes_of_record()

    def _bytes_of_record(self) -> Value:
        b, form = self.b, self.form
        known = ir.Constant(I64, self._places["end"])
        if form.record_columns != SCALE_GROUP:
            return known
        groups = b.lshr(self.arguments.group_size, ir.Constant(I64, 5))
        more = b.sub(groups, ir.Constant(I64, 1))
        return b.add(known, b.mul(more, ir.Constant(I64, form.group_bytes)))

    def at(self, plane: str, record: Value, index: Value | None = None) -> Value:
        """The address of a plane's numbers in a record.

        Args:
            index: of which group in the record, where it has numbers for several.
        """
        b = self.b
        start = b.add(self.arguments.tile, b.mul(record, self._record_bytes))
        place = emit.offset(b, start, self._places[plane])
        if index is None:
            return place
        return b.add(place, b.mul(index, ir.Constant(I64, self.form.group_bytes)))

    def ask_ahead(self, address: Value, num_bytes: int) -> None:
        """Asks for what is read some time after what lies here.

        Processors look ahead, too, but stop at the end of each page.
        """
        is_fastest = self.tier is Tier.AVX512VNNI and len(self.tokens) == 1
        distance = BYTES_AHEAD_OF_FASTEST if is_fastest else BYTES_AHEAD
        for line in range(0, num_bytes, ALIGNMENT):
            emit.prefetch(self.b, emit.offset(self.b, address, distance + line))

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

    def steps(self, group: Group) -> Iterator[tuple[int, Parts]]:
        """Pairs of a step, which is the first column / 4, and the codes of its four columns."""
        form = self.form
        address = self.at("codes", group.record, group.index)
        self.ask_ahead(address, self._sizes["codes"])
        if form.codes is Codes.SIGNED_BYTE:
            for step in range(STEPS):
                yield step, self.load(emit.offset(self.b, address, 64 * step), I32)
            return
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

    def _high_bits(self, group: Group) -> Callable[[int], Parts] | None:
        """For the codes of more than four bits: a function from the step to their upper bits."""
        b, codes = self.b, self.form.codes
        if codes is Codes.FIVE_BIT:
            address = self.at("high", group.record)
            self.ask_ahead(address, 64)
            plane = self.load(address, I32)
            return lambda step: [self._moved(x, step, 4, 0x10101010) for x in plane]
        if codes is Codes.SIX_BIT:
            address = self.at("high", group.record, group.index)
            self.ask_ahead(address, 128)
            halves = [self.load(emit.offset(b, address, 64 * half), I32) for half in (0, 1)]
            return lambda step: [
                self._moved(x, 2 * (step % 4), 4, 0x30303030) for x in halves[step // 4]
            ]
        if codes is Codes.FIVE_BIT_K:
            address = self.at("high", group.record)
            self.ask_ahead(b.add(address, b.shl(group.index, ir.Constant(I64, 6))), 64)
            shifts = emit.splat(b, b.trunc(group.index, I32), self.lanes)
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

    def k_scales(self, record: Value, number: Value) -> tuple[Parts, Parts]:
        """Scales and minimums of a group of Q4_K or Q5_K, as float32.

        Eight times 16 bytes: the scale in six bits, the lower two bits of the minimum on top; four
        times 16 bytes: the upper four bits of two groups' minimums.
        """
        b = self.b
        base = self.at("scales", record)
        self.ask_ahead(b.add(base, b.mul(number, ir.Constant(I64, 24))), 24)
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

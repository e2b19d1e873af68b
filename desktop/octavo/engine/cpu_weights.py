"""Matrices of a decoder as the CPU's kernels multiply by them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from octavo.engine.kernels.cpu.tiles import PackedMatrix
from octavo.engine.kernels.cpu.tiles_forms import FORMS, TILE_ROWS
from octavo.engine.kernels.cpu.tiles_pack import (
    PACKABLE_GGUF_TYPES,
    pack_affine,
    pack_floats,
    pack_gguf,
)
from octavo.engine.layers.moe import Experts
from octavo.engine.quantization.affine import affine_groups, is_affine
from octavo.engine.quantization.packed import PackedBlocks, PackedWeight
from octavo.engine.tile_store import StoredMatrix, TileFile
from octavo.engine.weights.destinations import Slot


class HasMatrix(Protocol):
    """A linear layer or an embedding."""

    weight: torch.nn.Parameter
    packed: PackedWeight | None


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix in tiles; the outputs of several layers may lie side by side in it."""

    packed: PackedMatrix

    @classmethod
    def of_layers(cls, layers: Sequence[HasMatrix]) -> "list[Matrix]":
        """Packs the matrices of layers with the same inputs; neighbours of a kind become one.

        The layers then have their tiles in place of what was loaded.
        """
        matrices: list[Matrix] = []
        owners: list[list[HasMatrix]] = []
        for layer in layers:
            packed = pack(layer.weight.detach() if layer.packed is None else layer.packed)
            if matrices and _can_join(matrices[-1].packed, packed):
                packed = _join(matrices.pop().packed, packed)
                owners[-1].append(layer)
            else:
                owners.append([layer])
            matrices.append(cls(packed))
        for matrix, some in zip(matrices, owners, strict=True):
            sizes = [len(layer.weight) for layer in some]
            for layer, tiled in zip(some, _split(matrix.packed, sizes), strict=True):
                layer.packed = tiled
                layer.weight = torch.nn.Parameter(layer.weight.to("meta"), requires_grad=False)
        return matrices

    @classmethod
    def joined(cls, experts: Experts, names: Sequence[str], expert: int) -> "Matrix":
        """Packs matrices of one expert, which are stored alike, into one."""
        first, *others = parts = [pack(experts.matrix(name, expert)) for name in names]
        for other in others:
            assert _can_join(first, other)
            first = _join(first, other)
        tiled = _split(first, [part.num_rows for part in parts])
        for name, one in zip(names, tiled, strict=True):
            experts.put(name, expert, one)
        return cls(first)


@dataclass(frozen=True, slots=True, eq=False)
class TiledWeight(PackedWeight):
    """A matrix in tiles, which only the kernels multiply by."""

    matrix: PackedMatrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.num_rows, self.matrix.num_columns

    @property
    def device(self) -> torch.device:
        return self.matrix.tiles.device

    @property
    def num_bytes(self) -> int:
        return self.matrix.tiles.nbytes

    @property
    def format_name(self) -> str:
        return self.matrix.form.name

    def rows(self, start: int, stop: int) -> "TiledWeight":
        assert start % TILE_ROWS == 0
        tiles = self.matrix.tiles[start // TILE_ROWS : -(-stop // TILE_ROWS)]
        return TiledWeight(replace(self.matrix, tiles=tiles, num_rows=stop - start))

    def unpack_rows(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        return self.select(torch.arange(start, stop), dtype)

    def select(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        tiles = self.matrix.tiles.index_select(0, indices // TILE_ROWS)
        chosen = replace(self.matrix, tiles=tiles, num_rows=TILE_ROWS * len(tiles))
        places = torch.arange(len(tiles)) * TILE_ROWS + indices % TILE_ROWS
        return chosen.unpack()[places].to(dtype)

    def is_surely_finite(self, _dtype: torch.dtype) -> bool:
        """It was looked at when it was loaded."""
        return True


def put_tiles(slots: Mapping[str, Slot], file: TileFile) -> bool:
    """Gives layers their tiles out of a file.

    False, and nothing is changed, if the file has other matrices than they.
    """
    if slots.keys() != file.matrices.keys():
        return False
    memory = torch.from_numpy(file.memory)
    for name, slot in slots.items():
        stored, start = file.matrices[name], file.offsets[name]
        tiles = memory[start : start + stored.num_bytes].view(stored.num_tiles, stored.tile_bytes)
        matrix = PackedMatrix(
            FORMS[stored.form], tiles, stored.num_rows, stored.num_columns, stored.group_size
        )
        slot.layer.put(slot.parameter, slot.index, TiledWeight(matrix))
    return True


def take_tiles(
    slots: Mapping[str, Slot],
) -> dict[str, tuple[StoredMatrix, npt.NDArray[np.uint8]]] | None:
    """What is to be written of packed layers, in the order in which they lie in memory.

    None if one of them has no tiles: torch reads it, and the file is needed at each load.
    """
    found: dict[str, PackedMatrix] = {}
    for name, slot in slots.items():
        weight = slot.matrix()
        if not isinstance(weight, TiledWeight):
            return None
        found[name] = weight.matrix
    in_order = sorted(found.items(), key=lambda item: item[1].tiles.data_ptr())
    return {
        name: (
            StoredMatrix(
                matrix.form.name,
                matrix.num_rows,
                matrix.num_columns,
                matrix.group_size,
                *matrix.tiles.shape,
            ),
            matrix.tiles.numpy(),
        )
        for name, matrix in in_order
    }


def tiles_version() -> str:
    """Changes with the code that decides what tiles hold; 16 hexadecimal digits."""
    folder = Path(__file__).parent
    sources = [
        Path(__file__),
        *sorted((folder / "kernels" / "cpu").glob("tiles*.py")),
        *sorted((folder / "weights").glob("*.py")),
        *sorted((folder / "quantization").glob("*.py")),
    ]
    digest = hashlib.blake2b(digest_size=8)
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def has_tiles(weight: torch.Tensor | PackedWeight) -> bool:
    """Whether `pack` can take a matrix."""
    if isinstance(weight, PackedBlocks) and weight.ggml_type in PACKABLE_GGUF_TYPES:
        return True
    return isinstance(weight, torch.Tensor) or is_affine(weight)


def pack(weight: torch.Tensor | PackedWeight) -> PackedMatrix:
    """Packs one matrix into tiles, with as little loss as there is a form for."""
    if isinstance(weight, TiledWeight):
        return weight.matrix
    if isinstance(weight, torch.Tensor):
        return pack_floats(weight)
    if isinstance(weight, PackedBlocks) and weight.ggml_type in PACKABLE_GGUF_TYPES:
        return pack_gguf(weight.blocks, weight.ggml_type, weight.shape[1])
    groups = affine_groups(weight, 0, weight.shape[0])
    if groups is None or groups.input_order is not None:
        return pack_floats(weight.unpack(torch.float16))
    return pack_affine(groups.codes, groups.bits, groups.group_size, groups.scales, groups.offsets)


def _can_join(first: PackedMatrix, second: PackedMatrix) -> bool:
    return (
        first.form is second.form
        and first.group_size == second.group_size
        and first.num_columns == second.num_columns
        and first.num_rows % TILE_ROWS == 0
    )


def _join(first: PackedMatrix, second: PackedMatrix) -> PackedMatrix:
    num_tiles, tile_bytes = len(first.tiles) + len(second.tiles), first.tiles.shape[1]
    memory = first.tiles.untyped_storage()
    if (
        memory.data_ptr() == second.tiles.untyped_storage().data_ptr()
        and first.tiles.data_ptr() + first.tiles.nbytes == second.tiles.data_ptr()
    ):
        # Out of a file, where they lie side by side already.
        tiles = first.tiles.as_strided((num_tiles, tile_bytes), (tile_bytes, 1))
    else:
        tiles = torch.cat([first.tiles, second.tiles])
    return replace(first, tiles=tiles, num_rows=first.num_rows + second.num_rows)


def _split(packed: PackedMatrix, sizes: Sequence[int]) -> list[TiledWeight]:
    """The parts of a joined matrix, in its memory; all but the last have whole tiles."""
    whole, parts, start = TiledWeight(packed), [], 0
    for size in sizes:
        parts.append(whole.rows(start, start + size))
        start += size
    return parts

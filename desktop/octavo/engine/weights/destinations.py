"""Where each tensor of a checkpoint goes, under whatever name its family stores it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from octavo.engine.quantization.packed import KeepsPacked, PackedWeight
from octavo.engine.weights.pieces import PackedTarget

_STACKED = re.compile(r"(.+\.mlp\.experts)\.((?:gate|up|down)_proj)")
_EXPERT = re.compile(r"(.+)\.block_sparse_moe\.experts\.([0-9]+)\.(w[123])\.weight")
_EXPERT_PARTS: Mapping[str, str] = MappingProxyType(
    {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
)
_ROUTER = re.compile(r"\.(block_sparse_moe\.gate|mlp\.router)\.")
_MERGED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        ".self_attn.qkv_proj.": (
            ".self_attn.q_proj.",
            ".self_attn.k_proj.",
            ".self_attn.v_proj.",
        ),
        ".mlp.gate_up_proj.": (".mlp.gate_proj.", ".mlp.up_proj."),
    }
)
"""Matrices that some families store as one, and their rows in order."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One matrix of a layer that keeps it packed."""

    layer: KeepsPacked
    parameter: str
    index: int
    num_rows: int

    def matrix(self) -> Tensor | PackedWeight:
        """What the layer has now."""
        return self.layer.matrix(self.parameter, self.index)


@dataclass(frozen=True, slots=True)
class PackedPlace:
    """The layers that share out one tensor of a checkpoint, which they keep as it is stored."""

    slots: tuple[Slot, ...]
    """In the order of the tensor's rows."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def target(self) -> PackedTarget:
        """What is to be read."""
        return PackedTarget(self.shape, self.dtype, self.slots[0].layer.device)

    def fill(self, matrix: Tensor | PackedWeight) -> None:
        """Gives each layer its rows.

        Args:
            matrix: [rows of all slots, columns].
        """
        start = 0
        for slot in self.slots:
            stop = start + slot.num_rows
            rows = matrix[start:stop] if isinstance(matrix, Tensor) else matrix.rows(start, stop)
            slot.layer.put(slot.parameter, slot.index, rows)
            start = stop


class Destinations:
    """The parameters of a model, cut into the smallest pieces that checkpoints store.

    A piece is a parameter, or one expert's part of a stacked one; a checkpoint's tensor fills one
    piece or several that lie one after the other.
    """

    def __init__(self, model: nn.Module) -> None:
        self._pieces: dict[str, Tensor] = {}
        self._stacked: dict[str, tuple[Tensor, list[str]]] = {}
        self._slots: dict[str, Slot] = {}
        for name, parameter in model.named_parameters():
            weight = parameter.detach()
            owner, _, last = name.rpartition(".")
            layer = model.get_submodule(owner) if weight.is_meta else None
            if stacked := _STACKED.fullmatch(name):
                names = [f"{stacked[1]}.{i}.{stacked[2]}.weight" for i in range(len(weight))]
                self._pieces |= zip(names, weight, strict=True)
                self._stacked[name] = weight, names
            else:
                names = [name]
                self._pieces[name] = weight
            if isinstance(layer, KeepsPacked):
                rows = parameter.shape[-2]
                self._slots |= {one: Slot(layer, last, i, rows) for i, one in enumerate(names)}

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Every matrix that a layer keeps as it is stored, by the name of its piece."""
        return self._slots

    def find(self, name: str) -> Tensor | PackedPlace | None:
        """Where a checkpoint's tensor goes: memory that it fills, or layers that keep it packed.

        None: the model has no place for it.
        """
        names = self._stacked[name][1] if name in self._stacked else _piece_names(name)
        if not self._pieces.keys() >= set(names):
            return None
        slots = [self._slots[one] for one in names if one in self._slots]
        if slots:
            assert len(slots) == len(names)
            stacked = self._stacked.get(name)
            pieces = [self._pieces[one] for one in names]
            shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
            return PackedPlace(
                tuple(slots), stacked[0].shape if stacked else shape, pieces[0].dtype
            )
        if name in self._stacked:
            return self._stacked[name][0]
        return _merge([self._pieces[one] for one in names])

    def missing(self, names: Iterable[str]) -> list[str]:
        """The pieces that tensors of these names leave unfilled, in the order of the model."""
        filled: set[str] = set()
        for name in names:
            stacked = self._stacked.get(name)
            filled.update(stacked[1] if stacked else _piece_names(name))
        return [name for name in self._pieces if name not in filled]


def _piece_names(name: str) -> list[str]:
    """The pieces that a tensor of this name fills, in the order of its rows."""
    for merged, parts in _MERGED.items():
        if merged in name:
            return [name.replace(merged, part) for part in parts]
    if expert := _EXPERT.fullmatch(name):
        return [f"{expert[1]}.mlp.experts.{expert[2]}.{_EXPERT_PARTS[expert[3]]}.weight"]
    return [_ROUTER.sub(".mlp.gate.", name)]


def _merge(pieces: list[Tensor]) -> Tensor:
    """One view of pieces that lie one after the other."""
    first = pieces[0]
    end = first.data_ptr()
    for piece in pieces:
        assert piece.data_ptr() == end
        end += piece.nbytes
    num_rows = sum(len(piece) for piece in pieces)
    return first.as_strided((num_rows, *first.shape[1:]), first.stride())

"""Where each tensor of a checkpoint goes, under whatever name its family stores it."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

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


class Destinations:
    """The parameters of a model, cut into the smallest pieces that checkpoints store.

    A piece is a parameter, or one expert's part of a stacked one; a checkpoint's tensor fills one
    piece or several that lie one after the other.
    """

    def __init__(self, model: nn.Module) -> None:
        self._pieces: dict[str, Tensor] = {}
        self._stacked: dict[str, tuple[Tensor, list[str]]] = {}
        for name, parameter in model.named_parameters():
            weight = parameter.detach()
            if stacked := _STACKED.fullmatch(name):
                names = [f"{stacked[1]}.{i}.{stacked[2]}.weight" for i in range(len(weight))]
                self._pieces |= zip(names, weight, strict=True)
                self._stacked[name] = weight, names
            else:
                self._pieces[name] = weight

    def find(self, name: str) -> Tensor | None:
        """The memory that a checkpoint's tensor fills; None if the model has no place for it."""
        if name in self._stacked:
            return self._stacked[name][0]
        pieces = [self._pieces.get(piece) for piece in _piece_names(name)]
        return _merge([piece for piece in pieces if piece is not None and None not in pieces])

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


def _merge(pieces: list[Tensor]) -> Tensor | None:
    """One view of pieces that lie one after the other; None where there are none."""
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    first = pieces[0]
    end = first.data_ptr()
    for piece in pieces:
        assert piece.data_ptr() == end
        end += piece.nbytes
    num_rows = sum(len(piece) for piece in pieces)
    return first.as_strided((num_rows, *first.shape[1:]), first.stride())

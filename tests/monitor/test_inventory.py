"""The cards of pretended machines, and what each program says to them."""

import argparse
import json
import re
from pathlib import Path

import pytest

from octavo.cli import doctor
from octavo.engine.device import MIN_COMPUTE_CAPABILITY
from octavo.monitor.catalog import GpuCatalog, load_gpu_catalog
from octavo.monitor.chip_names import ChipNames
from octavo.monitor.inventory import InventoryCard, take_inventory
from octavo.monitor.nvml import NvmlCard, NvmlProbe
from octavo.monitor.pci import find_pci_cards
from octavo.paths import AppPaths
from tests.monitor.machine_readings import add_pci_device

NO_DRIVER = "No NVIDIA driver was found on this machine."


class FakeNvmlProbe(NvmlProbe):
    """Cards as given; none and a problem where there is no driver."""

    def __init__(self, *cards: NvmlCard, problem: str = "") -> None:
        super().__init__()
        self._given = cards, problem

    def cards(self) -> tuple[tuple[NvmlCard, ...], str]:
        return self._given


@pytest.fixture(scope="module")
def catalog() -> GpuCatalog:
    return load_gpu_catalog()


def inventory(root: Path, *cards: NvmlCard, problem: str = "") -> list[InventoryCard]:
    probe = FakeNvmlProbe(*cards, problem=problem)
    names = ChipNames(load_gpu_catalog().names, files=())
    return take_inventory(nvml=probe, pci_cards=find_pci_cards(root), chip_names=names)


def answers(card: InventoryCard) -> dict[str, bool | None]:
    return {verdict.software: verdict.is_supported for verdict in card.verdicts}


def test_the_catalogue_holds_together(catalog: GpuCatalog) -> None:
    names = [card.name for card in catalog.cards]
    pci_ids = [pci_id for card in catalog.cards for pci_id in card.pci_ids]
    assert len(set(names)) == len(names)
    assert len(set(pci_ids)) == len(pci_ids)
    assert all(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", pci_id) for pci_id in pci_ids)
    for card in catalog.cards:
        assert re.fullmatch(r"PCIe [1-6]\.0 x(4|8|16)|SXM\d", card.interface), card.name
        assert card.vram_gb == tuple(sorted(card.vram_gb))
        assert (2, 0) <= card.compute_capability <= (13, 0)
        assert catalog.find(card.name) == catalog.find(f"NVIDIA {card.name}") == card


def test_requirements_are_those_that_the_engine_applies(catalog: GpuCatalog) -> None:
    least = {one.software: one.compute_capability for one in catalog.requirements}
    assert least["Octavo"] == least["PyTorch"] == MIN_COMPUTE_CAPABILITY
    assert least["vLLM"] == (7, 0)
    assert least["Ollama"] == (5, 0)


@pytest.mark.parametrize(
    ("name", "vram_gb", "interface", "capability"),
    [
        ("Quadro 600", (1,), "PCIe 2.0 x16", (2, 1)),
        ("GeForce GTX 770", (2, 4), "PCIe 3.0 x16", (3, 0)),
        ("NVIDIA H200", (141,), "SXM5", (9, 0)),
        ("NVIDIA GeForce RTX 5090", (32,), "PCIe 5.0 x16", (12, 0)),
    ],
)
def test_well_known_cards(
    catalog: GpuCatalog,
    name: str,
    vram_gb: tuple[int, ...],
    interface: str,
    capability: tuple[int, int],
) -> None:
    card = catalog.find(name)
    assert card is not None
    assert (card.vram_gb, card.interface, card.compute_capability) == (
        vram_gb,
        interface,
        capability,
    )


@pytest.mark.parametrize(
    ("pci_id", "model", "vram", "capability"),
    [
        ("10de:0df8", "Quadro 600", "1 GB", "2.1"),
        ("10de:1184", "GeForce GTX 770", "2 or 4 GB", "3.0"),
    ],
)
def test_an_old_card_without_a_driver_is_named_with_reasons(
    tmp_path: Path, pci_id: str, model: str, vram: str, capability: str
) -> None:
    add_pci_device(tmp_path, "0000:01:00.0", pci_id)
    add_pci_device(tmp_path, "0000:01:00.1", "10de:0e0a", **{"class": "0x040300"})
    [card] = inventory(tmp_path, problem=NO_DRIVER)
    assert (card.manufacturer, card.model, card.vram_text) == ("NVIDIA", model, vram)
    assert card.compute_capability_text == capability
    assert answers(card) == dict.fromkeys(("PyTorch", "Octavo", "vLLM", "Ollama"), False)
    reasons = {verdict.software: verdict.reason for verdict in card.verdicts}
    below = f"Compute capability {capability} is below"
    assert reasons["PyTorch"].startswith(f"{below} 7.5, the minimum of PyTorch 2.x")
    assert reasons["Octavo"].endswith("; the CPU is used.")
    assert reasons["vLLM"] == f"{below} 7.0, vLLM's minimum."
    assert reasons["Ollama"] == f"{below} 5.0, Ollama's minimum."
    assert card.problem == f"{NO_DRIVER} The CPU is used."
    assert not card.is_usable


def test_in_between_some_programs_say_yes(tmp_path: Path) -> None:
    [card] = inventory(tmp_path, NvmlCard("Tesla V100-SXM2-16GB", compute_capability=(7, 0)))
    assert answers(card) == {"PyTorch": False, "Octavo": False, "vLLM": True, "Ollama": True}
    assert not card.is_usable


def test_the_driver_knows_better_than_the_bus(tmp_path: Path) -> None:
    add_pci_device(tmp_path, "0000:01:00.0", "10de:2684")
    add_pci_device(tmp_path, "0000:02:00.0", "10de:0df8")
    reported = NvmlCard(
        "NVIDIA GeForce RTX 4090",
        bus_id="0000:01:00.0",
        pci_id="10de:2684",
        vram_bytes=25757220864,
        compute_capability=(8, 9),
        interface="PCIe 3.0 x8",
    )
    new, old = inventory(tmp_path, reported)
    assert (new.model, new.vram_text) == ("GeForce RTX 4090", "24.0 GiB")
    assert new.interface == "PCIe 4.0 x16", "the card's, not the slot's"
    assert all(answers(new).values())
    assert new.is_usable
    assert old.model == "Quadro 600"
    assert "does not report this card" in old.problem


def test_unknown_cards_keep_what_they_say(tmp_path: Path) -> None:
    link = {"max_link_speed": "8.0 GT/s PCIe", "max_link_width": "16"}
    add_pci_device(tmp_path, "0000:01:00.0", "10de:fff0", **link)
    [unlisted] = inventory(tmp_path, problem=NO_DRIVER)
    assert (unlisted.model, unlisted.interface) == (
        "graphics card 10de:fff0",
        "PCIe 3.0 x16",
    )
    assert (unlisted.vram_text, unlisted.compute_capability_text) == ("unknown", "unknown")
    assert set(answers(unlisted).values()) == {None}
    [reported] = inventory(
        tmp_path / "none", NvmlCard("NVIDIA GTX 9999", None, None, 1 << 34, (15, 0), "PCIe 7.0 x16")
    )
    assert (reported.model, reported.interface, reported.is_usable) == (
        "GTX 9999",
        "PCIe 7.0 x16",
        True,
    )


def test_other_makers(tmp_path: Path) -> None:
    amd = {"mem_info_vram_total": "17163091968", "max_link_speed": "16.0 GT/s PCIe"}
    add_pci_device(tmp_path, "0000:03:00.0", "1002:73bf", max_link_width="16", **amd)
    add_pci_device(tmp_path, "0000:00:02.0", "8086:9bc5", max_link_width="0")
    add_pci_device(tmp_path, "0000:00:03.0", "1234:1111")
    intel, radeon = inventory(tmp_path)
    assert (intel.model, intel.interface) == ("UHD Graphics 630", None)
    assert radeon.model == "Radeon RX 6800 / 6800 XT / 6900 XT"
    assert (radeon.vram_text, radeon.interface) == ("16.0 GiB", "PCIe 4.0 x16")
    for card in (intel, radeon):
        assert answers(card)["Octavo"] is False
        assert "the CPU is used" in card.verdicts[1].reason
        assert not card.is_usable
        assert card.compute_capability_text == "–"


def test_no_bus_no_driver_no_card(tmp_path: Path) -> None:
    assert inventory(tmp_path / "none", problem=NO_DRIVER) == []


def test_doctor_advises_where_only_the_driver_is_missing(
    tmp_path: Path,
    paths: AppPaths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_pci_device(tmp_path, "0000:01:00.0", "10de:2684")
    add_pci_device(tmp_path, "0000:02:00.0", "10de:2684")
    found = inventory(tmp_path, problem=NO_DRIVER)
    monkeypatch.setattr(doctor, "take_inventory", lambda: found)
    doctor.doctor_verb(argparse.Namespace(json=True), paths)
    advice = json.loads(capsys.readouterr().out)["advice"]
    for number in (1, 2):
        name = f"NVIDIA GeForce RTX 4090 ({number})"
        assert f"{name}: {NO_DRIVER} The CPU is used." in advice


def test_doctor_shows_the_cards(
    tmp_path: Path,
    paths: AppPaths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_pci_device(tmp_path, "0000:01:00.0", "10de:1184")
    found = inventory(tmp_path, problem=NO_DRIVER)
    monkeypatch.setattr(doctor, "take_inventory", lambda: found)
    assert doctor.doctor_verb(argparse.Namespace(json=True), paths) == 0
    content = json.loads(capsys.readouterr().out)
    section = content["Graphics cards"]
    name = "NVIDIA GeForce GTX 770"
    assert not any(name in sentence for sentence in content["advice"]), "no driver would help"
    assert section[name] == "2 or 4 GB VRAM, PCIe 3.0 x16, compute capability 3.0"
    assert section[f"{name}: now"].endswith("The CPU is used.")
    assert section[f"{name}: Ollama"] == (
        "no. Compute capability 3.0 is below 5.0, Ollama's minimum."
    )
    assert doctor.doctor_verb(argparse.Namespace(json=False), paths) == 0
    assert "Graphics cards" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "take_inventory", list)
    doctor.doctor_verb(argparse.Namespace(json=True), paths)
    assert json.loads(capsys.readouterr().out)["Graphics cards"] == {"cards": "none found"}

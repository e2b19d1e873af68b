"""Graphics cards as the PCI bus lists them, also those without a driver. Linux only."""

import re
from dataclasses import dataclass
from pathlib import Path

from octavo.monitor.chip_names import MANUFACTURERS

PCI_DEVICES = Path("/sys/bus/pci/devices")
DISPLAY_CLASS = "0x03"
PCIE_GENERATIONS = {"2.5": 1, "5": 2, "5.0": 2, "8": 3, "8.0": 3, "16": 4, "16.0": 4}
PCIE_GENERATIONS |= {"32": 5, "32.0": 5, "64": 6, "64.0": 6}


@dataclass(frozen=True, slots=True)
class PciCard:
    """One display controller."""

    bus_id: str
    pci_id: str
    """`10de:1184`."""
    manufacturer: str
    interface: str | None
    vram_bytes: int | None
    """Where its driver's files say so (AMD)."""
    product_name: str | None


def find_pci_cards(root: Path = PCI_DEVICES) -> list[PciCard]:
    """The display controllers of NVIDIA, AMD and Intel, in bus order; none without sysfs."""
    found = []
    for folder in sorted(root.glob("*")):
        vendor = (_text(folder / "vendor") or "").removeprefix("0x")
        device = (_text(folder / "device") or "").removeprefix("0x")
        is_display = (_text(folder / "class") or "").startswith(DISPLAY_CLASS)
        if not is_display or vendor not in MANUFACTURERS:
            continue
        vram = _text(folder / "mem_info_vram_total")
        found.append(
            PciCard(
                bus_id=folder.name,
                pci_id=f"{vendor}:{device}",
                manufacturer=MANUFACTURERS[vendor],
                interface=_interface(folder),
                vram_bytes=int(vram) if vram is not None and vram.isdigit() else None,
                product_name=_text(folder / "product_name"),
            )
        )
    return found


def _interface(folder: Path) -> str | None:
    """`PCIe 3.0 x16`, from the fastest link that card and slot could have."""
    speed = re.match(r"([\d.]+) GT/s", _text(folder / "max_link_speed") or "")
    width = _text(folder / "max_link_width") or ""
    if speed is None or speed.group(1) not in PCIE_GENERATIONS or not width.isdigit():
        return None
    if int(width) == 0 or int(width) == 255:  # A controller inside the processor has no link.
        return None
    return f"PCIe {PCIE_GENERATIONS[speed.group(1)]}.0 x{width}"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None

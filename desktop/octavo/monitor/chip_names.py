"""What a graphics chip is called whose driver does not tell: AMD's and Intel's, by their PCI id."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

PCI_ID_FILES = (
    Path("/usr/share/hwdata/pci.ids"),
    Path("/usr/share/misc/pci.ids"),
    Path("/usr/share/pci.ids"),
)
"""Where systems keep the list that `lspci` reads."""
MANUFACTURERS = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel"}


class ChipNames:
    """Asks the system's list of PCI ids before Octavo's own short one."""

    def __init__(self, own: Mapping[str, str], files: Sequence[Path] = PCI_ID_FILES) -> None:
        """Args:
        own: names by PCI id, as `GpuCatalog.names`.
        """
        self._own = own
        self._files = files

    def find(self, pci_id: str) -> str:
        """The name, or the maker with the id (`1002:744c`) where nobody knows one."""
        for file in self._files:
            if name := _look_up(file, pci_id):
                return name
        maker = MANUFACTURERS.get(pci_id.partition(":")[0], "")
        return self._own.get(pci_id) or f"{maker} graphics card {pci_id}".strip()


def _look_up(file: Path, pci_id: str) -> str:
    """The retail name in brackets if there is one, else the chip's; empty if it is not listed.

    Source: pci.ids(5): makers at the margin, their devices after one tab, boards after two.
    """
    vendor, _, device = pci_id.partition(":")
    is_vendor = False
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.startswith(("\t", "#", "\n")):
                    if is_vendor:
                        return ""
                    is_vendor = line.startswith(f"{vendor} ")
                elif is_vendor and line.startswith(f"\t{device} "):
                    name = line.removeprefix(f"\t{device}").strip()
                    in_brackets = re.search(r"\[(.+)\]", name)
                    return in_brackets.group(1) if in_brackets else name
    except OSError:
        pass
    return ""

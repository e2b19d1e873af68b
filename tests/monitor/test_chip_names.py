"""Names of chips by their PCI id, from a system's list and from Octavo's own."""

import re
from pathlib import Path

import pytest

from octavo.monitor.catalog import load_gpu_catalog
from octavo.monitor.chip_names import MANUFACTURERS, ChipNames

PCI_IDS = """\
# A list of PCI ids
1001  A maker before
\t744c  Not this one
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t15bf  Phoenix1
\t73bf  Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]
\t\t744c 0e3b  A board with that number
\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]
\t\t1da2 471e  NITRO+

10de  NVIDIA Corporation
\t9999  AD102 [GeForce RTX 4090]
C 03  Display controller
"""


@pytest.fixture
def names(tmp_path: Path) -> ChipNames:
    file = tmp_path / "pci.ids"
    file.write_text(PCI_IDS)
    own = {"1002:744c": "own", "8086:56a0": "Arc A770"}
    return ChipNames(own, files=(tmp_path / "absent", file))


@pytest.mark.parametrize(
    ("pci_id", "name"),
    [
        ("1002:744c", "Radeon RX 7900 XT/7900 XTX"),
        ("1002:15bf", "Phoenix1"),
        ("8086:56a0", "Arc A770"),
        ("1002:9999", "AMD graphics card 1002:9999"),
        ("8086:0001", "Intel graphics card 8086:0001"),
    ],
)
def test_names(names: ChipNames, pci_id: str, name: str) -> None:
    assert names.find(pci_id) == name


def test_our_own_list_holds_together() -> None:
    names = load_gpu_catalog().names
    assert len(names) >= 40
    for pci_id, name in names.items():
        assert re.fullmatch(r"(1002|8086):[0-9a-f]{4}", pci_id)
        assert MANUFACTURERS[pci_id[:4]] not in name, "the maker stands beside it"

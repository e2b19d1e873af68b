"""Readings and sysfs trees as tests want them."""

from pathlib import Path

from octavo.monitor.readings import CpuReading, GpuReading, MachineReading, MemoryReading


def make_reading(time_s: float = 0.0, *gpus: GpuReading) -> MachineReading:
    return MachineReading(
        time_s=time_s,
        cpu=CpuReading(12.5, 8),
        memory=MemoryReading(100, 40, 60, 5),
        disk=None,
        gpus=gpus,
    )


def write_files(folder: Path, **files: str) -> Path:
    """Makes a folder whose files hold one line each; `__` in a name is a `/`."""
    for name, line in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line + "\n")
    return folder


def add_pci_device(root: Path, bus_id: str, pci_id: str, **files: str) -> None:
    vendor, device = pci_id.split(":")
    given = {"vendor": f"0x{vendor}", "device": f"0x{device}", "class": "0x030000", **files}
    write_files(root / bus_id, **given)

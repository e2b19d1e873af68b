"""AMD GPUs through the files of the kernel's amdgpu driver; needs no library."""

from pathlib import Path

from octavo.monitor.catalog import load_gpu_catalog
from octavo.monitor.chip_names import ChipNames
from octavo.monitor.readings import GpuReading

DRM = Path("/sys/class/drm")
AMD_VENDOR = "0x1002"
MICROWATTS = 1e6
MILLIDEGREES = 1000.0
HERTZ_PER_MHZ = 1_000_000


class AmdProbe:
    """Finds the cards once and reads their files each time; a file that is not there is None."""

    def __init__(self, root: Path = DRM, chip_names: ChipNames | None = None) -> None:
        """Args:
        chip_names: asked once for each card; by default made when there is one.
        """
        self._root = root
        self._chip_names = chip_names
        self._cards: list[tuple[str, Path, Path | None]] | None = None

    def read(self) -> tuple[GpuReading, ...]:
        """One reading per card; never raises."""
        if self._cards is None:
            self._cards = self._find_cards()
        return tuple(_read_card(name, device, hwmon) for name, device, hwmon in self._cards)

    def _find_cards(self) -> list[tuple[str, Path, Path | None]]:
        """(name, device folder, sensor folder) of each; connectors (`card0-DP-1`) are no cards."""
        devices = [
            card / "device"
            for card in sorted(self._root.glob("card*"))
            if card.name.removeprefix("card").isdigit()
        ]
        return [
            (self._name(device), device, next(iter(sorted(device.glob("hwmon/hwmon*"))), None))
            for device in devices
            if _text(device / "vendor") == AMD_VENDOR
        ]

    def _name(self, device: Path) -> str:
        if product := _text(device / "product_name"):
            return product
        if self._chip_names is None:
            self._chip_names = ChipNames(load_gpu_catalog().names)
        pci_device = (_text(device / "device") or "").removeprefix("0x").lower()
        return self._chip_names.find(f"{AMD_VENDOR.removeprefix('0x')}:{pci_device}")


def _read_card(name: str, device: Path, hwmon: Path | None) -> GpuReading:
    if not device.exists():
        return GpuReading(name, problem="The driver no longer lists this card.")
    busy = _number(device / "gpu_busy_percent")
    sensors = {} if hwmon is None else {sensor: _number(hwmon / sensor) for sensor in SENSORS}
    temperature = sensors.get("temp1_input")
    average = sensors.get("power1_average")
    power = sensors.get("power1_input") if average is None else average
    limit = sensors.get("power1_cap")
    core_hz, memory_hz = sensors.get("freq1_input"), sensors.get("freq2_input")
    return GpuReading(
        name=name,
        uuid=_text(device / "unique_id"),
        vram_used_bytes=_number(device / "mem_info_vram_used"),
        vram_total_bytes=_number(device / "mem_info_vram_total"),
        utilization_percent=None if busy is None else float(busy),
        temperature_c=None if temperature is None else temperature / MILLIDEGREES,
        power_w=None if power is None else power / MICROWATTS,
        power_limit_w=None if limit is None else limit / MICROWATTS,
        clock_sm_mhz=None if core_hz is None else core_hz // HERTZ_PER_MHZ,
        clock_memory_mhz=None if memory_hz is None else memory_hz // HERTZ_PER_MHZ,
    )


# Source: the kernel's documentation of amdgpu, "GPU Power/Thermal Controls and Monitoring".
SENSORS = (
    "temp1_input",
    "power1_average",
    "power1_input",
    "power1_cap",
    "freq1_input",
    "freq2_input",
)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None


def _text(path: Path) -> str | None:
    """A file's text without the line end; None if it is absent, empty or refuses."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None

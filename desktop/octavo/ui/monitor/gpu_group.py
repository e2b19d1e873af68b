"""One graphics card of the monitor page: memory, load, temperature, power, clocks, processes."""

from PySide6.QtWidgets import QVBoxLayout, QWidget

from octavo.monitor.history import GpuHistory, Series
from octavo.monitor.readings import GpuProcess, GpuReading
from octavo.ui.monitor.tiles import UNKNOWN, Tile, TileGrid, rounded_top
from octavo.ui.tokens import SPACE_WITHIN
from octavo.ui.widgets.cards import Notice
from octavo.ui.widgets.labels import ElidedLabel, label
from octavo.units import format_bytes

HOTTEST_C = 100.0
MAX_PROCESSES = 5


class GpuGroup(QWidget):
    """Four figures with their lines; a card that reports nothing says why."""

    def __init__(self, index: int, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_WITHIN)
        self._index = index
        self._frame: tuple[str, str] | None = None
        self._processes: tuple[GpuProcess, ...] | None = None
        self._name = ElidedLabel("", "strong")
        column.addWidget(self._name)
        self.problem = Notice("triangle-alert", "caution")
        column.addWidget(self.problem)
        self.vram = Tile("VRAM")
        self.load = Tile("Utilisation")
        self.temperature = Tile("Temperature")
        self.power = Tile("Power")
        self.grid = TileGrid([self.vram, self.load, self.temperature, self.power])
        column.addWidget(self.grid)
        self.more = label("", "caption", wrap=True)
        self.more.hide()
        column.addWidget(self.more)

    def show_reading(self, gpu: GpuReading, history: GpuHistory, times_s: Series) -> None:
        self._show_frame(gpu.name, gpu.problem)
        if gpu.problem:
            return
        self.vram.show_reading(*_vram(gpu))
        vram_top = gpu.vram_total_bytes or history.vram_used_bytes.highest or 1.0
        self.vram.show_history(times_s, history.vram_used_bytes, vram_top)
        self.load.show_reading(_figure(gpu.utilization_percent, "%"), _clock(gpu))
        self.load.show_history(times_s, history.utilization_percent, 100.0)
        self.temperature.show_reading(_figure(gpu.temperature_c, "°C"), "")
        self.temperature.show_history(times_s, history.temperature_c, HOTTEST_C)
        limit = f"limit {gpu.power_limit_w:.0f} W" if gpu.power_limit_w is not None else ""
        self.power.show_reading(_figure(gpu.power_w, "W"), limit)
        power_top = gpu.power_limit_w or rounded_top(history.power_w.highest or 1.0)
        self.power.show_history(times_s, history.power_w, power_top)
        if gpu.processes != self._processes:
            self._processes = gpu.processes
            self.more.setText(_describe_processes(gpu))
            self.more.setVisible(bool(self.more.text()))

    def _show_frame(self, name: str, problem: str) -> None:
        """Only what differs: every label that is set has the page laid out anew."""
        if (name, problem) == self._frame:
            return
        self._frame = (name, problem)
        self._name.setText(f"{name} (GPU {self._index})")
        self.problem.set_text(problem)
        self.grid.setVisible(not problem)
        self.more.setVisible(not problem and bool(self.more.text()))


def _figure(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.0f} {unit}"


def _vram(gpu: GpuReading) -> tuple[str, str]:
    """With the clock of the memory: beside that of the cores it would be cut in narrow tiles."""
    used, total = gpu.vram_used_bytes, gpu.vram_total_bytes
    words = [] if total is None else [f"of {format_bytes(total)}"]
    words += [] if gpu.clock_memory_mhz is None else [f"{gpu.clock_memory_mhz:,} MHz"]
    return UNKNOWN if used is None else format_bytes(used), ", ".join(words)


def _clock(gpu: GpuReading) -> str:
    return "" if gpu.clock_sm_mhz is None else f"{gpu.clock_sm_mhz:,} MHz"


def _describe_processes(gpu: GpuReading) -> str:
    """The largest first; the rest as a count."""
    processes = sorted(gpu.processes or (), key=lambda one: -(one.vram_bytes or 0))
    words = []
    for process in processes[:MAX_PROCESSES]:
        name = process.name or "another process"
        size = f" {format_bytes(process.vram_bytes)}" if process.vram_bytes is not None else ""
        words.append(f"{name} ({process.pid}){size}")
    if len(processes) > MAX_PROCESSES:
        words.append(f"{len(processes) - MAX_PROCESSES} more")
    return f"In use by {', '.join(words)}" if words else ""

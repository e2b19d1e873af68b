"""The monitor page: machine, graphics cards and engine, read steadily while it is looked at."""

import asyncio
from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QVBoxLayout, QWidget

from octavo.core import Core
from octavo.engine.request import EngineStats
from octavo.monitor.engine_rate import EngineRate, EngineRateMeter
from octavo.monitor.history import MachineHistory, Series, gpu_key
from octavo.monitor.inventory import InventoryCard, take_inventory
from octavo.monitor.readings import CpuReading, DiskReading, MachineReading, MemoryReading
from octavo.ui.monitor.blocks_card import BlocksCard
from octavo.ui.monitor.card_table import CardTable
from octavo.ui.monitor.gpu_group import GpuGroup
from octavo.ui.monitor.tiles import (
    HISTORY_CAPACITY,
    UNKNOWN,
    Tile,
    TileGrid,
    rounded_top,
    titled,
)
from octavo.ui.tasks import spawn
from octavo.ui.tokens import SPACE_INSET, SPACE_TIGHT
from octavo.ui.widgets.cards import ErrorCard, Notice
from octavo.ui.widgets.page import ScrolledPage
from octavo.units import format_bytes

WIDE_FROM = 760
NARROW_BELOW = 480
MAX_WIDTH = 1120
MAX_BRISK_GPUS = 2
"""More are read once a second instead of twice: looking is to take less than 1 % of a core."""
CALM_INTERVAL_S = 1.0
LEAST_DISK_TOP = 2.0**20
"""Bytes per second at the upper edge of a quiet disk's line: its noise stays flat."""
LEAST_RATE_TOP = 10.0

TakeInventory = Callable[[], list[InventoryCard]]


class MonitorPage(ScrolledPage):
    """Listens to the sampler while it can be seen; hidden or minimised it costs nothing."""

    def __init__(
        self,
        core: Core,
        parent: QWidget | None = None,
        *,
        inventory: TakeInventory = take_inventory,
    ) -> None:
        super().__init__(MAX_WIDTH, parent)
        self._core = core
        self._inventory = inventory
        self._history = MachineHistory(HISTORY_CAPACITY)
        self._is_calm = False
        self._meter = EngineRateMeter()
        self._disk_traffic = Series(HISTORY_CAPACITY)
        self._rates = Series(HISTORY_CAPACITY)
        self._requests_running = Series(HISTORY_CAPACITY)
        self._hit_percents = Series(HISTORY_CAPACITY)
        self._stop_listening: Callable[[], None] | None = None
        self._inventory_task: asyncio.Task[None] | None = None
        self.gpu_groups: dict[str, GpuGroup] = {}
        self._build()
        self.destroyed.connect(lambda _=None: self._stop())

    @property
    def is_listening(self) -> bool:
        return self._stop_listening is not None

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._stop_listening is None and not self.window().isMinimized():
            self._listen()
        if self._inventory_task is None:
            self.find_cards()

    def _listen(self) -> None:
        self._stop()
        interval_s = CALM_INTERVAL_S if self._is_calm else 0.0
        self._stop_listening = self._core.sampler.listen(self._show_reading, interval_s=interval_s)

    def hideEvent(self, event: QHideEvent) -> None:
        """Qt sends it for a minimised window, too."""
        self._stop()
        super().hideEvent(event)

    def _stop(self) -> None:
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _build(self) -> None:
        # Nothing on the page takes the keyboard, so the page scrolls with it.
        self.scroll_area.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.scroll_area.setAccessibleName("Monitor")
        self.setFocusProxy(self.scroll_area)
        self.add_title(
            "Monitor",
            "Read twice a second while this page is shown, or once a second with more than"
            f" {MAX_BRISK_GPUS} graphics cards; lines go back two minutes.",
        )
        self._error = ErrorCard()
        self.column.addWidget(self._error)
        self.column.addWidget(self._build_machine())
        self.column.addWidget(self._build_engine())
        self.column.addWidget(self._build_cards())
        self.column.addStretch(1)

    def _build_machine(self) -> QWidget:
        self.cpu = Tile("CPU")
        self.memory = Tile("Memory")
        self.disk = Tile("Disk of the models")
        self._machine_grid = TileGrid([self.cpu, self.memory, self.disk])
        self._gpus = QWidget()
        self._gpus.hide()
        self._gpu_column = QVBoxLayout(self._gpus)
        self._gpu_column.setContentsMargins(0, SPACE_TIGHT, 0, 0)
        self._gpu_column.setSpacing(SPACE_INSET)
        return titled("Machine", [self._machine_grid, self._gpus])

    def _build_engine(self) -> QWidget:
        self.rate = Tile("Output")
        self.requests = Tile("Requests")
        self.hit_rate = Tile("Prefix cache hits")
        self._engine_grid = TileGrid([self.rate, self.requests, self.hit_rate])
        self.blocks = BlocksCard()
        return titled("Engine", [self._engine_grid, self.blocks])

    def _build_cards(self) -> QWidget:
        self.gpu_problem = Notice("info")
        self.cards = CardTable()
        return titled("Graphics cards", [self.gpu_problem, self.cards])

    def find_cards(self) -> None:
        """Fills the table of cards; done once, for cards are not put in while Octavo runs."""
        self._inventory_task = spawn(self._find_cards(), self._error.show_error)

    async def _find_cards(self) -> None:
        self.cards.show_cards(await asyncio.to_thread(self._inventory))

    def _show_reading(self, reading: MachineReading) -> None:
        self._history.add(reading)
        times_s = self._history.time_s
        self.cpu.show_reading(*_describe_cpu(reading.cpu))
        self.cpu.show_history(times_s, self._history.cpu_utilization_percent, 100.0)
        self.memory.show_reading(*_describe_memory(reading.memory))
        top = float(reading.memory.total_bytes)
        self.memory.show_history(times_s, self._history.memory_used_bytes, top)
        self.disk.show_reading(*_describe_disk(reading.disk))
        self._disk_traffic.append(_traffic(reading.disk))
        top = max(rounded_top(self._disk_traffic.highest or 0.0), LEAST_DISK_TOP)
        self.disk.show_history(times_s, self._disk_traffic, top)
        self._show_gpus(reading)
        stats = self._core.host.stats
        self._show_engine(stats, self._meter.measure(reading.time_s, stats))

    def _show_gpus(self, reading: MachineReading) -> None:
        # A card that cannot be used says so itself.
        is_news = bool(self.cards.rows) and not any(row.card.problem for row in self.cards.rows)
        problem = reading.gpu_problem if is_news else ""
        if problem != self.gpu_problem.text:
            self.gpu_problem.set_text(problem)
        keys = [gpu_key(index, gpu) for index, gpu in enumerate(reading.gpus)]
        self._gpus.setVisible(bool(keys))
        if (len(keys) > MAX_BRISK_GPUS) != self._is_calm:
            self._is_calm = not self._is_calm
            self._listen()
        for key in set(self.gpu_groups) - set(keys):
            group = self.gpu_groups.pop(key)
            group.hide()
            group.deleteLater()
        for index, (key, gpu) in enumerate(zip(keys, reading.gpus, strict=True)):
            if key not in self.gpu_groups:
                self.gpu_groups[key] = GpuGroup(index)
                self._gpu_column.addWidget(self.gpu_groups[key])
                self.arrange()
            elif self._is_calm and self.gpu_groups[key].visibleRegion().isEmpty():
                continue  # scrolled out of view; the first reading after it is back shows it
            self.gpu_groups[key].show_reading(gpu, self._history.gpus[key], self._history.time_s)

    def _show_engine(self, stats: EngineStats, rate: EngineRate) -> None:
        times_s = self._history.time_s
        is_loaded = stats.num_blocks > 0
        self._rates.append(rate.output_tokens_per_s if is_loaded else None)
        self._requests_running.append(stats.num_running if is_loaded else None)
        self._hit_percents.append(rate.prefix_hit_percent)
        self.rate.show_reading(*_describe_rate(rate, is_loaded=is_loaded))
        top = max(rounded_top(self._rates.highest or 0.0), LEAST_RATE_TOP)
        self.rate.show_history(times_s, self._rates, top)
        self.requests.show_reading(f"{stats.num_running} running", f"{stats.num_waiting} waiting")
        most = max(rounded_top(self._requests_running.highest or 0.0), 4.0)
        self.requests.show_history(times_s, self._requests_running, most)
        self.hit_rate.show_reading(*_describe_hits(stats, rate))
        self.hit_rate.show_history(times_s, self._hit_percents, 100.0)
        self.blocks.setVisible(is_loaded)
        empty = stats.num_free_blocks - stats.num_cached_blocks
        self.blocks.show_blocks(
            (stats.num_used_blocks, stats.num_cached_blocks, empty), stats.block_size
        )

    def arrange(self) -> None:
        is_wide = self.is_at_least(WIDE_FROM)
        num_columns = 3 if self.is_at_least(NARROW_BELOW) else 1
        self._machine_grid.set_columns(num_columns)
        self._engine_grid.set_columns(num_columns)
        self.blocks.set_columns(num_columns)
        for group in self.gpu_groups.values():
            group.grid.set_columns(4 if is_wide else 2)
        self.cards.set_wide(is_wide)


def _describe_cpu(cpu: CpuReading) -> tuple[str, str]:
    percent = cpu.utilization_percent
    figure = UNKNOWN if percent is None else f"{percent:.0f} %"
    return figure, f"{cpu.num_threads} threads"


def _describe_memory(memory: MemoryReading) -> tuple[str, str]:
    own = f", Octavo {format_bytes(memory.octavo_bytes)}" if memory.octavo_bytes else ""
    return format_bytes(memory.used_bytes), f"of {format_bytes(memory.total_bytes)}{own}"


def _describe_disk(disk: DiskReading | None) -> tuple[str, str]:
    if disk is None:
        return UNKNOWN, "Its folder cannot be reached."
    figure = f"{format_bytes(disk.free_bytes)} free"
    if disk.read_bytes_per_s is None or disk.written_bytes_per_s is None:
        return figure, f"of {format_bytes(disk.total_bytes)}"
    return figure, (
        f"reads {format_bytes(disk.read_bytes_per_s)}/s,"
        f" writes {format_bytes(disk.written_bytes_per_s)}/s"
    )


def _traffic(disk: DiskReading | None) -> float | None:
    """What the line shows: reads and writes together."""
    if disk is None or disk.read_bytes_per_s is None or disk.written_bytes_per_s is None:
        return None
    return disk.read_bytes_per_s + disk.written_bytes_per_s


def _describe_rate(rate: EngineRate, *, is_loaded: bool) -> tuple[str, str]:
    if not is_loaded:
        return UNKNOWN, "No model is loaded."
    if rate.output_tokens_per_s is None or rate.prompt_tokens_per_s is None:
        return UNKNOWN, ""
    return (
        f"{rate.output_tokens_per_s:,.0f} tok/s",
        f"prompts {rate.prompt_tokens_per_s:,.0f} tok/s",
    )


def _describe_hits(stats: EngineStats, rate: EngineRate) -> tuple[str, str]:
    if rate.prefix_hit_percent is None:
        return UNKNOWN, "of prompt tokens since the load"
    return (
        f"{rate.prefix_hit_percent:.0f} %",
        f"{stats.prefix_hit_tokens:,} of {stats.prefix_queried_tokens:,} prompt tokens",
    )

"""The monitor page: figures of the machine, its cards and the engine; nothing while unseen."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QMainWindow

from octavo.engine.request import EngineStats
from octavo.monitor.inventory import InventoryCard, Verdict
from octavo.monitor.readings import DiskReading, GpuProcess
from octavo.ui.monitor.card_table import NO_CARD
from octavo.ui.monitor.monitor_page import CALM_INTERVAL_S, MonitorPage
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import settled, until
from tests.ui.fakes import GIB, FakeCore, make_gpu, make_reading
from tests.ui.monitor.measure_cost import measure_cost

OLD_CARD = InventoryCard(
    manufacturer="NVIDIA",
    model="Quadro 600",
    vram_bytes=None,
    vram_gb=(1,),
    interface="PCIe 2.0 x16",
    compute_capability=(2, 1),
    verdicts=(
        Verdict("PyTorch", False, "Compute capability 2.1 is below 7.5, PyTorch's minimum."),
        Verdict("Octavo", False, "Compute capability 2.1 is below 7.5; the CPU is used."),
        Verdict("vLLM", None, "It cannot be said from here."),
    ),
)

MAX_PAGE_PERCENT = 2.0
"""Of a core, on a machine that does other things meanwhile."""


@pytest.fixture
def found() -> list[InventoryCard]:
    return []


@pytest.fixture
async def page(
    core: FakeCore, found: list[InventoryCard], tasks: UiTasks, theme: ThemeController
) -> AsyncIterator[MonitorPage]:
    window = QMainWindow()
    page = MonitorPage(core.as_core, inventory=lambda: found)
    window.setCentralWidget(page)
    window.resize(1000, 900)
    window.show()
    await until(lambda: page.cards.empty.text() != "Looking for graphics cards…")
    yield page
    await tasks.cancel_all()
    window.hide()


async def test_machine_is_shown_with_units(page: MonitorPage, core: FakeCore) -> None:
    core.sampler.post(make_reading())
    assert (page.cpu.figure, page.cpu.detail) == ("37 %", "16 threads")
    assert page.memory.figure == "17.0 GiB"
    assert page.memory.detail == "of 32.0 GiB, Octavo 2.0 GiB"
    assert page.disk.figure == "412.0 GiB free"
    assert page.disk.detail == "reads 3.0 MiB/s, writes 1.0 MiB/s"
    assert page.cpu.accessibleName() == "CPU: 37 %. 16 threads"


async def test_what_is_not_reported_is_not_invented(page: MonitorPage, core: FakeCore) -> None:
    gpu = make_gpu(vram_used_bytes=None, utilization_percent=None, temperature_c=None, power_w=None)
    reading = make_reading(gpus=[gpu])
    cpu = dataclasses.replace(reading.cpu, utilization_percent=None)
    core.sampler.post(dataclasses.replace(reading, cpu=cpu, disk=None))
    assert page.cpu.figure == "–"
    assert page.disk.detail == "Its folder cannot be reached."
    (group,) = page.gpu_groups.values()
    tiles = (group.vram, group.load, group.temperature, group.power)
    assert {tile.figure for tile in tiles} == {"–"}


async def test_a_disk_without_counters_has_its_size(page: MonitorPage, core: FakeCore) -> None:
    disk = DiskReading("/models", 900 * GIB, 400 * GIB, None, None)
    core.sampler.post(dataclasses.replace(make_reading(), disk=disk))
    assert page.disk.detail == "of 900.0 GiB"


async def test_every_gpu_has_its_figures(page: MonitorPage, core: FakeCore) -> None:
    processes = (GpuProcess(7, "octavo", 6 * GIB), GpuProcess(9, "", None))
    first = make_gpu(processes=processes)
    core.sampler.post(make_reading(gpus=[first, make_gpu(uuid="GPU-2")]))
    assert len(page.gpu_groups) == 2
    group = page.gpu_groups["GPU-1"]
    assert (group.vram.figure, group.vram.detail) == ("9.0 GiB", "of 24.0 GiB, 10,501 MHz")
    assert (group.load.figure, group.temperature.figure) == ("87 %", "61 °C")
    assert (group.power.figure, group.power.detail) == ("312 W", "limit 450 W")
    assert group.load.detail == "2,520 MHz"
    assert group.more.text() == "In use by octavo (7) 6.0 GiB, another process (9)"
    assert not page.gpu_groups["GPU-2"].more.isVisible(), "nobody is known to use it"


def post_four_cards(core: FakeCore, number: int) -> None:
    gpus = [
        make_gpu(uuid=f"GPU-{index}", utilization_percent=float(10 * number + index))
        for index in range(4)
    ]
    core.sampler.post(make_reading(number * 0.5, gpus=gpus))


def loads(page: MonitorPage) -> list[str]:
    return [one.load.figure for one in page.gpu_groups.values()]


async def test_many_cards_are_read_once_a_second(page: MonitorPage, core: FakeCore) -> None:
    core.sampler.post(make_reading(gpus=[make_gpu()]))
    assert core.sampler.intervals_s[-1] == 0.0
    post_four_cards(core, 0)
    assert core.sampler.intervals_s[-1] == CALM_INTERVAL_S
    core.sampler.post(make_reading(gpus=[make_gpu()]))
    assert core.sampler.intervals_s[-1] == 0.0


async def test_of_many_cards_those_in_view_are_shown(page: MonitorPage, core: FakeCore) -> None:
    page.window().resize(1000, 200)
    post_four_cards(core, 0)
    await settled()
    assert all(group.visibleRegion().isEmpty() for group in page.gpu_groups.values())
    post_four_cards(core, 1)
    assert loads(page) == [f"{index} %" for index in range(4)]
    page.window().resize(1000, 2000)
    await settled()
    post_four_cards(core, 2)
    assert loads(page) == [f"{20 + index} %" for index in range(4)]


async def test_a_lost_gpu_says_so_and_one_that_left_is_gone(
    page: MonitorPage, core: FakeCore
) -> None:
    core.sampler.post(make_reading(gpus=[make_gpu(problem="The driver has lost the card.")]))
    (group,) = page.gpu_groups.values()
    assert group.problem.text == "The driver has lost the card."
    assert not group.grid.isVisible()
    core.sampler.post(make_reading(gpus=[]))
    assert page.gpu_groups == {}


async def test_engine_rates_come_from_two_looks(page: MonitorPage, core: FakeCore) -> None:
    core.host.stats = EngineStats(
        num_running=3,
        num_waiting=1,
        num_blocks=100,
        num_used_blocks=20,
        num_cached_blocks=30,
        block_size=16,
        prefix_queried_tokens=1000,
        prefix_hit_tokens=250,
        num_steps=5,
        output_tokens=100,
    )
    core.sampler.post(make_reading(1.0))
    assert page.rate.figure == "–"
    core.host.stats = dataclasses.replace(core.host.stats, num_steps=6, output_tokens=130)
    core.sampler.post(make_reading(1.5))
    assert page.rate.figure == "60 tok/s"
    assert (page.requests.figure, page.requests.detail) == ("3 running", "1 waiting")
    assert (page.hit_rate.figure, page.hit_rate.detail) == ("25 %", "250 of 1,000 prompt tokens")
    assert page.blocks.isVisible()
    assert page.blocks.figures == ["20 blocks", "30 blocks", "50 blocks"]


async def test_without_a_model_the_engine_says_so(page: MonitorPage, core: FakeCore) -> None:
    core.sampler.post(make_reading())
    assert page.rate.detail == "No model is loaded."
    assert not page.blocks.isVisible()


async def test_without_a_card_the_cpu_is_named(page: MonitorPage) -> None:
    assert page.cards.empty.text() == NO_CARD
    assert page.cards.empty.isVisible()


@pytest.mark.parametrize("found", [[OLD_CARD]])
@pytest.mark.parametrize("width", [480, 1000])
async def test_cards_are_named_with_verdicts_and_reasons(page: MonitorPage, width: int) -> None:
    page.window().resize(width, 900)
    (row,) = page.cards.rows
    for text in ("NVIDIA Quadro 600", "1 GB", "PCIe 2.0 x16", "2.1"):
        assert text in row.text
    for verdict in OLD_CARD.verdicts:
        assert verdict.software in row.text
        assert verdict.reason in row.text
    assert "Cannot use it" in row.text
    assert "Not known" in row.text


@pytest.mark.parametrize("found", [[OLD_CARD]])
async def test_a_driver_that_fails_is_said_once(page: MonitorPage, core: FakeCore) -> None:
    reading = dataclasses.replace(make_reading(), gpu_problem="The driver does not answer.")
    core.sampler.post(reading)
    assert page.gpu_problem.text == "The driver does not answer."
    page.cards.show_cards([dataclasses.replace(OLD_CARD, problem="The driver does not answer.")])
    core.sampler.post(reading)
    assert page.gpu_problem.text == ""


async def test_nothing_is_sampled_while_hidden(page: MonitorPage, core: FakeCore) -> None:
    assert len(core.sampler.listeners) == 1
    page.hide()
    assert core.sampler.listeners == []
    page.show()
    assert len(core.sampler.listeners) == 1


async def test_nothing_is_sampled_while_minimised(page: MonitorPage, core: FakeCore) -> None:
    page.window().showMinimized()
    await until(lambda: not core.sampler.listeners)
    page.window().showNormal()
    await until(lambda: len(core.sampler.listeners) == 1)


async def test_a_page_that_is_shown_in_a_minimised_window_waits(
    core: FakeCore, tasks: UiTasks, theme: ThemeController
) -> None:
    window = QMainWindow()
    window.setCentralWidget(MonitorPage(core.as_core, inventory=list))
    window.showMinimized()
    await asyncio.sleep(0.02)
    assert core.sampler.listeners == []
    await tasks.cancel_all()


async def test_cards_are_looked_for_once(
    core: FakeCore, tasks: UiTasks, theme: ThemeController
) -> None:
    looks: list[bool] = []

    def inventory() -> list[InventoryCard]:
        looks.append(True)
        return []

    page = MonitorPage(core.as_core, inventory=inventory)
    page.show()
    await until(lambda: page.cards.empty.text() == NO_CARD)
    page.hide()
    page.show()
    await asyncio.sleep(0.02)
    assert looks == [True]
    await tasks.cancel_all()


@pytest.mark.parametrize(("width", "num_columns"), [(440, 1), (1000, 3)])
async def test_tiles_reflow(
    page: MonitorPage, core: FakeCore, width: int, num_columns: int
) -> None:
    page.window().resize(width, 900)
    core.sampler.post(make_reading(gpus=[make_gpu()]))
    tiles = (page.cpu, page.memory, page.disk)
    await until(lambda: len({tile.x() for tile in tiles}) == num_columns)
    await settled()
    assert len({tile.x() for tile in tiles}) == num_columns
    body = page.scroll_area.widget()
    assert body is not None
    assert body.width() <= page.scroll_area.viewport().width()


class LayoutCounter(QObject):
    """Counts how often a page is laid out."""

    num_layouts = 0

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        self.num_layouts += event.type() is QEvent.Type.LayoutRequest
        return False


async def test_figures_that_change_have_nothing_laid_out_anew(
    page: MonitorPage, core: FakeCore
) -> None:
    """A label that is set costs a layout of the whole page, twice a second."""
    stats = EngineStats(num_blocks=100, block_size=16, num_steps=1)
    core.host.stats = stats
    for index in range(3):
        core.sampler.post(make_reading(index * 0.5, gpus=[make_gpu()]))
        await settled()
    counter = LayoutCounter()
    body = page.scroll_area.widget()
    assert body is not None
    body.installEventFilter(counter)
    for index in range(3, 9):
        core.host.stats = dataclasses.replace(
            stats, num_steps=index, output_tokens=31 * index, num_used_blocks=index, num_running=2
        )
        gpu = make_gpu(utilization_percent=index, vram_used_bytes=index * GIB, clock_sm_mhz=index)
        core.sampler.post(make_reading(index * 0.5, gpus=[gpu]))
        await settled()
    assert page.gpu_groups["GPU-1"].load.figure == "8 %"
    assert page.blocks.figures[0] == "8 blocks"
    assert counter.num_layouts == 0
    page.gpu_problem.set_text("A label.")
    await settled()
    assert counter.num_layouts > 0, "the test would see one"


@pytest.mark.slow
@pytest.mark.parametrize("num_gpus", [0, 8])
def test_the_page_costs_little(num_gpus: int) -> None:
    """Limits with room for a busy machine; the measured figures stand in MEASUREMENTS.md."""
    assert measure_cost("page", num_gpus, 20).total < MAX_PAGE_PERCENT
    assert measure_cost("page", num_gpus, 5, "hidden").total < 0.3

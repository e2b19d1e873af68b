"""The strip at the lower edge: what it says, what it leaves out; unseen it reads nothing."""

from collections.abc import AsyncIterator, Sequence

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QMainWindow

from octavo.engine.request import EngineStats
from octavo.monitor.engine_rate import EngineRate
from octavo.monitor.readings import GpuReading
from octavo.ui.monitor.monitor_strip import HEIGHT, INTERVAL_S, MonitorStrip
from octavo.ui.monitor.strip_parts import editions
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import settled, until
from tests.ui.fakes import GIB, FakeCore, make_gpu, make_reading
from tests.ui.monitor.measure_cost import measure_cost

BUSY = EngineStats(
    num_running=3,
    num_waiting=1,
    num_blocks=1000,
    num_used_blocks=205,
    num_cached_blocks=300,
    block_size=16,
    num_steps=7,
)
RATE = EngineRate(output_tokens_per_s=41.6, prompt_tokens_per_s=120.0)


@pytest.fixture
async def strip(
    core: FakeCore, tasks: UiTasks, theme: ThemeController
) -> AsyncIterator[MonitorStrip]:
    window = QMainWindow()
    strip = MonitorStrip(core.as_core)
    window.setCentralWidget(strip)
    window.resize(900, 60)
    window.show()
    await until(lambda: strip.is_listening)
    yield strip
    await tasks.cancel_all()
    window.hide()


def lines(gpus: Sequence[GpuReading], stats: EngineStats = BUSY) -> list[list[str]]:
    found = editions(make_reading(gpus=gpus), stats, RATE)
    return [[f"{part.name} {part.figure}".strip() for part in parts] for parts in found]


def test_one_card_and_the_engine() -> None:
    gpu = "GPU 9.0 GiB / 24.0 GiB · 87 %"
    assert lines([make_gpu()]) == [
        [gpu, "42 tok/s", "KV 20 %", "Requests 3 running, 1 waiting"],
        [gpu, "42 tok/s", "KV 20 %"],
        [gpu, "42 tok/s"],
        [gpu],
        [gpu],
    ]


def test_several_cards_are_summed_up_first() -> None:
    second = make_gpu(uuid="GPU-2", vram_used_bytes=GIB, utilization_percent=13.0)
    longest, shorter = lines([make_gpu(), second])[:2]
    assert longest[:2] == ["GPU 0 9.0 GiB / 24.0 GiB · 87 %", "GPU 1 1.0 GiB / 24.0 GiB · 13 %"]
    assert shorter[0] == "2 GPUs 10.0 GiB / 48.0 GiB · 50 %"
    assert shorter[1:] == longest[2:]


def test_without_a_card_the_processor_and_the_memory() -> None:
    assert lines([])[0][:2] == ["CPU 37 %", "Memory 17.0 GiB / 32.0 GiB"]


def test_what_is_not_reported_is_not_invented() -> None:
    silent = make_gpu(vram_used_bytes=None, utilization_percent=None)
    assert lines([silent])[-1] == ["GPU – · –"]
    lost = make_gpu(problem="The driver has lost this card.")
    assert lines([lost], EngineStats())[0] == ["GPU lost", "Engine no model"]
    (parts, *_) = editions(make_reading(gpus=[lost]), EngineStats(), EngineRate())
    assert parts[0].exact.endswith("The driver has lost this card.")


async def test_it_says_the_numbers_exactly_to_who_asks(strip: MonitorStrip, core: FakeCore) -> None:
    core.host.stats = BUSY
    core.sampler.post(make_reading(gpus=[make_gpu()]))
    description = strip.accessibleDescription()
    assert "VRAM 9,216 of 24,576 MiB, utilisation 87 %." in description
    assert "205 of 1,000 blocks in use" in description
    places = strip._places(strip.parts)
    for part, (left, _width) in zip(strip.parts, places, strict=True):
        assert strip._part_at(left + 2) is part
    assert strip._part_at(strip.width() - 1) is None


@pytest.mark.parametrize("width", [900, 420, 260])
async def test_a_narrow_window_has_the_most_important(
    strip: MonitorStrip, core: FakeCore, width: int
) -> None:
    core.host.stats = BUSY
    core.sampler.post(make_reading(1.0, gpus=[make_gpu()]))
    strip.window().resize(width, 60)
    await until(lambda: strip.width() == width)
    await settled()
    left, part_width = strip._places(strip.parts)[-1]
    assert left + part_width <= width
    assert strip.parts[0].name == "GPU"
    assert (len(strip.parts) == 4) == (width == 900)


async def test_a_click_and_the_keyboard_ask_for_the_page(strip: MonitorStrip) -> None:
    asked: list[bool] = []
    strip.clicked.connect(lambda: asked.append(True))
    QTest.mouseClick(strip, Qt.MouseButton.LeftButton, pos=QPoint(40, 10))
    strip.setFocus()
    QTest.keyClick(strip, Qt.Key.Key_Space)
    assert len(asked) == 2


async def test_nothing_is_read_while_hidden_or_minimised(
    strip: MonitorStrip, core: FakeCore
) -> None:
    assert strip.is_listening
    strip.hide()
    assert core.sampler.listeners == []
    strip.show()
    assert len(core.sampler.listeners) == 1
    strip.window().showMinimized()
    await until(lambda: not core.sampler.listeners)
    strip.window().showNormal()
    await until(lambda: len(core.sampler.listeners) == 1)


async def test_it_asks_for_one_reading_a_second(strip: MonitorStrip, core: FakeCore) -> None:
    assert core.sampler.intervals_s == [INTERVAL_S]


async def test_it_grows_with_the_type(strip: MonitorStrip, theme: ThemeController) -> None:
    assert strip.height() == HEIGHT
    theme.set_scale(2.0)
    assert strip.height() == 2 * HEIGHT


async def test_a_reading_that_says_the_same_is_not_painted(
    strip: MonitorStrip, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.sampler.post(make_reading(1.0, gpus=[make_gpu()]))
    updates: list[bool] = []
    monkeypatch.setattr(strip, "update", lambda: updates.append(True))
    core.sampler.post(make_reading(2.0, gpus=[make_gpu()]))
    assert updates == []
    core.sampler.post(make_reading(3.0, gpus=[make_gpu(utilization_percent=3.0)]))
    assert updates == [True]


@pytest.mark.slow
def test_the_strip_costs_next_to_nothing() -> None:
    assert measure_cost("strip", 8, 20).total < 1.0
    assert measure_cost("strip", 8, 5, "hidden").total < 0.3

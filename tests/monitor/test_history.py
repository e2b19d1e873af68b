"""Series of fixed length, and the engine's rates from its counters."""

import time

import pytest

from octavo.engine.request import EngineStats
from octavo.monitor.engine_rate import EngineRate, EngineRateMeter
from octavo.monitor.history import MachineHistory, Series
from octavo.monitor.readings import GpuReading
from tests.monitor.machine_readings import make_reading


def test_a_series_forgets_the_oldest() -> None:
    series = Series(3)
    assert series.highest is None
    for value in (9.0, 1.0, None, 4.0):
        series.append(value)
    assert list(series) == [1.0, None, 4.0]
    assert len(series) == 3
    assert series.highest == 4.0


def test_each_gpu_has_its_own_series() -> None:
    history = MachineHistory(capacity=2)
    named = GpuReading("A", uuid="GPU-1", power_w=10.0, utilization_percent=5.0)
    nameless = GpuReading("B", temperature_c=50.0)
    for time_s in (0.0, 1.0, 2.0):
        history.add(make_reading(time_s, named, nameless))
    assert list(history.gpus) == ["GPU-1", "1 B"]
    assert list(history.gpus["GPU-1"].power_w) == [10.0, 10.0]
    assert list(history.gpus["GPU-1"].temperature_c) == [None, None]
    assert list(history.time_s) == [1.0, 2.0]
    assert list(history.cpu_utilization_percent) == [12.5, 12.5]
    assert list(history.disk_read_bytes_per_s) == [None, None]


def test_adding_is_cheap() -> None:
    history = MachineHistory()
    reading = make_reading(0.0, *[GpuReading("A", uuid=f"GPU-{index}") for index in range(8)])
    start_s = time.process_time()
    for _ in range(1000):
        history.add(reading)
    assert (time.process_time() - start_s) / 1000 < 0.001


def test_engine_rates() -> None:
    meter = EngineRateMeter()
    assert meter.measure(0.0, EngineStats()) == EngineRate(None, None, None)
    stats = EngineStats(
        num_steps=10,
        output_tokens=50,
        prompt_tokens_computed=300,
        prefix_queried_tokens=400,
        prefix_hit_tokens=100,
    )
    rate = meter.measure(2.0, stats)
    assert (rate.output_tokens_per_s, rate.prompt_tokens_per_s) == (25.0, 150.0)
    assert rate.prefix_hit_percent == pytest.approx(25.0)
    assert meter.measure(3.0, stats).output_tokens_per_s == 0.0
    assert meter.measure(4.0, EngineStats(num_steps=1)).output_tokens_per_s is None, "loaded anew"

"""CPU, memory and disk of this machine, and the whole machine in one look."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

from octavo.monitor.amd import AmdProbe
from octavo.monitor.machine import MachineProbe
from octavo.monitor.system import SystemProbe

SAMPLES = 40
MAX_CORE_SHARE = 0.01
INTERVAL_S = 0.5


class CpuTimes(NamedTuple):
    user: float
    idle: float
    iowait: float
    guest: float


def test_a_rate_needs_two_looks(tmp_path: Path) -> None:
    now = [0.0]
    probe = SystemProbe(tmp_path, clock=lambda: now[0])
    assert probe.read_cpu().utilization_percent is None
    first = probe.read_disk()
    assert first is not None
    assert first.read_bytes_per_s is None
    assert 0 < first.free_bytes < first.total_bytes


def test_cpu_share_is_what_was_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([CpuTimes(10.0, 100.0, 0.0, 5.0), CpuTimes(13.0, 108.0, 1.0, 6.0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(times))
    probe = SystemProbe(tmp_path)
    probe.read_cpu()
    # The guest's second is one of the user's three; twelve passed.
    assert probe.read_cpu().utilization_percent == pytest.approx(25.0)


def test_disk_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    counters = iter([(1000, 500), (3000, 500), (2000, 400)])
    monkeypatch.setattr(
        psutil,
        "disk_io_counters",
        lambda: SimpleNamespace(
            **dict(zip(("read_bytes", "write_bytes"), next(counters), strict=True))
        ),
    )
    probe = SystemProbe(tmp_path, clock=lambda: now[0])
    rates = []
    for now[0] in (0.0, 2.0, 4.0):
        disk = probe.read_disk()
        assert disk is not None
        rates.append((disk.read_bytes_per_s, disk.written_bytes_per_s))
    assert rates == [(None, None), (1000.0, 0.0), (0.0, 0.0)], "a counter that wraps is no rate"


def test_hidden_counters_and_absent_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    disk = SystemProbe(tmp_path).read_disk()
    assert disk is not None
    assert disk.read_bytes_per_s is None
    assert SystemProbe(tmp_path / "absent").read_disk() is None


def test_memory_adds_up(tmp_path: Path) -> None:
    memory = SystemProbe(tmp_path).read_memory()
    assert memory.used_bytes + memory.available_bytes == memory.total_bytes
    assert memory.octavo_bytes is not None
    assert 0 < memory.octavo_bytes < memory.total_bytes


def test_nothing_heavy_is_loaded() -> None:
    modules = "machine, sampler, history, engine_rate, inventory"
    code = f"from octavo.monitor import {modules}; import sys; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not set(output.stdout.split()) & {"torch", "PySide6", "numpy", "sqlite3", "httpx"}


def test_the_whole_machine(tmp_path: Path) -> None:
    probe = MachineProbe(tmp_path / "models" / "not" / "made" / "yet", amd=AmdProbe(tmp_path))
    first, second = probe.read(), probe.read()
    probe.close()
    assert second.time_s >= first.time_s
    assert second.disk is not None
    assert second.disk.folder == str(tmp_path)
    assert second.gpus or second.gpu_problem


def test_a_look_costs_less_than_a_hundredth_of_a_core_at_2_hz(tmp_path: Path) -> None:
    probe = MachineProbe(tmp_path)
    probe.read()  # Opens what has to be opened.
    start_s = time.process_time()
    for _ in range(SAMPLES):
        probe.read()
    share = (time.process_time() - start_s) / (SAMPLES * INTERVAL_S)
    probe.close()
    print(f"{share:.3%} of a core")
    assert share < MAX_CORE_SHARE


@pytest.mark.gpu
def test_a_look_at_a_real_card_costs_as_little(tmp_path: Path) -> None:
    test_a_look_costs_less_than_a_hundredth_of_a_core_at_2_hz(tmp_path)

"""The CPU, the memory and the disk through psutil."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from octavo.monitor.readings import CpuReading, DiskReading, MemoryReading

DISK_INTERVAL_S = 0.9
"""Counters are not read more often: it takes longer than all the rest."""


class SystemProbe:
    """Reads from one thread; what is a rate is taken against the reading before."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._process = psutil.Process()
        self._num_threads = os.cpu_count() or 1
        self._cpu_before: tuple[float, float] | None = None
        self._disk_before: tuple[float, int, int] | None = None
        self._disk_rates: tuple[float | None, float | None] = (None, None)

    def read_cpu(self) -> CpuReading:
        times = psutil.cpu_times()
        # On Linux a guest's time stands in the user's as well.
        guest_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        total_s = sum(times) - guest_s
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        before, self._cpu_before = self._cpu_before, (total_s, idle_s)
        if before is None or total_s <= before[0]:
            return CpuReading(None, self._num_threads)
        idle_share = (idle_s - before[1]) / (total_s - before[0])
        return CpuReading(min(100.0, max(0.0, 100.0 * (1.0 - idle_share))), self._num_threads)

    def read_memory(self) -> MemoryReading:
        memory = psutil.virtual_memory()
        try:
            octavo_bytes = int(self._process.memory_info().rss)
        except psutil.Error:
            octavo_bytes = None
        return MemoryReading(
            total_bytes=memory.total,
            used_bytes=memory.total - memory.available,
            available_bytes=memory.available,
            octavo_bytes=octavo_bytes,
        )

    def read_disk(self) -> DiskReading | None:
        """None if the folder's disk cannot be asked (not made yet, unplugged)."""
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return None
        read_bytes_per_s, written_bytes_per_s = self._read_disk_rates()
        return DiskReading(
            folder=str(self._folder),
            total_bytes=usage.total,
            free_bytes=usage.free,
            read_bytes_per_s=read_bytes_per_s,
            written_bytes_per_s=written_bytes_per_s,
        )

    def _read_disk_rates(self) -> tuple[float | None, float | None]:
        now_s, before = self._clock(), self._disk_before
        if before is not None and 0 <= now_s - before[0] < DISK_INTERVAL_S:
            return self._disk_rates
        self._disk_rates = self._measure_disk(now_s)
        return self._disk_rates

    def _measure_disk(self, now_s: float) -> tuple[float | None, float | None]:
        try:
            counters = psutil.disk_io_counters()
        except (OSError, NotImplementedError):  # A container may hide the counters.
            counters = None
        if counters is None:
            return None, None
        now = (now_s, counters.read_bytes, counters.write_bytes)
        before, self._disk_before = self._disk_before, now
        if before is None or now[0] <= before[0]:
            return None, None
        seconds = now[0] - before[0]
        return max(0, now[1] - before[1]) / seconds, max(0, now[2] - before[2]) / seconds

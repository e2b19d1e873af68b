"""The last minutes of each reading, for the sparklines: fixed memory, oldest first."""

from collections import deque
from collections.abc import Iterator

from octavo.monitor.readings import GpuReading, MachineReading

DEFAULT_CAPACITY = 600
"""Five minutes at 2 Hz."""


class Series:
    """The newest values of one number; None where it was not reported."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._values: deque[float | None] = deque(maxlen=capacity)
        # What may yet become the highest, falling, with the number of its append.
        self._summits: deque[tuple[float, int]] = deque()
        self._num_appended = 0

    def append(self, value: float | None) -> None:
        self._values.append(value)
        self._num_appended += 1
        summits = self._summits
        if value is not None:
            while summits and summits[-1][0] <= value:
                summits.pop()
            summits.append((value, self._num_appended))
        if summits and summits[0][1] <= self._num_appended - len(self._values):
            summits.popleft()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[float | None]:
        return iter(self._values)

    def __getitem__(self, index: int) -> float | None:
        """Quick near both ends."""
        return self._values[index]

    @property
    def latest(self) -> float | None:
        return self._values[-1] if self._values else None

    @property
    def highest(self) -> float | None:
        """Known without a look through all values."""
        return self._summits[0][0] if self._summits else None


class GpuHistory:
    """The series of one GPU."""

    def __init__(self, capacity: int) -> None:
        self.vram_used_bytes = Series(capacity)
        self.utilization_percent = Series(capacity)
        self.temperature_c = Series(capacity)
        self.power_w = Series(capacity)

    def add(self, reading: GpuReading) -> None:
        self.vram_used_bytes.append(reading.vram_used_bytes)
        self.utilization_percent.append(reading.utilization_percent)
        self.temperature_c.append(reading.temperature_c)
        self.power_w.append(reading.power_w)


class MachineHistory:
    """The series of the whole machine."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self.time_s = Series(capacity)
        self.cpu_utilization_percent = Series(capacity)
        self.memory_used_bytes = Series(capacity)
        self.disk_read_bytes_per_s = Series(capacity)
        self.disk_written_bytes_per_s = Series(capacity)
        self.gpus: dict[str, GpuHistory] = {}
        """By `gpu_key`; a card that is lost keeps what it had."""

    def add(self, reading: MachineReading) -> None:
        self.time_s.append(reading.time_s)
        self.cpu_utilization_percent.append(reading.cpu.utilization_percent)
        self.memory_used_bytes.append(reading.memory.used_bytes)
        disk = reading.disk
        self.disk_read_bytes_per_s.append(disk.read_bytes_per_s if disk else None)
        self.disk_written_bytes_per_s.append(disk.written_bytes_per_s if disk else None)
        for index, gpu in enumerate(reading.gpus):
            key = gpu_key(index, gpu)
            if key not in self.gpus:
                self.gpus[key] = GpuHistory(self._capacity)
            self.gpus[key].add(gpu)


def gpu_key(index: int, reading: GpuReading) -> str:
    """What a GPU is known by from one reading to the next."""
    return reading.uuid or f"{index} {reading.name}"

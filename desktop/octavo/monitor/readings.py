"""One look at the machine as plain frozen values, with the unit in every name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    """Empty if the system will not say: another user's, or outside of this container."""
    vram_bytes: int | None
    """None where the driver does not tell processes apart (Windows, some containers)."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now. None means that the card or its driver does not report it."""

    name: str
    uuid: str | None = None
    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    problem: str = ""
    """Why nothing is reported, as a sentence: the driver has lost the card, say."""


@dataclass(frozen=True, slots=True)
class CpuReading:
    """All processors together."""

    utilization_percent: float | None
    """Since the reading before; None with the first."""
    num_threads: int


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The system's memory; `used_bytes` is what could not be given to a program now."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    octavo_bytes: int | None
    """What this process holds."""


@dataclass(frozen=True, slots=True)
class DiskReading:
    """The disk below a folder, and the traffic of all disks since the reading before."""

    folder: str
    total_bytes: int
    free_bytes: int
    read_bytes_per_s: float | None
    written_bytes_per_s: float | None


@dataclass(frozen=True, slots=True)
class MachineReading:
    """Everything at one moment."""

    time_s: float
    """On the monotonic clock."""
    cpu: CpuReading
    memory: MemoryReading
    disk: DiskReading | None
    gpus: tuple[GpuReading, ...]
    gpu_problem: str = ""
    """Why NVIDIA's driver does not answer, as a sentence; empty if it does."""

"""What this machine offers: GPUs through NVML, the CPU and its memory through psutil. No torch."""

import importlib.util
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.engine.config import EngineConfig
from octavo.errors import InvalidSettingsError, ResourceError

MIN_COMPUTE_CAPABILITY = (7, 5)
MIN_TRITON_CAPABILITY = (8, 0)
"""What our kernels for NVIDIA cards need."""
CGROUP = Path("/sys/fs/cgroup")
CPU_LIST = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Device:
    """A processor that could run a model, and whether this installation can use it."""

    kind: Literal["cpu", "cuda"]
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None
    supported: bool = True
    reason: str = ""
    """Why it is not supported, as a sentence."""

    @property
    def torch_name(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


def detect_devices(nvml: Any = None) -> list[Device]:
    """Lists the GPUs, then the CPU; never raises, a machine without NVML simply has no GPU.

    Args:
        nvml: the module `pynvml`, or what stands in for it.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    return [*_cuda_devices(nvml), _cpu_device()]


def choose_device(config: EngineConfig, devices: Sequence[Device]) -> Device:
    """Picks the device the configuration names; `auto` is the supported GPU with most free memory.

    Raises:
        InvalidSettingsError: the name is not a device's.
        ResourceError: this machine has no such device, or cannot use it.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise InvalidSettingsError(
            f"device is {config.device!r}; it must be auto, cpu, cuda or cuda:N."
        )
    gpus = [device for device in devices if device.kind == "cuda"]
    usable = [device for device in gpus if device.supported]
    if config.device == "cpu" or (config.device == "auto" and not usable):
        return next(device for device in devices if device.kind == "cpu")
    if config.device in ("auto", "cuda"):
        named = usable or gpus
    else:
        named = [device for device in gpus if device.torch_name == config.device]
    if not named:
        listed = ", ".join(device.torch_name for device in devices)
        raise ResourceError(
            f"This machine has no {config.device} device.",
            hint=f"Found: {listed}. Choose one of them, or auto.",
        )
    best = max(named, key=lambda device: device.free_bytes)
    if not best.supported:
        raise ResourceError(
            f"{best.name} ({best.torch_name}) cannot be used. {best.reason}",
            hint="Choose cpu or auto.",
        )
    return best


def default_cpu_threads() -> int:
    """One for each core that this process may use; threads that share a core would wait for it."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))


def _cpu_device() -> Device:
    import psutil

    memory = psutil.virtual_memory()
    total_bytes, free_bytes = memory.total, memory.available
    limit = _container_limit()
    if limit is not None:
        total_bytes, free_bytes = min(total_bytes, limit[0]), min(free_bytes, limit[1])
    return Device("cpu", 0, _cpu_name(), total_bytes, free_bytes)


def _container_limit() -> tuple[int, int] | None:
    """Total and free bytes under a control group's limit; None outside of one."""
    try:
        total_bytes = int((CGROUP / "memory.max").read_text())
        used_bytes = int((CGROUP / "memory.current").read_text())
        # The kernel gives the page cache back under pressure, so it counts as free.
        statistics = dict(
            line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()
        )
        cache_bytes = int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
    return total_bytes, max(0, total_bytes - used_bytes + cache_bytes)


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", CPU_LIST.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _cuda_devices(nvml: Any) -> list[Device]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        cuda_version = _torch_cuda_version()
        handles = _visible_handles(nvml)
        return [
            device
            for index, handle in enumerate(handles)
            if (device := _cuda_device(nvml, index, handle, cuda_version)) is not None
        ]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _visible_handles(nvml: Any) -> list[Any]:
    """The GPUs CUDA will number from 0: all in bus order, or those CUDA_VISIBLE_DEVICES names."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return handles
    chosen = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isdigit():
            matches = [int(name)] if int(name) < len(handles) else []
        else:
            matches = [
                i
                for i, handle in enumerate(handles)
                if name.startswith("GPU-")
                and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name)
            ]
        if not matches:  # CUDA, too, ignores everything after a name it does not know.
            break
        chosen.append(handles[matches[0]])
    return chosen


def _cuda_device(nvml: Any, index: int, handle: Any, cuda_version: str | None) -> Device | None:
    """One GPU; None if the driver will not say what it is (it has fallen off the bus, say)."""
    try:
        name = _text(nvml.nvmlDeviceGetName(handle))
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        return None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total_bytes, free_bytes = int(memory.total), int(memory.free)
    except nvml.NVMLError:  # A GPU that shares the system's memory has none of its own to report.
        import psutil

        system = psutil.virtual_memory()
        total_bytes, free_bytes = system.total, system.available
    reason = _unsupported_reason((int(major), int(minor)), cuda_version)
    return Device(
        kind="cuda",
        index=index,
        name=name,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        compute_capability=(int(major), int(minor)),
        supported=not reason,
        reason=reason,
    )


def _unsupported_reason(capability: tuple[int, int], cuda_version: str | None) -> str:
    if capability < MIN_COMPUTE_CAPABILITY:
        return (
            f"Its compute capability is {capability[0]}.{capability[1]}; PyTorch 2.x's CUDA builds"
            f" start at {MIN_COMPUTE_CAPABILITY[0]}.{MIN_COMPUTE_CAPABILITY[1]}."
        )
    if cuda_version is None:
        return "The PyTorch installed here is a build for the CPU; a CUDA build would use the GPU."
    return ""


def _torch_cuda_version() -> str | None:
    """The CUDA version PyTorch was built for, read from its files so that it is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found.group(1) if found else None


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value

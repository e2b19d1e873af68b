"""NVIDIA GPUs through NVML: every field optional, lost cards said, no CUDA context made to look."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pynvml

from octavo.monitor.readings import GpuProcess, GpuReading

REOPEN_INTERVAL_S = 10.0
SLOW_INTERVAL_S = 1.9
"""How long the list of processes and the power limit hold: the list costs more than all else."""
MILLIWATTS = 1000.0

# After these a handle is of no use any more; every other error means "this field is not reported".
LOST = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
    }
)
DRIVER_SENTENCES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "No NVIDIA driver was found on this machine.",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA's driver is installed but not loaded; after an"
    " update, restarting the machine loads it.",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVIDIA's driver was updated while the machine was"
    " running; restarting the machine completes the update.",
    pynvml.NVML_ERROR_NO_PERMISSION: "NVIDIA's driver refuses to answer this user.",
}
LOST_SENTENCE = (
    "The driver has lost this card. Octavo looks for it again every 10 seconds; if it stays lost,"
    " restart the machine."
)
RESET_SENTENCE = "The driver says that this card must be reset; restarting the machine does it."
SILENT_SENTENCE = "The driver reports nothing about this card."


@dataclass(frozen=True, slots=True)
class NvmlReport:
    """What NVML said in one look."""

    gpus: tuple[GpuReading, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NvmlCard:
    """What does not change about a card, for the inventory."""

    name: str
    bus_id: str | None = None
    """As the kernel writes it: `0000:01:00.0`."""
    pci_id: str | None = None
    """`10de:2684`."""
    vram_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class _Slot:
    handle: Any
    """None if the driver no longer hands one out."""
    name: str
    uuid: str | None


@dataclass(frozen=True, slots=True)
class _SlowFields:
    """What need not be asked for at every reading."""

    read_at_s: float
    power_limit_w: float | None
    processes: tuple[GpuProcess, ...] | None


class NvmlProbe:
    """Reads the GPUs from one thread; opens NVML at the first reading and again when it is lost."""

    def __init__(self, nvml: Any = pynvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._clock = clock
        self._slots: list[_Slot] = []
        self._slow_fields: dict[str, _SlowFields] = {}
        """By uuid."""
        self._is_open = False
        self._must_reopen = True
        self._opened_at_s: float | None = None
        self._problem = ""
        self._process_names: dict[int, str] = {}

    def read(self) -> NvmlReport:
        """One reading per GPU; never raises, what is wrong stands in `problem`."""
        if self._must_reopen and self._may_reopen():
            self._reopen()
        if not self._is_open:
            return NvmlReport((), self._problem)
        gpus = tuple(self._read_gpu(slot) for slot in self._slots)
        seen = {process.pid for gpu in gpus for process in gpu.processes or ()}
        self._process_names = {
            pid: name for pid, name in self._process_names.items() if pid in seen
        }
        return NvmlReport(gpus)

    def cards(self) -> tuple[tuple[NvmlCard, ...], str]:
        """The cards that answer, and why NVML does not answer at all if so."""
        if self._must_reopen and self._may_reopen():
            self._reopen()
        found = [self._describe(slot) for slot in self._slots if slot.handle is not None]
        return tuple(found), self._problem

    def close(self) -> None:
        """Lets go of NVML; a later reading opens it again."""
        self._shut_down()
        self._opened_at_s = None

    def _shut_down(self) -> None:
        if self._is_open:
            # A driver that is gone has nothing left to close.
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._is_open = False
        self._must_reopen = True

    def _may_reopen(self) -> bool:
        return self._opened_at_s is None or self._clock() - self._opened_at_s >= REOPEN_INTERVAL_S

    def _reopen(self) -> None:
        self._shut_down()
        self._opened_at_s = self._clock()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            self._problem = self._say(error)
            return
        self._is_open = True
        try:
            num_gpus = int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            self._problem = self._say(error)
            self._shut_down()
            return
        self._problem = ""
        self._slots = self._find_slots(num_gpus)
        self._slow_fields.clear()
        self._must_reopen = any(slot.handle is None for slot in self._slots)

    def _find_slots(self, num_gpus: int) -> list[_Slot]:
        """The GPUs that answer, then those known from before that no longer do."""
        found = [slot for index in range(num_gpus) if (slot := self._find_slot(index))]
        uuids = {slot.uuid for slot in found}
        missing = [
            replace(slot, handle=None)
            for slot in self._slots
            if slot.uuid is not None and slot.uuid not in uuids
        ]
        # A card that was lost before Octavo started has no name that could still be asked for.
        num_nameless = num_gpus - len(found) - len(missing)
        nameless = [_Slot(None, "NVIDIA GPU", None) for _ in range(num_nameless)]
        return [*found, *missing, *nameless]

    def _find_slot(self, index: int) -> _Slot | None:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            name = self._ask("nvmlDeviceGetName", handle)
            uuid = self._ask("nvmlDeviceGetUUID", handle)
        except self._nvml.NVMLError:
            return None
        return _Slot(handle, _text(name) or f"NVIDIA GPU {index}", _text(uuid))

    def _read_gpu(self, slot: _Slot) -> GpuReading:
        if slot.handle is None:
            return GpuReading(slot.name, slot.uuid, problem=LOST_SENTENCE)
        try:
            reading = self._ask_everything(slot)
        except self._nvml.NVMLError as error:
            self._must_reopen = True
            is_reset = error.value == self._nvml.NVML_ERROR_RESET_REQUIRED
            problem = RESET_SENTENCE if is_reset else LOST_SENTENCE
            return GpuReading(slot.name, slot.uuid, problem=problem)
        if reading == GpuReading(slot.name, slot.uuid):
            self._must_reopen = True
            return replace(reading, problem=SILENT_SENTENCE)
        return reading

    def _ask_everything(self, slot: _Slot) -> GpuReading:
        nvml, handle = self._nvml, slot.handle
        memory = self._ask_memory(handle)
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        power_mw = self._ask("nvmlDeviceGetPowerUsage", handle)
        slow = self._ask_slow_fields(slot)
        return GpuReading(
            name=slot.name,
            uuid=slot.uuid,
            vram_used_bytes=None if memory is None else int(memory.used),
            vram_total_bytes=None if memory is None else int(memory.total),
            utilization_percent=None if rates is None else float(rates.gpu),
            temperature_c=self._ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power_mw is None else power_mw / MILLIWATTS,
            power_limit_w=slow.power_limit_w,
            clock_sm_mhz=self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            clock_memory_mhz=self._ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
            processes=slow.processes,
        )

    def _ask_slow_fields(self, slot: _Slot) -> _SlowFields:
        now_s = self._clock()
        known = self._slow_fields.get(slot.uuid or "")
        if known is not None and now_s - known.read_at_s < SLOW_INTERVAL_S:
            return known
        limit_mw = self._ask("nvmlDeviceGetEnforcedPowerLimit", slot.handle)
        fields = _SlowFields(
            read_at_s=now_s,
            power_limit_w=None if limit_mw is None else limit_mw / MILLIWATTS,
            processes=self._ask_processes(slot.handle),
        )
        if slot.uuid is not None:
            self._slow_fields[slot.uuid] = fields
        return fields

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The answer; None where the card or the driver has none.

        Raises:
            NVMLError: the card is lost.
        """
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in LOST:
                raise
            return None

    def _ask_memory(self, handle: Any) -> Any:
        """Without the driver's own reserve where the driver can tell (since 510)."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle, self._nvml.nvmlMemory_v2)
        return memory if memory is not None else self._ask("nvmlDeviceGetMemoryInfo", handle)

    def _ask_processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        """Who holds memory, most first; a process that computes and draws counts once."""
        found: dict[int, int | None] = {}
        computing = self._ask("nvmlDeviceGetComputeRunningProcesses_v3", handle)
        drawing = self._ask("nvmlDeviceGetGraphicsRunningProcesses_v3", handle)
        if computing is None and drawing is None:
            return None
        for process in [*(computing or ()), *(drawing or ())]:
            used_bytes = process.usedGpuMemory
            known_bytes = found.get(process.pid)
            if used_bytes is None or (known_bytes is not None and known_bytes >= used_bytes):
                found.setdefault(process.pid, None)
            else:
                found[process.pid] = int(used_bytes)
        return tuple(
            GpuProcess(pid, self._process_name(pid), used_bytes)
            for pid, used_bytes in sorted(found.items(), key=lambda item: -(item[1] or 0))
        )

    def _process_name(self, pid: int) -> str:
        if pid not in self._process_names:
            try:
                self._process_names[pid] = psutil.Process(pid).name()
            except psutil.Error:
                self._process_names[pid] = ""
        return self._process_names[pid]

    def _describe(self, slot: _Slot) -> NvmlCard:
        try:
            pci = self._ask("nvmlDeviceGetPciInfo", slot.handle)
            memory = self._ask("nvmlDeviceGetMemoryInfo", slot.handle)
            capability = self._ask("nvmlDeviceGetCudaComputeCapability", slot.handle)
            generation = self._ask("nvmlDeviceGetGpuMaxPcieLinkGeneration", slot.handle)
            width = self._ask("nvmlDeviceGetMaxPcieLinkWidth", slot.handle)
        except self._nvml.NVMLError:
            return NvmlCard(slot.name)
        return NvmlCard(
            name=slot.name,
            bus_id=None if pci is None else _kernel_bus_id(_text(pci.busId) or ""),
            pci_id=None
            if pci is None
            else f"{pci.pciDeviceId & 0xFFFF:04x}:{pci.pciDeviceId >> 16:04x}",
            vram_bytes=None if memory is None else int(memory.total),
            compute_capability=None
            if capability is None
            else (int(capability[0]), int(capability[1])),
            interface=None
            if generation is None or width is None
            else f"PCIe {generation}.0 x{width}",
        )

    def _say(self, error: Any) -> str:
        return DRIVER_SENTENCES.get(error.value, f"NVIDIA's driver does not answer: {error}.")


def _kernel_bus_id(bus_id: str) -> str:
    """`00000000:01:00.0`, NVML's long domain, as the kernel names the folder."""
    return bus_id.lower()[-12:]


def _text(value: bytes | str | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value

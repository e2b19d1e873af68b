"""All probes together: one look at the whole machine."""

import time
from pathlib import Path

from octavo.monitor.amd import AmdProbe
from octavo.monitor.nvml import NvmlProbe
from octavo.monitor.readings import MachineReading
from octavo.monitor.system import SystemProbe


class MachineProbe:
    """Reads CPU, memory, the models' disk and every GPU; used from one thread at a time."""

    def __init__(
        self,
        models_dir: Path,
        nvml: NvmlProbe | None = None,
        amd: AmdProbe | None = None,
    ) -> None:
        self._system = SystemProbe(_nearest_existing(models_dir))
        self._nvml = nvml or NvmlProbe()
        self._amd = amd or AmdProbe()

    def read(self) -> MachineReading:
        """One reading; a part that does not answer is None or says why, nothing raises."""
        report = self._nvml.read()
        return MachineReading(
            time_s=time.monotonic(),
            cpu=self._system.read_cpu(),
            memory=self._system.read_memory(),
            disk=self._system.read_disk(),
            gpus=(*report.gpus, *self._amd.read()),
            gpu_problem=report.problem,
        )

    def close(self) -> None:
        self._nvml.close()


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder

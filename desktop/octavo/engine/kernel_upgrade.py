"""`KernelUpgrade`: has kernels compiled beside an engine that computes in torch until then."""

import dataclasses
from typing import TYPE_CHECKING, Protocol

from octavo.engine.engine import Engine
from octavo.engine.executor import Executor
from octavo.engine.freed_memory import return_freed_memory
from octavo.engine.load_report import LoadReport
from octavo.engine.memory import MemoryPlan
from octavo.engine.model_runner import ModelRunner
from octavo.errors import OctavoError
from octavo.jobs import JobControl, Progress

if TYPE_CHECKING:
    from octavo.engine.kernels.cpu.kernel_cache import ReportParts

STAGE = "Computing in PyTorch until the kernels are compiled"
"""What is reported meanwhile; the unit is parts of the kernels."""


class LoadsKernels(Protocol):
    """What an upgrade needs of the load that it belongs to."""

    def compile_kernels(self, report: "ReportParts", *, in_child_only: bool) -> None: ...
    def executor(self, plan: MemoryPlan, control: JobControl) -> Executor: ...
    def runner(self, executor: Executor, plan: MemoryPlan) -> ModelRunner: ...
    def report(self, executor: Executor, plan: MemoryPlan) -> LoadReport: ...


class KernelUpgrade:
    """As `Upgrade` says. Until it is applied there are two executors, each with its weights."""

    def __init__(
        self, engine: Engine, load: LoadsKernels, plan: MemoryPlan, report: LoadReport
    ) -> None:
        """Args:
        engine: computes in torch.
        load: that made it.
        plan: of the kernels.
        report: of the load, to go on with.
        """
        self._engine = engine
        self._load = load
        self._plan = plan
        self._report = report
        self._executor: Executor | None = None

    def prepare(self, control: JobControl) -> None:
        self._load.compile_kernels(
            lambda done, total: control.report(Progress(STAGE, done, total, "kernels")),
            in_child_only=True,
        )
        # Whoever looks is to read the same words until the engine has switched.
        self._executor = self._load.executor(self._plan, control.without_progress())

    def apply(self) -> LoadReport:
        executor, self._executor = self._executor, None
        assert executor is not None
        self._engine.switch_runner(self._load.runner(executor, self._plan))
        # Torch's weights went with its runner.
        return_freed_memory()
        report = self._load.report(executor, self._plan)
        return dataclasses.replace(report, load_s=self._report.load_s)

    def give_up(self, error: OctavoError) -> LoadReport:
        return dataclasses.replace(
            self._report, executor_reason=f"PyTorch computes. {error}", is_temporary=False
        )

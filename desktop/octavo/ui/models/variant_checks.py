"""Which variants of a repository this machine can run, found out from their headers, one by one."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QObject, Signal

from octavo.checkpoint.header import CheckpointHeader
from octavo.core import Core
from octavo.engine.memory import MemoryPlan
from octavo.errors import DownloadError, ModelError, OctavoError
from octavo.hub.hub_files import GGUF, HubRepository, HubVariant
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobControl
from octavo.ui.models.fit import FitVerdict, judge_fit, judge_variant
from octavo.ui.tasks import spawn
from octavo.units import format_bytes

MOST_CHECKS = 8
"""Headers that are read without being asked for; each is some MB of the person's network."""
UNQUANTIZED = ("BF16", "F16", "F32")
"""Twice the size of Q8_0 and hardly better, so they are recommended only where all are such."""

Inspect = Callable[[HuggingFace, HubRepository, HubVariant, Path, JobControl], CheckpointHeader]


def inspect_on_hub(
    hub: HuggingFace,
    repository: HubRepository,
    variant: HubVariant,
    cache_dir: Path,
    control: JobControl,
) -> CheckpointHeader:
    """Imports the network part only when something is to be asked."""
    from octavo.hub.hub_inspect import inspect_variant

    return inspect_variant(hub, repository, variant, cache_dir, control)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a header told; exactly one of the three is there."""

    plan: MemoryPlan | None = None
    refusal: OctavoError | None = None
    """Octavo cannot run it, whatever the machine."""
    failure: OctavoError | None = None
    """It could not be found out this time."""

    @property
    def verdict(self) -> FitVerdict:
        if self.plan is not None:
            return judge_variant(self.plan)
        if self.refusal is not None:
            return FitVerdict("Not supported", "caution", str(self.refusal))
        return FitVerdict("Not checked", "", str(self.failure or ""))

    @property
    def is_comfortable(self) -> bool:
        """Whether it fits and leaves room for other programs."""
        return self.plan is not None and judge_fit(self.plan).tone == "good"


Findings = Mapping[str, Finding]


def candidates(variants: Sequence[HubVariant]) -> list[HubVariant]:
    """What may be recommended, from the smallest to the best."""
    files = [variant for variant in variants if variant.kind == GGUF]
    quantized = [variant for variant in files if variant.quantization not in UNQUANTIZED]
    return sorted(quantized or files or variants, key=lambda variant: variant.size_bytes)


def known_free_bytes(findings: Findings) -> int | None:
    """What is free on the device that models are loaded to; None before the first plan."""
    plans = [finding.plan for finding in findings.values() if finding.plan is not None]
    return plans[-1].free_bytes if plans else None


def next_to_check(variants: Sequence[HubVariant], findings: Findings) -> HubVariant | None:
    """The variant whose header tells most about which is the best that fits; None: it is known.

    Halves what is between the largest that fits and the smallest that does not.
    """
    if any(finding.failure is not None for finding in findings.values()):
        return None
    free_bytes = known_free_bytes(findings)
    unknown: list[HubVariant] = []
    for variant in candidates(variants):
        finding = findings.get(variant.label)
        if finding is None:
            if free_bytes is not None and variant.size_bytes > free_bytes:
                break
            unknown.append(variant)
        elif finding.is_comfortable:
            unknown.clear()
        elif finding.plan is not None:
            break
    return unknown[len(unknown) // 2] if unknown else None


def recommend(variants: Sequence[HubVariant], findings: Findings) -> HubVariant | None:
    """The best of those that fit; one that is tight only where no other fits."""
    known = [variant for variant in candidates(variants) if variant.label in findings]
    comfortable = [variant for variant in known if findings[variant.label].is_comfortable]
    if comfortable:
        return comfortable[-1]
    plans = ((variant, findings[variant.label].plan) for variant in known)
    return next((variant for variant, plan in plans if plan is not None and plan.fits), None)


class VariantChecks(QObject):
    """Reads headers on a worker, one after the other; belongs to the page's thread."""

    changed = Signal()

    def __init__(self, core: Core, inspect: Inspect, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._core = core
        self._inspect = inspect
        self._hub: HuggingFace | None = None
        self._repository: HubRepository | None = None
        self._findings: dict[str, Finding] = {}
        self._asked: list[HubVariant] = []
        self._num_unasked = 0
        self._control = JobControl()
        self._task: asyncio.Task[None] | None = None
        self.checking = ""
        """Label of the variant whose header is being read; empty: none."""

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def recommended(self) -> HubVariant | None:
        """The best that fits, once that is known."""
        is_known = self._repository is not None and not self.is_searching
        return recommend(self._variants, self._findings) if is_known else None

    @property
    def is_searching(self) -> bool:
        """Whether the recommendation is still being looked for."""
        return self.is_running and self._next_unasked() is not None

    @property
    def failure(self) -> OctavoError | None:
        """Why headers cannot be read now."""
        failures = (finding.failure for finding in self._findings.values())
        return next((failure for failure in failures if failure is not None), None)

    def open(self, hub: HuggingFace, repository: HubRepository, first: HubVariant | None) -> None:
        """Begins to look for the variant to recommend.

        Args:
            first: checked before all others, as the person named it.
        """
        self.stop()
        self._hub, self._repository = hub, repository
        self._findings = {}
        self._num_unasked = 0
        self._asked = [] if first is None else [first]
        self._start()

    def check(self, variant: HubVariant) -> None:
        """Reads this one's header next."""
        self._findings.pop(variant.label, None)
        self._asked.append(variant)
        self._start()

    def check_again(self) -> None:
        """Plans anew what was planned, as what is free has changed; headers are on the disk."""
        if self._hub is not None and self._repository is not None:
            known = [variant for variant in self._variants if variant.label in self._findings]
            self.open(self._hub, self._repository, None)
            self._asked = known

    def stop(self) -> None:
        """Ends the reading of headers."""
        self._control.cancel()
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self.checking = ""

    def finding(self, variant: HubVariant) -> Finding | None:
        return self._findings.get(variant.label)

    def verdict(self, variant: HubVariant) -> FitVerdict | None:
        """What is known of a variant; of one larger than the free memory that is known unread."""
        finding = self._findings.get(variant.label)
        if finding is not None:
            return finding.verdict
        free_bytes = known_free_bytes(self._findings)
        if free_bytes is None or variant.size_bytes <= free_bytes:
            return None
        size, free = format_bytes(variant.size_bytes), format_bytes(free_bytes)
        return FitVerdict("Too large", "bad", f"The weights alone are {size}, {free} are free.")

    @property
    def _variants(self) -> Sequence[HubVariant]:
        return () if self._repository is None else self._repository.variants

    def _next_unasked(self) -> HubVariant | None:
        if self._num_unasked >= MOST_CHECKS:
            return None
        return next_to_check(self._variants, self._findings)

    def _start(self) -> None:
        if not self.is_running and self._hub is not None and self._repository is not None:
            self._control = JobControl()
            self._task = spawn(self._run(self._hub, self._repository, self._control))
        self.changed.emit()

    async def _run(self, hub: HuggingFace, repository: HubRepository, control: JobControl) -> None:
        while True:
            if self._asked:
                variant = self._asked.pop(0)
            elif (unasked := self._next_unasked()) is not None:
                variant = unasked
                self._num_unasked += 1
            else:
                break
            self.checking = variant.label
            self.changed.emit()
            finding = await asyncio.to_thread(self._find_out, hub, repository, variant, control)
            self._findings[variant.label] = finding
            self.checking = ""
            self.changed.emit()
        self._task = None
        self.changed.emit()

    def _find_out(
        self,
        hub: HuggingFace,
        repository: HubRepository,
        variant: HubVariant,
        control: JobControl,
    ) -> Finding:
        """On a worker: reads the header and plans its load."""
        try:
            header = self._inspect(hub, repository, variant, self._core.paths.cache_dir, control)
            return Finding(plan=self._core.host.plan_header(header))
        except DownloadError as error:
            return Finding(failure=error)
        except ModelError as error:
            return Finding(refusal=error)
        except OctavoError as error:
            control.raise_if_cancelled()
            return Finding(failure=error)

"""What the monitor costs: the share of one core that a widget takes with its sampler.

    python tests/ui/monitor/measure_cost.py --gpus 8
    python tests/ui/monitor/measure_cost.py --gpus 8 --widget strip

The cards are those of `tests/monitor/fake_nvml.c`, whose numbers change at each call; the driver's
own time for an answer is not in it. The window lies in memory (Qt's `offscreen`).
"""

import argparse
import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "tests" / "monitor" / "fake_nvml.c"
HISTORY_READINGS = 241
WINDOW_SIZE = (1120, 900)


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Shares of one core, in percent."""

    total: float
    sampler: float
    """Of the thread that reads; the rest is the window's."""


def measure_cost(widget: str, num_gpus: int, seconds: float, state: str = "shown") -> Cost:
    """Runs a process of its own with that many pretended cards."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("the pretended driver needs a C compiler")
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "libnvidia-ml.so.1")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(SOURCE)], check=True)
        environment = {
            "LD_LIBRARY_PATH": folder,
            "FAKE_NVML_COUNT": str(num_gpus),
            "FAKE_NVML_VARY": "1",
            "FAKE_NVML_INIT": "0" if num_gpus else "9",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "desktop"), str(ROOT)]),
            "QT_QPA_PLATFORM": "offscreen",
        }
        options = ["--widget", widget, "--seconds", str(seconds), "--state", state, "--child"]
        completed = subprocess.run(
            [sys.executable, __file__, *options],
            env=os.environ | environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    total, sampler = completed.stdout.split()
    return Cost(float(total), float(sampler))


def _run_child(widget: str, seconds: float, state: str) -> Cost:
    from octavo.ui.application import make_application
    from octavo.ui.event_loop import OctavoLoop

    app = make_application()
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=lambda: OctavoLoop(app)) as runner,
    ):
        return runner.run(_measure(widget, seconds, state, Path(folder)))


def _make_working_host() -> object:
    """A host whose engine goes on, so that its figures change, too; it takes no time for itself."""
    from octavo.engine.request import EngineStats
    from tests.ui.fakes import FakeHost

    class WorkingHost(FakeHost):
        @property
        def stats(self) -> EngineStats:
            num_steps = int(time.monotonic() * 50)
            return EngineStats(
                num_running=3,
                num_blocks=4096,
                block_size=16,
                num_steps=num_steps,
                output_tokens=num_steps * 3 + num_steps % 11,
                num_used_blocks=100 + num_steps % 1000,
            )

        @stats.setter
        def stats(self, stats: EngineStats) -> None:
            """The fake begins with none."""

    return WorkingHost()


async def _measure(widget_name: str, seconds: float, state: str, folder: Path) -> Cost:
    from PySide6.QtWidgets import QMainWindow

    from octavo.monitor.machine import MachineProbe
    from octavo.monitor.sampler import Sampler
    from octavo.ui.monitor.monitor_page import MonitorPage
    from octavo.ui.monitor.monitor_strip import MonitorStrip
    from octavo.ui.tasks import UiTasks
    from tests.ui.fakes import FakeCore

    core = FakeCore(folder)
    core.sampler = Sampler(MachineProbe(folder))  # type: ignore[assignment]  # the real one, in the fake's place
    core.host = _make_working_host()  # type: ignore[assignment]  # as above
    window = QMainWindow()
    widget = {"page": MonitorPage, "strip": MonitorStrip}[widget_name](core.as_core)
    window.setCentralWidget(widget)
    window.resize(*WINDOW_SIZE)
    window.show()
    await asyncio.sleep(1.0)
    if isinstance(widget, MonitorPage):
        # Lines of full length from the start: as after two minutes.
        now_s = time.monotonic()
        earlier = MachineProbe(folder)
        for index in range(HISTORY_READINGS):
            before_s = 0.5 * (HISTORY_READINGS - index)
            reading = dataclasses.replace(earlier.read(), time_s=now_s - before_s)
            widget._show_reading(reading)
        earlier.close()
    if state == "hidden":
        widget.hide()
    await asyncio.sleep(2.0)

    before_s, sampler_before_s, began_s = time.process_time(), _sampler_cpu_s(), time.monotonic()
    await asyncio.sleep(seconds)
    duration_s = time.monotonic() - began_s
    cost = Cost(
        100 * (time.process_time() - before_s) / duration_s,
        100 * (_sampler_cpu_s() - sampler_before_s) / duration_s,
    )
    await UiTasks.current().cancel_all()
    window.close()
    core.sampler.close()
    return cost


def _sampler_cpu_s() -> float:
    """0 while there is no such thread."""
    for thread in threading.enumerate():
        if thread.name == "octavo-monitor" and thread.ident is not None:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--widget", choices=["page", "strip"], default="page")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--state", choices=["shown", "hidden"], default="shown")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        cost = _run_child(options.widget, options.seconds, options.state)
        print(cost.total, cost.sampler)
        return
    cost = measure_cost(options.widget, options.gpus, options.seconds, options.state)
    print(
        f"{options.widget}, {options.state}, {options.gpus} cards, {options.seconds:.0f} s:"
        f" {cost.total:.2f} % of a core, {cost.sampler:.2f} % of it the sampler's thread"
    )


if __name__ == "__main__":
    main()

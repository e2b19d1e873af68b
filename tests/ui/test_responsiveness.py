"""The window answers while the engine works: the event loop's delay under eight real streams."""

import asyncio
import contextlib
import statistics
import time
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QPlainTextEdit

from octavo.core import Core
from octavo.engine.sampling_params import SamplingParams
from octavo.paths import AppPaths
from octavo.settings import ChatDefaults
from octavo.ui.main_window import MainWindow
from octavo.ui.tasks import UiTasks
from tests.ui.conftest import until

NUM_STREAMS = 8
MEASURED_S = 8.0
PROBE_S = 0.005
MAX_P99_MS = 50.0


@pytest.mark.starter
@pytest.mark.timeout(180)
async def test_event_loop_delay_under_eight_streams(
    tmp_path: Path, starter_model: Path, tasks: UiTasks
) -> None:
    paths = AppPaths.below(tmp_path)
    paths.models_dir.mkdir(parents=True)
    (paths.models_dir / starter_model.name).symlink_to(starter_model)
    core = Core(paths)
    core.settings.update(chat=ChatDefaults(seed=1))
    await core.host.load(core.library.find("starter"))
    window = MainWindow(core)
    window.show()
    streams = [
        asyncio.create_task(_stream(core, f"Tell a long story about ship number {index}."))
        for index in range(NUM_STREAMS - 1)
    ]
    composer = next(
        editor
        for editor in window.findChildren(QPlainTextEdit)
        if editor.accessibleName() == "Message"
    )
    composer.setPlainText("Tell a long story with a list and some Python code.")
    QTest.keyClick(composer, Qt.Key.Key_Return)
    await until(lambda: core.host.stats.num_running == NUM_STREAMS, timeout_s=30)
    delays_ms = await _measure_delays()
    assert core.host.stats.num_running == NUM_STREAMS, "all were streaming until the end"
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    window.close()
    await tasks.cancel_all()
    assert await core.close()
    p99_ms = statistics.quantiles(delays_ms, n=100)[-1]
    print(
        f"event loop delay with {NUM_STREAMS} streams: median"
        f" {statistics.median(delays_ms):.1f} ms, p99 {p99_ms:.1f} ms, most {max(delays_ms):.1f} ms"
    )
    assert p99_ms < MAX_P99_MS


async def _stream(core: Core, text: str) -> None:
    params = SamplingParams(max_tokens=2000, ignore_eos=True, seed=1)
    messages = [{"role": "user", "content": text}]
    async with contextlib.aclosing(core.host.stream_chat(messages, params)) as deltas:
        async for _ in deltas:
            pass


async def _measure_delays() -> list[float]:
    """How much later than asked for a timer fires, in milliseconds."""
    delays_ms = []
    until_s = time.perf_counter() + MEASURED_S
    while (asked_at := time.perf_counter()) < until_s:
        await asyncio.sleep(PROBE_S)
        delays_ms.append(max(0.0, (time.perf_counter() - asked_at - PROBE_S) * 1e3))
    return delays_ms

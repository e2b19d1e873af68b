"""How long the window stands still while the first model, and torch with it, is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.paths import AppPaths

RUN = """
import asyncio, dataclasses, json, sys, time
from octavo.core import Core
from octavo.host import HostStatus
from octavo.paths import AppPaths
from octavo.ui import desktop

core = None

def make_core(paths):
    global core
    core = Core(paths)
    chat = dataclasses.replace(core.settings.value.chat, last_model=core.library.scan()[0].name)
    core.settings.update(chat=chat)
    return core

gaps_ms = []

async def measure(window):
    started_at = time.perf_counter()
    while core.host.state.status in (HostStatus.EMPTY, HostStatus.LOADING):
        before = time.perf_counter()
        await asyncio.sleep(0.002)
        after = time.perf_counter()
        gaps_ms.append((round((after - before) * 1000), round(after - started_at, 2)))
    window.close()

class FirstPaint(desktop.FirstPaint):
    async def wait(self):
        await super().wait()
        self.task = asyncio.get_running_loop().create_task(measure(self._window))

desktop.FirstPaint = FirstPaint
assert "torch" not in sys.modules
desktop.run_desktop(AppPaths.default(), make_core)
state = core.host.state
print(json.dumps({"gaps_ms": sorted(gaps_ms)[-5:], "torch": "torch" in sys.modules}))
"""


@pytest.mark.slow
@pytest.mark.starter
def test_the_first_load_does_not_freeze_the_window(paths: AppPaths, starter_model: Path) -> None:
    paths.models_dir.mkdir(parents=True)
    (paths.models_dir / starter_model.name).symlink_to(starter_model)
    longest = []
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-c", RUN],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        seen = json.loads(result.stdout.splitlines()[-1])
        assert seen["torch"]
        longest.append(seen["gaps_ms"][-1][0])
        print(f"longest gaps of the event loop (ms, at s): {seen['gaps_ms']}")
    # The best of three, for the machine may be busy with something else.
    print(f"longest gap at the first load: {min(longest)} ms (of {longest})")
    assert min(longest) < 250

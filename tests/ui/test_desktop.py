"""From an empty process to the window and back, in a process of its own."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from octavo.hub.library import LibraryModel
from octavo.paths import AppPaths
from octavo.ui.desktop import load_last_model
from tests.test_architecture import NOT_BEFORE_PAINT
from tests.ui.fakes import FakeCore, make_model

RUN = """
import json, os, signal, sys
from octavo.paths import AppPaths
from octavo.ui import desktop

seen = {}

class FirstPaint(desktop.FirstPaint):
    async def wait(self):
        await super().wait()
        seen["modules_at_paint"] = list(sys.modules)
        how = sys.argv[1]
        if how == "close":
            self._window.close()
        else:
            os.kill(os.getpid(), getattr(signal, how))

desktop.FirstPaint = FirstPaint
seen["status"] = desktop.run_desktop(AppPaths.default())
print(json.dumps(seen))
"""


def run_python(source: str, *arguments: str) -> Any:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["close", "SIGTERM", "SIGINT"])
def test_the_window_opens_at_once_and_every_end_is_clean(paths: AppPaths, how: str) -> None:
    seen = run_python(RUN, how)
    assert seen["status"] == 0
    # How long it takes is measured by `pytest -s -m slow tests/ui/test_real_display.py`.
    assert sorted(NOT_BEFORE_PAINT.intersection(seen["modules_at_paint"])) == []
    assert (paths.data_dir / "window.ini").exists()


def test_a_broken_settings_file_opens_the_window_and_stays(paths: AppPaths) -> None:
    paths.settings_file.parent.mkdir(parents=True)
    paths.settings_file.write_text("[appearance\n", encoding="utf-8")
    assert run_python(RUN, "close")["status"] == 0
    assert paths.settings_file.read_text(encoding="utf-8") == "[appearance\n"


CANNOT_START = """
import json
from pathlib import Path
from octavo.errors import ChatStoreError
from octavo.paths import AppPaths
from octavo.ui import desktop
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication

def make_core(paths):
    QTimer.singleShot(50, lambda: [window.close() for window in QApplication.topLevelWidgets()])
    raise ChatStoreError("The conversations cannot be read.", hint="Restore the copy.")

print(json.dumps({"status": desktop.run_desktop(AppPaths.default(), make_core)}))
"""


def test_what_keeps_it_from_starting_is_shown(paths: AppPaths) -> None:
    assert run_python(CANNOT_START)["status"] == 1


async def test_the_last_model_is_chosen_as_by_hand(core: FakeCore) -> None:
    model = make_model()
    core.library.models = [model]
    chosen: list[LibraryModel] = []
    core.settings.update(chat=dataclasses.replace(core.settings.value.chat, last_model="gone"))
    await load_last_model(core.as_core, chosen.append)
    assert chosen == []
    chat = dataclasses.replace(core.settings.value.chat, last_model=model.name)
    core.settings.update(chat=chat)
    await load_last_model(core.as_core, chosen.append)
    assert chosen == [model]

"""One window a person and data folder, with real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from PySide6.QtCore import QCoreApplication
from PySide6.QtNetwork import QLocalSocket
from PySide6.QtWidgets import QApplication

from octavo.errors import OctavoError
from octavo.paths import AppPaths
from octavo.ui import single_instance
from octavo.ui.single_instance import SingleInstance, socket_name
from tests.ui.conftest import until

FIRST = """
import sys
from pathlib import Path
from PySide6.QtCore import QCoreApplication, QTimer
from octavo.ui.single_instance import SingleInstance

app = QCoreApplication([])
instance = SingleInstance(Path(sys.argv[1]))
if not instance.claim(sys.argv[2]):
    print("second", flush=True)
    sys.exit(0)

def asked(argument):
    print("asked " + argument, flush=True)

instance.asked.connect(asked)
print("first", flush=True)
QTimer.singleShot(90_000, app.quit)
app.exec()
"""

Process = subprocess.Popen[str]


def start(run_dir: Path, argument: str = "") -> Process:
    return subprocess.Popen(
        [sys.executable, "-c", FIRST, str(run_dir), argument],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
    )


def read_line(process: Process) -> str:
    output: IO[str] | None = process.stdout
    assert output is not None
    return output.readline().strip()


def end(process: Process, number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait(60)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Process]:
    process = start(tmp_path)
    assert read_line(process) == "first"
    yield process
    if process.poll() is None:
        end(process, signal.SIGKILL)


def test_a_second_start_hands_its_argument_over(first: Process, tmp_path: Path) -> None:
    second = start(tmp_path, "/models/größer.gguf")
    assert read_line(second) == "second"
    assert second.wait(60) == 0
    assert read_line(first) == "asked /models/größer.gguf"
    end(second, signal.SIGTERM)


def test_another_data_folder_is_another_octavo(first: Process, tmp_path: Path) -> None:
    other = start(tmp_path / "other")
    assert read_line(other) == "first"
    end(other, signal.SIGKILL)


def test_what_a_killed_process_left_is_no_hindrance(first: Process, tmp_path: Path) -> None:
    end(first, signal.SIGKILL)
    second = start(tmp_path)
    assert read_line(second) == "first"
    third = start(tmp_path, "again")
    assert read_line(third) == "second"
    assert read_line(second) == "asked again"
    end(third, signal.SIGTERM)
    end(second, signal.SIGKILL)


def test_of_many_starts_at_once_exactly_one_is_first(tmp_path: Path) -> None:
    processes = [start(tmp_path, str(number)) for number in range(5)]
    lines = [read_line(process) for process in processes]
    assert sorted(lines) == ["first", *["second"] * 4]
    first = processes[lines.index("first")]
    asked = {read_line(first) for _ in range(4)}
    assert asked == {f"asked {n}" for n in range(5) if n != lines.index("first")}
    for process in processes:
        end(process, signal.SIGKILL)


def test_a_first_one_that_hangs_is_named(
    first: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: QApplication
) -> None:
    monkeypatch.setattr(single_instance, "ANSWER_TIMEOUT_S", 0.3)
    first.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(OctavoError, match="does not answer"):
            SingleInstance(tmp_path).claim("")
    finally:
        first.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "message", [b"nonsense\n", b'{"argument": 3}\n', b"[]\n", b"x" * 100_000], ids=len
)
async def test_a_strange_message_shows_nothing(
    tmp_path: Path, message: bytes, app: QApplication
) -> None:
    instance = SingleInstance(tmp_path)
    assert instance.claim("")
    asked: list[str] = []
    instance.asked.connect(asked.append)
    socket = QLocalSocket()
    socket.connectToServer(socket_name(tmp_path))
    await until(lambda: socket.state() == QLocalSocket.LocalSocketState.ConnectedState)
    socket.write(message)
    await until(lambda: socket.state() == QLocalSocket.LocalSocketState.UnconnectedState)
    assert asked == []
    instance.close()


RUN = """
import json, sys
from octavo.paths import AppPaths
from octavo.ui import desktop
from octavo.ui.main_window import MainWindow

shown = []
show_asked = MainWindow.show_asked

def seen(self, argument):
    show_asked(self, argument)
    shown.append((argument, self.current_page))
    self.closing.emit()

MainWindow.show_asked = seen

class FirstPaint(desktop.FirstPaint):
    async def wait(self):
        await super().wait()
        print("painted", flush=True)

desktop.FirstPaint = FirstPaint
status = desktop.run_desktop(AppPaths.default(), opened="".join(sys.argv[1:]))
print(json.dumps([status, shown]), flush=True)
"""


def test_a_second_octavo_shows_the_first_ones_window(paths: AppPaths) -> None:
    def run(*arguments: str) -> Process:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, text=True
        )

    first = run()
    assert read_line(first) == "painted"
    second = run("/models/a.gguf")
    assert json.loads(read_line(second)) == [0, []], "it opened no window"
    assert json.loads(read_line(first)) == [0, [["/models/a.gguf", "models"]]]
    for process in (first, second):
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def test_the_name_is_short_and_differs_by_folder(tmp_path: Path) -> None:
    assert QCoreApplication.instance() is not None
    long = tmp_path / ("x" * 200)
    assert socket_name(long) != socket_name(tmp_path)
    assert len(socket_name(long)) < 60

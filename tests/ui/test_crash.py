"""What Octavo does when it fails itself: in slots, tasks and threads, and when the process dies."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PySide6.QtCore import QTimer, qWarning
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QPushButton

from octavo import __version__
from octavo.errors import StorageError
from octavo.paths import AppPaths
from octavo.ui import crash_report
from octavo.ui.crash_dialog import CrashDialog
from octavo.ui.crash_file import CrashFile, read_crashes, remove_crashes, take_crashes
from octavo.ui.crash_hooks import CrashHooks
from octavo.ui.crash_report import Failure, make_report, redact
from octavo.ui.tasks import UiTasks, spawn
from octavo.ui.theme import ThemeController
from tests.ui.conftest import until


def fail() -> None:
    raise KeyError("nobody expected this")


async def fail_later() -> None:
    await asyncio.sleep(0)
    fail()


@pytest.fixture
async def hooks(app: QApplication) -> AsyncIterator[CrashHooks]:
    made = CrashHooks()
    with made.installed(asyncio.get_running_loop()):
        yield made


@pytest.fixture
def seen(hooks: CrashHooks) -> list[Failure]:
    failures: list[Failure] = []
    hooks.failed.connect(failures.append)
    return failures


async def test_a_slot_that_fails_is_announced(
    seen: list[Failure], caplog: pytest.LogCaptureFixture
) -> None:
    button = QPushButton()
    button.clicked.connect(fail)
    button.click()
    assert [failure.title for failure in seen] == ["KeyError: 'nobody expected this'"]
    assert seen[0].place == "a part of the window"
    assert "in fail" in seen[0].traceback
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_a_callback_of_the_loop_that_fails_is_announced(seen: list[Failure]) -> None:
    asyncio.get_running_loop().call_soon(fail)
    await until(lambda: len(seen) == 1)
    assert seen[0].place == "a task of the window"


async def test_a_thread_that_fails_is_announced_by_its_name(seen: list[Failure]) -> None:
    thread = threading.Thread(target=fail, name="octavo-probe")
    thread.start()
    thread.join()
    await until(lambda: len(seen) == 1)
    assert seen[0].place == "the thread octavo-probe"


async def test_a_failure_of_whoever_shows_it_does_not_go_round(
    hooks: CrashHooks, seen: list[Failure]
) -> None:
    hooks.failed.connect(lambda _failure: fail())
    QTimer.singleShot(0, fail)
    await until(lambda: len(seen) == 1)
    await asyncio.sleep(0.02)
    assert len(seen) == 1


async def test_hooks_are_put_back(app: QApplication) -> None:
    loop = asyncio.get_running_loop()
    before = sys.excepthook, threading.excepthook, sys.unraisablehook, loop.get_exception_handler()
    with CrashHooks().installed(loop):
        assert sys.excepthook != before[0]
    now = sys.excepthook, threading.excepthook, sys.unraisablehook, loop.get_exception_handler()
    assert now == before


async def test_what_qt_says_goes_into_the_log(
    hooks: CrashHooks, caplog: pytest.LogCaptureFixture
) -> None:
    qWarning("a warning of Qt")
    assert ("octavo.qt", logging.WARNING, "a warning of Qt") in caplog.record_tuples


async def test_a_task_that_fails_is_a_mistake_and_an_expected_error_is_none(
    tasks: UiTasks,
) -> None:
    broken: list[BaseException] = []
    shown: list[str] = []
    tasks.broken.connect(broken.append)
    tasks.failed.connect(lambda error: shown.append(error.message))

    async def expected() -> None:
        raise StorageError("The disk is full.")

    spawn(fail_later())
    spawn(expected())
    await until(lambda: len(broken) == 1 and len(shown) == 1)
    assert isinstance(broken[0], KeyError)
    assert shown == ["The disk is full."]


@pytest.fixture
async def dialog(tasks: UiTasks, theme: ThemeController) -> CrashDialog:
    return CrashDialog(lambda: None)


async def test_the_dialog_shows_the_report_and_copies_it(dialog: CrashDialog) -> None:
    dialog.add(Failure("KeyError: 'x'", "a task of the window", "Traceback of x"))
    assert dialog.isVisible()
    await until(lambda: "Traceback of x" in dialog.report)
    for part in (f"Octavo {__version__}", "Python 3", "torch", "Graphics cards:", "of the log:"):
        assert part in dialog.report
    dialog.copy_button.click()
    assert QGuiApplication.clipboard().text() == dialog.report


async def test_the_same_failure_again_only_counts(dialog: CrashDialog) -> None:
    failure = Failure("KeyError: 'x'", "a task of the window", "Traceback of x")
    for _ in range(3):
        dialog.add(failure)
    dialog.add(Failure("ValueError: y", "a task of the window", "Traceback of y"))
    await until(lambda: "Traceback of y" in dialog.report)
    assert dialog.report.count("Traceback of x") == 1
    assert "number 4" in dialog._what.text()
    dialog.close()
    assert not dialog.isVisible()


def test_a_report_has_no_home_folder_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    text = (
        'File "/home/ada/octavo/a.py"\n/home/ada\n/home/adam/b\n'
        "token=hf_abcdefghijkl Authorization: Bearer sk-1234567890 api_key: 'secret-1'\n"
        "https://ada:pass@proxy.example.org/x\n"
    )
    clean = redact(text)
    assert "~/octavo/a.py" in clean
    assert "/home/adam/b" in clean
    for secret in ("/home/ada/", "hf_abc", "sk-123", "secret-1", "pass@"):
        assert secret not in clean


def test_long_words_of_an_exception_are_cut() -> None:
    failure = Failure.of(ValueError("p" * 100_000), "a task")
    assert len(failure.title) <= crash_report.MAX_MESSAGE_CHARS
    assert len(failure.traceback) < 10_000


def test_torch_is_named_and_not_loaded() -> None:
    report = make_report("")
    assert ("torch not loaded" in report) is ("torch" not in sys.modules)


def test_an_orderly_end_leaves_no_crash_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from octavo.ui.crash_file import CrashFile\n"
        "with CrashFile(Path(sys.argv[1])).lying_ready() as crashes: assert not crashes"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "logs")], check=True, timeout=60)
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_only_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file", encoding="utf-8")
    with CrashFile(tmp_path / "logs").lying_ready() as crashes:
        assert crashes == []
    assert "no report" in caplog.text


CRASH = """
import ctypes, os, signal, sys
from octavo.paths import AppPaths
from octavo.ui import desktop

class FirstPaint(desktop.FirstPaint):
    async def wait(self):
        await super().wait()
        os.kill(os.getpid(), int(sys.argv[1]))

desktop.FirstPaint = FirstPaint
desktop.run_desktop(AppPaths.default())
"""

NEXT_START = """
import asyncio, json
from octavo.paths import AppPaths
from octavo.ui import crash_watch, desktop
from PySide6.QtGui import QGuiApplication

seen = {}

class CrashWatch(crash_watch.CrashWatch):
    def show_last(self, crashes):
        super().show_last(crashes)
        asyncio.get_running_loop().create_task(self.look())

    async def look(self):
        notice = self._window.notice
        seen["notice"] = notice.text if notice.isVisible() else ""
        if notice.buttons:
            copy, dismiss = notice.buttons
            copy.click()
            while not QGuiApplication.clipboard().text():
                await asyncio.sleep(0.01)
            seen["report"] = QGuiApplication.clipboard().text()
            dismiss.click()
            seen["is_dismissed"] = not notice.isVisible()
        self._window.close()

desktop.CrashWatch = CrashWatch
desktop.run_desktop(AppPaths.default())
print(json.dumps(seen))
"""


def next_start() -> dict[str, str]:
    output = subprocess.run(
        [sys.executable, "-c", NEXT_START], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    seen: dict[str, str] = json.loads(output.splitlines()[-1])
    return seen


def crash(number: signal.Signals) -> int:
    arguments = [sys.executable, "-c", CRASH, str(int(number))]
    return subprocess.run(arguments, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_crash_is_told_at_the_next_start(paths: AppPaths) -> None:
    logs = paths.log_file.parent
    assert crash(signal.SIGSEGV) == -signal.SIGSEGV
    assert len(list(logs.glob("crash-*.txt"))) == 1
    seen = next_start()
    assert "ended unexpectedly" in seen["notice"]
    assert "Segmentation fault" in seen["report"]
    assert "desktop.py" in seen["report"]
    assert seen["is_dismissed"]
    assert list(logs.glob("crash-*.txt")) == []
    assert next_start()["notice"] == ""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_being_killed_is_no_crash(paths: AppPaths) -> None:
    assert crash(signal.SIGKILL) == -signal.SIGKILL
    assert next_start()["notice"] == ""


def test_crash_files_are_read_in_order_and_bounded(tmp_path: Path) -> None:
    for number in (2, 1, 3):
        path = tmp_path / f"crash-2026010{number}-000000.txt"
        text = "Octavo\n" if number == 3 else f"Octavo\nFatal {number}\n{'x' * 100_000}"
        path.write_text(text, encoding="utf-8")
    crashes = take_crashes(tmp_path)
    assert [path.name for path in crashes] == [
        "crash-20260101-000000.txt",
        "crash-20260102-000000.txt",
    ]
    text = read_crashes(crashes)
    assert text.index("Fatal 1") < text.index("Fatal 2")
    assert len(text) < 140_000
    remove_crashes(crashes)
    assert list(tmp_path.iterdir()) == []

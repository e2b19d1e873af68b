"""The log's window: the end of the file, followed while somebody looks."""

import asyncio
import threading
from pathlib import Path

import pytest
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QWidget

from octavo.log import LogTail
from octavo.ui import log_view
from octavo.ui.log_view import LogWindow
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from tests.ui.conftest import until

INFO = "2026-01-02 03:04:05,678 INFO [MainThread] octavo.ui: first paint\n"
WARNING = "2026-01-02 03:04:06,000 WARNING [MainThread] octavo.hub: slow\n"
ERROR = (
    "2026-01-02 03:04:07,000 ERROR [MainThread] octavo.ui: failed\n"
    "Traceback (most recent call last):\n"
    '  File "a.py", line 1\n'
    "KeyError: 'x'\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "octavo.log"
    file.write_text(INFO + WARNING + ERROR, encoding="utf-8")
    return file


def rotate(path: Path, text: str) -> None:
    path.rename(path.with_suffix(".log.1"))
    path.write_text(text, encoding="utf-8")


@pytest.fixture
async def owner(tasks: UiTasks, theme: ThemeController) -> QWidget:
    return QWidget()


@pytest.fixture
async def window(path: Path, owner: QWidget) -> LogWindow:
    return LogWindow(path, owner)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


async def test_it_shows_the_end_and_follows(
    window: LogWindow, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window._timer.setInterval(20)
    window.bring_to_front()
    await until(lambda: "KeyError" in window.text)
    append(path, INFO.replace("first paint", "half a li"))
    await until(lambda: "half a li" in window.text)
    append(path, "2026-01-02 03:04:05,678 INFO [MainThread] octavo.ui: not whole yet")
    await asyncio.sleep(0.1)
    assert "not whole" not in window.text
    append(path, "\n")
    await until(lambda: "not whole yet" in window.text)


async def test_hidden_it_reads_nothing(window: LogWindow, path: Path) -> None:
    window._timer.setInterval(10)
    window.show()
    await until(lambda: "KeyError" in window.text)
    window.hide()
    assert not window.is_following
    # What it had begun to read before may end.
    await until(lambda: not window._is_reading)
    append(path, WARNING.replace("slow", "unseen"))
    await asyncio.sleep(0.1)
    assert "unseen" not in window.text
    window.show()
    await until(lambda: "unseen" in window.text)


async def test_a_filter_keeps_a_traceback_with_its_record(window: LogWindow) -> None:
    window.show()
    await until(lambda: "KeyError" in window.text)
    window.filter.set_value("ERROR")
    window.filter.chosen.emit("ERROR")
    assert window.text == ERROR.rstrip()
    window.filter.set_value("WARNING")
    window.filter.chosen.emit("WARNING")
    assert window.text == (WARNING + ERROR).rstrip()


async def test_a_rotated_file_is_followed(window: LogWindow, path: Path) -> None:
    window._timer.setInterval(20)
    window.show()
    await until(lambda: "KeyError" in window.text)
    rotate(path, INFO.replace("first paint", "new file"))
    await until(lambda: "new file" in window.text)
    assert window.text.count("KeyError") == 1


async def test_no_file_yet(tmp_path: Path, owner: QWidget) -> None:
    window = LogWindow(tmp_path / "none.log", owner)
    window.show()
    await asyncio.sleep(0.05)
    assert window.text == ""


async def test_copy_takes_what_is_shown_without_the_home_folder(
    window: LogWindow, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    append(path, WARNING.replace("slow", "/home/ada/models is slow"))
    window.show()
    await until(lambda: "is slow" in window.text)
    window.copy_button.click()
    text = QGuiApplication.clipboard().text()
    assert "~/models is slow" in text
    assert "KeyError" in text


async def test_a_reader_who_scrolled_up_is_left_there(window: LogWindow, path: Path) -> None:
    append(path, INFO * 200)
    window._timer.setInterval(20)
    window.show()
    await until(lambda: window.text.count("INFO") > 200)
    bar = window._text.verticalScrollBar()
    assert bar.value() == bar.maximum()
    bar.setValue(3)
    append(path, WARNING.replace("slow", "at the end"))
    await until(lambda: "at the end" in window.text)
    assert bar.value() == 3


class WatchedTail(LogTail):
    """Remembers what was read, and by whom."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(path, max_bytes)
        self.read_bytes: list[int] = []
        self.readers: set[threading.Thread] = set()

    def read(self) -> list[str]:
        lines = super().read()
        self.read_bytes.append(sum(len(line) + 1 for line in lines))
        self.readers.add(threading.current_thread())
        return lines


async def test_a_log_of_100_mb_does_not_hold_the_window_up(
    owner: QWidget, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end alone is read, by a worker, and no more lines are laid out than can be shown."""
    with path.open("ab") as file:
        file.truncate(100 * 2**20)
    append(path, "\n" + INFO * 16_000 + WARNING.replace("slow", "the very last"))
    monkeypatch.setattr(log_view, "LogTail", WatchedTail)
    window = LogWindow(path, owner)
    tail = window._tail
    assert isinstance(tail, WatchedTail)
    window.show()
    await until(lambda: "the very last" in window.text)
    assert len(INFO * 16_000) > log_view.MAX_READ_BYTES
    assert log_view.MAX_READ_BYTES // 2 < sum(tail.read_bytes) <= log_view.MAX_READ_BYTES
    assert threading.main_thread() not in tail.readers
    assert window._text.document().blockCount() <= log_view.MAX_LINES
    assert len(window._lines) <= log_view.MAX_LINES

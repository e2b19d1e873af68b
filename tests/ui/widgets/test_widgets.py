"""Widgets that know no feature."""

import asyncio
import platform

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWidget

from octavo import __version__
from octavo.errors import StorageError
from octavo.jobs import Progress
from octavo.ui.tasks import UiTasks
from octavo.ui.theme import ThemeController
from octavo.ui.widgets.buttons import Button, SegmentedChoice
from octavo.ui.widgets.cards import ErrorCard, Notice
from octavo.ui.widgets.dialogs import ConfirmDialog, confirm
from octavo.ui.widgets.inputs import ChoiceBox
from octavo.ui.widgets.labels import ElidedLabel
from octavo.ui.widgets.progress import ProgressLine, describe_amount
from octavo.ui.widgets.toast import Toast, find_toast
from tests.ui.conftest import until

MIB = 2**20


@pytest.fixture
def parent(app: QApplication, theme: ThemeController) -> QWidget:
    widget = QWidget()
    widget.resize(600, 400)
    widget.show()
    return widget


def test_toast_runs_its_action_once_and_goes(parent: QWidget) -> None:
    toast = Toast(parent)
    undone: list[bool] = []
    toast.show_message("Deleted.", action_text="Undo", action=lambda: undone.append(True))
    assert find_toast(parent) is toast
    assert parent.rect().contains(toast.geometry())
    toast.action_button.click()
    assert undone == [True]
    assert not toast.isVisible()


def test_toast_stays_in_the_window_when_it_shrinks(parent: QWidget) -> None:
    toast = Toast(parent)
    toast.show_error(StorageError("The disk is full. " * 6, hint="Free some space."))
    parent.resize(320, 300)
    assert parent.rect().contains(toast.geometry())


async def test_error_card_shows_and_copies_the_whole(parent: QWidget, tasks: UiTasks) -> None:
    toast = Toast(parent)
    card = ErrorCard("Try again", parent)
    card.show_error(StorageError("The disk is full.", hint="Free some space."))
    card.copy_button.click()
    await until(lambda: "clipboard" in toast.text)
    report = QGuiApplication.clipboard().text()
    for part in (
        "StorageError: The disk is full.",
        "Free some space.",
        f"Octavo {__version__}",
        platform.platform(),
        platform.python_version(),
        "lines of the log:",
    ):
        assert part in report
    card.clear()
    assert card.isHidden()


def test_notice_is_hidden_while_it_has_nothing_to_say(parent: QWidget) -> None:
    notice = Notice()
    notice.setParent(parent)
    notice.set_text("A folder is missing.")
    assert notice.isVisible()
    notice.set_text("")
    assert not notice.isVisible()


@pytest.mark.parametrize(
    ("done", "total", "moved", "elapsed_s", "text"),
    [
        (0, None, 0, 0.0, ""),
        (MIB, None, MIB, 5.0, "1.0 MiB"),
        (MIB, 4 * MIB, MIB, 0.5, "1.0 MiB of 4.0 MiB"),
        (MIB, 4 * MIB, MIB, 10.0, "1.0 MiB of 4.0 MiB · about 30 s left"),
        (4 * MIB, 4 * MIB, MIB, 10.0, "4.0 MiB of 4.0 MiB"),
    ],
)
def test_amounts_have_units_and_estimates_say_about(
    done: int, total: int | None, moved: int, elapsed_s: float, text: str
) -> None:
    assert describe_amount(Progress("Downloading", done, total), moved, elapsed_s) == text


def test_what_is_counted_is_named() -> None:
    progress = Progress("Compiling", 3, 1100, "kernels")
    assert describe_amount(progress, 3, 0.5) == "3 of 1,100 kernels"
    assert describe_amount(Progress("Compiling", 3, unit="kernels"), 3, 0.5) == "3 kernels"


def test_progress_moves_without_end_while_the_total_is_unknown(parent: QWidget) -> None:
    line = ProgressLine("Download")
    line.show_progress(Progress("Looking"))
    assert line._bar.maximum() == 0
    line.show_progress(Progress("Loading", 1, 4))
    assert line._bar.value() * 4 == line._bar.maximum()


def test_elided_label_has_the_whole_as_tool_tip(parent: QWidget) -> None:
    text = ElidedLabel("/a/very/long/path/" * 20, mode=Qt.TextElideMode.ElideMiddle)
    text.setParent(parent)
    text.resize(100, 20)
    text.show()
    assert text.toolTip() == text.text()
    text.setText("/a")
    assert text.toolTip() == ""


def test_segments_are_chosen_by_click_and_arrow(parent: QWidget) -> None:
    choice = SegmentedChoice("Theme", [("auto", "Auto"), ("dark", "Dark")])
    choice.setParent(parent)
    choice.show()
    chosen: list[str] = []
    choice.chosen.connect(chosen.append)
    choice.set_value("auto")
    assert chosen == []
    choice._buttons["dark"].click()
    assert (choice.value, chosen) == ("dark", ["dark"])


def test_choice_box_keeps_a_value_it_does_not_know(parent: QWidget) -> None:
    box = ChoiceBox("Device", [("auto", "Auto")])
    box.set_value("cuda:3")
    assert box.value == "cuda:3"


def test_return_presses_the_focused_button(parent: QWidget) -> None:
    button = Button("Go", parent=parent)
    button.show()
    pressed: list[bool] = []
    button.clicked.connect(lambda: pressed.append(True))
    button.setFocus()
    QTest.keyClick(button, Qt.Key.Key_Return)
    assert pressed == [True]


@pytest.mark.parametrize("key", [Qt.Key.Key_Return, Qt.Key.Key_Escape])
async def test_confirm_is_no_by_default_and_stops_nobody(
    parent: QWidget, tasks: UiTasks, key: Qt.Key
) -> None:
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0.001)

    ticker = asyncio.create_task(tick())
    question = asyncio.create_task(confirm(parent, "Remove it?", "It is gone.", "Remove"))
    await until(lambda: parent.findChild(ConfirmDialog) is not None)
    seen = len(ticks)
    await until(lambda: len(ticks) > seen)
    dialog = parent.findChild(ConfirmDialog)
    assert isinstance(dialog, ConfirmDialog)
    QTest.keyClick(dialog, key)
    assert await question is False
    ticker.cancel()
